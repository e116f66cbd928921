"""Languages of running text; short text and text that is no language is not identified."""

from __future__ import annotations

import pytest

from calumma.documents.language_id import identify_language, language_codes

TEXTS = {
    "en": "It is a truth universally acknowledged, that a single man in possession of a good "
    "fortune, must be in want of a wife, and this truth is fixed in the minds of the families.",
    "de": "Es ist eine allgemein anerkannte Wahrheit, dass ein Junggeselle mit einem schönen "
    "Vermögen nichts dringender braucht als eine Frau, und das wissen auch die Nachbarn von ihm.",
    "fr": "C'est une vérité universellement reconnue qu'un célibataire pourvu d'une belle fortune "
    "doit avoir envie de se marier, et cette vérité est dans l'esprit de ses voisins sur le champ.",
    "es": "Es una verdad mundialmente reconocida que un hombre soltero, poseedor de una gran "
    "fortuna, necesita una esposa, y esta verdad es la que las familias de los vecinos no olvidan.",
    "ru": "Всё смешалось в доме Облонских. Жена узнала, что муж был в связи с бывшею в их доме "
    "француженкой-гувернанткой, и объявила мужу, что не может жить с ним в одном доме.",
    "ja": "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。",
}


@pytest.mark.parametrize("language", TEXTS)
def test_running_text_is_identified(language: str) -> None:
    assert identify_language(TEXTS[language]) == language


@pytest.mark.parametrize("text", ["", "a red bird", "x = 1\n" * 40, "Anna Berta Carla Doris Erika Frieda " * 6])
def test_short_text_and_text_without_language_is_not_identified(text: str) -> None:
    assert identify_language(text) == ""


def test_codes_are_those_of_the_model() -> None:
    assert {*TEXTS} <= {*language_codes()}
    assert "zxx" not in language_codes()
