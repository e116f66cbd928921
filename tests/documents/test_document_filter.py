"""Filters: each leaves out what it says, with its reason, and nothing else."""

import io
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from calumma.documents.document import Document, Image, Text
from calumma.documents.document_filter import (
    DocumentFilter,
    FilterConfig,
    Score,
    ScoreRule,
    attribute_score,
    difference_hash,
    duplicate_5gram_fraction,
    exact_signature,
    identify_language,
    language_codes,
    near_signature,
    select_images,
)
from calumma.documents.error_policy import DroppedDocument
from calumma.errors import ConfigError, DocumentError, ImageError
from calumma.toml_config import load_config
from tests.images import noise, png

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


def file_of(image: PIL.Image.Image, kind: str = "PNG") -> Image:
    file = io.BytesIO()
    image.save(file, kind)
    return Image(data=file.getvalue())


WIDE, SMALL = file_of(noise(0, 90, 30)), file_of(noise(1, 12, 40))
BLANK = file_of(PIL.Image.new("RGB", (40, 40), (200, 201, 202)))
GLASS = file_of(PIL.Image.new("RGBA", (40, 40), (0, 0, 0, 0)))
BROKEN = Image(data=b"no image", name="here")
PARTS = (Text("a red bird on a boat"), file_of(noise(2, 40, 40)))
GOOD = Document(id="d", source="s", license="MIT", content=PARTS)


def with_image(image: Image) -> Document:
    return replace(GOOD, content=(PARTS[0], image))


def with_text(text: str) -> Document:
    return replace(GOOD, content=(Text(text), PARTS[1]))


FAULTS: list[tuple[dict[str, Any], Document, str, str]] = [
    (
        {"min_image_side": 30},
        with_image(SMALL),
        "image too small",
        "image 0: 12 x 40 pixels; expected a side of at least 30",
    ),
    (
        {"max_aspect_ratio": 2.5},
        with_image(WIDE),
        "aspect ratio",
        "image 0: 90 x 30 pixels; expected sides at most 2.5 to 1",
    ),
    ({"min_contrast": 4.0}, with_image(BLANK), "near-blank", "image 0: contrast 0.00; expected 4"),
    ({"min_contrast": 4.0}, with_image(GLASS), "near-blank", "image 0: contrast 0.00; expected 4"),
    (
        {"min_image_side": 1},
        with_image(BROKEN),
        "unreadable",
        "here: not an image (its first bytes are b'no image'); expected PNG, JPEG, WebP or another "
        "format of Pillow. Replace the file, or drop its document.",
    ),
    ({"min_chars": 10}, with_text("a bird"), "text too short", "6 characters; expected at least 10"),
    ({"max_chars": 30}, with_text("bird " * 9), "text too long", "45 characters; expected at most 30"),
    (
        {"languages": ("en",)},
        with_text("der die das und ist nicht ein eine zu den von mit sich auf " * 2),
        "language",
        "de; expected en",
    ),
    (
        {"max_dup_5gram_frac": 0.3},
        with_text("one two three four five six " * 9),
        "repetition",
        "0.88 of the 5-grams; expected at most 0.3",
    ),
    ({"order": "image-first"}, GOOD, "order", "text-first; expected image-first"),
    ({"licenses": ("CC0-1.0", "ISC")}, GOOD, "license", "MIT; expected CC0-1.0, ISC"),
    (
        {"scores": (ScoreRule(name="unsafe", function="tests.documents.test_document_filter:score", max=0.4),)},
        GOOD,
        "unsafe",
        "image 0: 0.5; expected -inf to 0.4",
    ),
    (
        {
            "scores": (
                ScoreRule(
                    name="toxic", function="tests.documents.test_document_filter:score", applies_to="text", max=0.4
                ),
            )
        },
        GOOD,
        "toxic",
        "0.5; expected -inf to 0.4",
    ),
    (
        {"scores": (ScoreRule(name="grey", function="colorfulness", min=20.0),)},
        with_image(BLANK),
        "grey",
        "image 0: 0.5408; expected 20 to inf",
    ),
]


