"""A decoder with known predictions, and documents to evaluate it on.

There are letters and images: the image of the n-th letter has code n in all of its cells.
"""

import io
from collections.abc import Iterator, Sequence
from itertools import islice, product
from types import SimpleNamespace
from typing import Any

import PIL.Image
import torch
from torch import Tensor

from calumma.corpora.still_life import COLORS, THING_SIZES, StillLife, Thing
from calumma.corpora.synthetic_scenes import SHAPES
from calumma.documents.document import Document, Image, Text
from calumma.evaluate.context import EvalContext
from calumma.tokens.text import TextTokenizer

LETTERS = "abcdefghij"
CELLS = 4
TOKENIZER = TextTokenizer.train([LETTERS], num_text=256, num_codes=16)
VOCABULARY = TOKENIZER.vocabulary


class Oracle:
    """A decoder that gives a letter's codes, or an image's letter, a higher logit than the rest."""

    def __init__(self, logit: float) -> None:
        self.logit = logit
        self.config = SimpleNamespace(vocabulary_size=VOCABULARY.size, max_seq_len=64)
        self.embedding = SimpleNamespace(weight=torch.zeros(1))

    def __call__(self, ids: Tensor) -> Tensor:
        """Map [B, T] to [B, T, V]: zeros, and `logit` for the token that is known to follow."""
        logits = torch.zeros(*ids.shape, VOCABULARY.size)
        for row, sequence in enumerate(ids.tolist()):
            known = None
            for index, id_ in enumerate(sequence):
                letter = TOKENIZER.decode([id_]) if id_ in VOCABULARY.text else ""
                if known is None and letter in LETTERS and letter:
                    known = VOCABULARY.code_to_id(LETTERS.index(letter))
                elif known is None and id_ in VOCABULARY.codes:
                    known = TOKENIZER.encode(LETTERS[VOCABULARY.id_to_code(id_)])[0]
                if known is not None:
                    logits[row, index, known] = self.logit
        return logits


def plain_image(color: tuple[int, int, int] = (255, 0, 0)) -> Image:
    """Return an image of one color."""
    file = io.BytesIO()
    PIL.Image.new("RGB", (8, 8), color).save(file, "PNG")
    return Image(data=file.getvalue())


def letter_documents(letters: str) -> list[Document]:
    """Return one pair per letter."""
    return [Document(id=str(index), content=(Text(letter), plain_image())) for index, letter in enumerate(letters)]


def oracle_context(letters: str, logit: float, **parts: Any) -> EvalContext:
    """Return the letters with their images, and an oracle."""
    model = oracle_model(logit, **parts)
    context = EvalContext(model, letter_documents(letters))
    context.codes = [[[LETTERS.index(letter)] * CELLS] for letter in letters]
    return context


def oracle_model(logit: float, *, has_image_decoder: bool = True) -> Any:
    """Return an oracle with the attributes of a model that tasks use."""
    config = SimpleNamespace(codes_per_image=CELLS, codes_per_side=2, num_codes=16, resolution=8)

    def encode_images(images: Sequence[PIL.Image.Image]) -> list[list[int]]:
        return [[0] * CELLS for _ in images]

    return SimpleNamespace(
        vocabulary=VOCABULARY,
        text=TOKENIZER,
        decoder=Oracle(logit),
        image=SimpleNamespace(config=config, encode_images=encode_images),
        components=SimpleNamespace(tokenizers=SimpleNamespace(has_image_decoder=has_image_decoder)),
    )


def shape_scenes() -> Iterator[StillLife]:
    """Yield every combination of shape, size, color and background with two different colors."""
    for shape, size, color, background in product(SHAPES, THING_SIZES, COLORS, COLORS):
        if color != background:
            yield StillLife(background, "single", (Thing(shape, color),), size)


def scene_documents() -> list[Document]:
    """Return twelve composed shapes."""
    return [_document(scene) for scene in islice(shape_scenes(), 0, 600, 50)]


def _document(scene: StillLife) -> Document:
    (thing,) = scene.things
    caption = f"a {scene.size} {thing.name} on a {scene.background} ground"
    attributes = {"thing": thing.kind, "size": scene.size, "ground": scene.background, "colour": thing.color}
    content = (Text(caption), Image(data=scene.to_png(16)))
    return Document(id=caption, source="shapes", content=content, attributes=attributes)
