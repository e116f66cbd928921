"""Languages told apart by their commonest words."""

from __future__ import annotations

import pytest

from calumma.documents.language_id import identify_language

TEXTS = {
    "en": "It is a truth universally acknowledged, that a single man in possession of a good "
    "fortune, must be in want of a wife, and this truth is fixed in the minds of the families.",
    "de": "Es ist eine allgemein anerkannte Wahrheit, dass ein Junggeselle mit einem schönen "
    "Vermögen nichts dringender braucht als eine Frau, und das wissen auch die Nachbarn von ihm.",
    "fr": "C'est une vérité universellement reconnue qu'un célibataire pourvu d'une belle fortune "
    "doit avoir envie de se marier, et cette vérité est dans l'esprit de ses voisins sur le champ.",
    "es": "Es una verdad mundialmente reconocida que un hombre soltero, poseedor de una gran "
    "fortuna, necesita una esposa, y esta verdad es la que las familias de los vecinos no olvidan.",
    "other": "Всё смешалось в доме Облонских. Жена узнала, что муж был в связи с гувернанткой.",
}


@pytest.mark.parametrize("language", TEXTS)
def test_running_text_is_told(language: str) -> None:
    assert identify_language(TEXTS[language]) == language


@pytest.mark.parametrize(
    "text", ["", "a red bird", "x = 1\n" * 40, "Anna Berta Carla Doris Erika Frieda " * 6]
)
def test_what_is_short_or_no_running_text_is_left_open(text: str) -> None:
    assert identify_language(text) == ""