def score(judged: PIL.Image.Image | str) -> float:
    """Score every image and every text alike."""
    return 0.5


@pytest.mark.parametrize(("rule", "document", "reason", "detail"), FAULTS)
def test_a_rule_leaves_out_what_it_says(rule: dict[str, Any], document: Document, reason: str, detail: str) -> None:
    drop = DocumentFilter(FilterConfig(**rule), "drop").check(document)
    assert drop == DroppedDocument(id="d", source="s", reason=reason, detail=detail)
    assert DocumentFilter(FilterConfig()).check(document) is None


def test_a_good_document_passes_all_rules() -> None:
    rules = [rule for rule, document, _, _ in FAULTS if document is not GOOD]
    everything = {name: value for rule in rules for name, value in rule.items()}
    config = FilterConfig(**everything, licenses=("MIT",), order="text-first")
    assert DocumentFilter(config).check(GOOD) is None


def test_text_alone_has_no_order() -> None:
    only = replace(GOOD, content=PARTS[:1])
    assert DocumentFilter(FilterConfig(order="image-first")).check(only) is None


def test_repetition_by_hand() -> None:
    assert duplicate_5gram_fraction("") == duplicate_5gram_fraction("too short") == 0.0
    assert duplicate_5gram_fraction("a b c d e f a b c d e") == 1 - 6 / 7


def test_exact_signatures_differ_by_one_letter_or_one_byte() -> None:
    same = replace(GOOD, id="other", source="elsewhere")
    assert exact_signature(same) == exact_signature(GOOD)
    assert exact_signature(with_text("a red bird on a boat.")) != exact_signature(GOOD)
    assert exact_signature(with_image(WIDE)) != exact_signature(GOOD)


def test_near_signatures_depend_on_appearance() -> None:
    steps = np.tile(np.arange(9, dtype=np.uint8) * 28, (8, 1))
    cells = PIL.Image.fromarray(np.random.default_rng(0).permuted(steps, axis=1))
    image = cells.resize((180, 160), PIL.Image.Resampling.NEAREST)
    signature = near_signature(with_image(file_of(image)))
    smaller = image.resize((90, 80), PIL.Image.Resampling.BOX)
    assert near_signature(with_image(file_of(smaller))) == signature
    assert near_signature(with_image(file_of(image, "WEBP"))) == signature
    assert near_signature(with_image(file_of(noise(6)))) != signature
    assert near_signature(replace(GOOD, content=PARTS[:1])) is None


def test_a_difference_hash_by_hand() -> None:
    rising = PIL.Image.fromarray(np.tile(np.arange(9, dtype=np.uint8) * 20, (8, 1)))
    assert difference_hash(rising) == b"\xff" * 8
    assert difference_hash(rising.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)) == bytes(8)


def test_rules_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "clean.toml").write_text(
        'min_image_side = 32\nlanguages = ["en"]\nnear_duplicates = true\n'
        '[[scores]]\nname = "fine"\nfunction = "a.b:c"\nmin = 0.2\n'
    )
    config = load_config(FilterConfig, tmp_path / "clean.toml", [])
    fine = ScoreRule(name="fine", function="a.b:c", min=0.2)
    assert config == FilterConfig(min_image_side=32, languages=("en",), near_duplicates=True, scores=(fine,))
    assert config.needs_dedup and config.decodes_images
    assert config.fingerprint != FilterConfig().fingerprint


def test_a_scorer_that_is_not_there_is_named() -> None:
    config = FilterConfig(scores=(ScoreRule(name="fine", function="nowhere:score"),))
    with pytest.raises(ConfigError) as caught:
        DocumentFilter(config).check(GOOD)
    assert str(caught.value) == (
        "the score function 'nowhere:score' cannot be imported (No module named 'nowhere'); "
        "expected nudity, sharpness, detail, colorfulness or package.module:function. Install the "
        "package, or fix the name."
    )


