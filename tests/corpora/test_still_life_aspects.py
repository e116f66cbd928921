"""Still lifes of several aspects: sizes, words, and documents that do not change without them."""

import io
from collections import Counter
from pathlib import Path

import numpy as np
import PIL.Image

from calumma.corpora.still_life_aspects import ASPECTS, aspect_words, with_aspect
from calumma.corpora.still_life_corpus import StillLifeConfig, generate_still_lifes
from calumma.corpora.still_life_documents import StillLifeWriter
from calumma.corpora.synthetic_scenes import GROUNDS
from calumma.documents.document import Document, Text
from calumma.documents.readers import read_documents

SIDE = 16


def documents(count: int = 120) -> list[tuple[Document, Document]]:
    """Return documents without aspects, and the same with them."""
    writer = StillLifeWriter(0, SIDE)
    plain = [writer.document(number) for number in range(count)]
    random = np.random.default_rng(0)
    return [(each, with_aspect(each, str(each.attributes["kind"]), list(ASPECTS), random)) for each in plain]


def test_all_images_of_a_document_have_its_aspect_around_the_same_scene() -> None:
    found: Counter[str] = Counter()
    for plain, document in documents():
        aspect = str(document.attributes["aspect"])
        found[aspect] += 1
        width, height = (round(scale * SIDE) for scale in ASPECTS[aspect])
        for before, after in zip(plain.images, document.images, strict=True):
            scene, image = (PIL.Image.open(io.BytesIO(each.read_bytes())) for each in (before, after))
            assert image.size == (width, height)
            left, top = (width - SIDE) // 2, (height - SIDE) // 2
            middle = image.crop((left, top, left + SIDE, top + SIDE))
            assert middle.tobytes() == scene.convert("RGB").tobytes()
            if aspect != "square":
                assert image.getpixel((0, 0)) == image.getpixel((width - 1, height - 1))
                assert image.getpixel((0, 0)) in GROUNDS.values()
    assert min(found[aspect] for aspect in ASPECTS) > 20


def texts(document: Document) -> list[str]:
    return [part.text for part in document.parts() if isinstance(part, Text)]


def test_texts_name_the_aspect_once_before_what_is_drawn() -> None:
    named: Counter[str] = Counter()
    for plain, document in documents():
        aspect, kind = str(document.attributes["aspect"]), str(document.attributes["kind"])
        before, after = texts(plain), texts(document)
        changed = [n for n, (old, new) in enumerate(zip(before, after, strict=True)) if old != new]
        assert changed in ([], [0])
        if changed:
            assert after[0] == before[0] + aspect_words(kind, aspect)
        elif aspect != "square":
            assert aspect_words(kind, aspect) == ""
        named[aspect] += bool(changed)
    assert named["wide"] and named["tall"] and named["square"]


def test_a_corpus_without_aspects_has_the_same_bytes(tmp_path: Path) -> None:
    generate_still_lifes(tmp_path / "a", StillLifeConfig(num_documents=20, side=SIDE))
    made = list(read_documents([tmp_path / "a" / "still-lifes"]))
    writer = StillLifeWriter(0, SIDE)
    for number, document in enumerate(made):
        expected = writer.document(number)
        assert (document.text, [p.read_bytes() for p in document.images]) == (
            expected.text,
            [p.read_bytes() for p in expected.images],
        )
    generate_still_lifes(tmp_path / "b", StillLifeConfig(num_documents=20, side=SIDE, aspects=("wide",)))
    wide = list(read_documents([tmp_path / "b" / "still-lifes"]))
    sizes = {PIL.Image.open(io.BytesIO(image.read_bytes())).size for each in wide for image in each.images}
    assert sizes == {(24, 16)}
    card = (tmp_path / "b" / "still-lifes" / "CARD.md").read_text()
    assert "24 x 16 pixels" in card