def test_an_unreadable_image_raises_unless_it_is_dropped() -> None:
    with pytest.raises(ImageError, match="here: not an image"):
        DocumentFilter(FilterConfig(min_image_side=1)).check(with_image(BROKEN))


def test_images_are_not_decoded_for_text_scores() -> None:
    text = ScoreRule(name="toxic", function="a.b:c", applies_to="text")
    assert not FilterConfig(scores=(text,)).decodes_images
    assert FilterConfig(scores=(ScoreRule(name="unsafe", function="nudity"),)).decodes_images


def test_an_unknown_language_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        FilterConfig(languages=("en", "xx"))
    assert str(caught.value) == (
        "languages names 'xx', which py3langid does not identify; expected ISO 639 codes such as "
        "en, de or zh. Fix or remove it."
    )


def test_the_images_of_the_tests_differ() -> None:
    assert len({png(number) for number in range(10)}) == 10


@pytest.mark.parametrize("language", TEXTS)
def test_running_text_is_identified(language: str) -> None:
    assert identify_language(TEXTS[language]) == language


@pytest.mark.parametrize("text", ["", "a red bird", "x = 1\n" * 40, "Anna Berta Carla Doris Erika Frieda " * 6])
def test_short_text_and_text_without_language_is_not_identified(text: str) -> None:
    assert identify_language(text) == ""


def test_codes_are_those_of_the_model() -> None:
    assert {*TEXTS} <= {*language_codes()}
    assert "zxx" not in language_codes()


def image_document(name: str, size: tuple[int, int], score: str = "7") -> Document:
    file = io.BytesIO()
    PIL.Image.new("RGB", size, "red").save(file, "PNG")
    parts = (Image(data=file.getvalue()), Text(name))
    return Document(id=name, content=parts, attributes={"aesthetic": score})


DOCUMENTS = [
    image_document("wide", (64, 8)),
    image_document("plain", (32, 32), "5.9"),
    image_document("square", (30, 30), "6"),
    image_document("large", (64, 64)),
    Document(id="words", content=(Text("no image"),)),
    Document(id="broken", content=(Image(data=b"no image"),), attributes={"aesthetic": "9"}),
]


AESTHETIC = attribute_score("aesthetic")


def select(score: Score, **limits: Any) -> tuple[list[str], dict[str, int]]:
    dropped: Counter[str] = Counter()
    selected = select_images(lambda: DOCUMENTS, score, dropped, **limits)
    return [document.id for document in selected], dict(dropped)


def test_high_scores_are_selected_then_the_sizes_closest_to_the_square() -> None:
    selected, dropped = select(AESTHETIC, min_score=6.0, target_side=32, max_documents=1)
    assert selected == ["square"]
    assert dropped == {"score": 1, "size": 2, "not one image": 1, "unreadable": 1}


def test_size_counts_as_well_as_the_ratio_and_the_order_stays() -> None:
    assert select(AESTHETIC, target_side=64, max_documents=2)[0] == ["plain", "large"]
    assert select(AESTHETIC, target_side=32)[0] == ["wide", "plain", "square", "large"]


def test_a_score_may_depend_on_the_image() -> None:
    selected, dropped = select(lambda _, image: image.width, min_score=40, target_side=64)
    assert selected == ["wide", "large"] and dropped["score"] == 2


@pytest.mark.parametrize(("name", "found"), [("beauty", None), ("mood", "'fine'")])
def test_an_attribute_that_is_no_number_raises(name: str, found: str | None) -> None:
    document = Document(id="one", content=DOCUMENTS[0].content, attributes={"mood": "fine"})
    with pytest.raises(DocumentError) as caught:
        list(select_images(lambda: [document], attribute_score(name), Counter()))
    assert str(caught.value) == (
        f"one: its attribute {name!r} is {found}; expected a number. Write the score there, or use --scorer."
    )
