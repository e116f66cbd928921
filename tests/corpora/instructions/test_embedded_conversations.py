"""All six categories come out of the corpus inside the package."""

import itertools

import pytest

from calumma.corpora.instructions.embedded_conversations import embedded_conversations
from calumma.documents.document import Image, Turn

IMAGES = {
    "text": (False, False),
    "code": (False, False),
    "visual_chat": (True, False),
    "image_generation": (False, True),
    "interleaved_generation": (False, True),
    "safety": (False, False),
}
"""Whether prompts and answers of a category have images."""


def has_image(turn: Turn) -> bool:
    return any(isinstance(part, Image) for part in turn.parts)


@pytest.mark.parametrize("category", IMAGES)
def test_every_conversation_has_the_modalities_of_its_category(category: str) -> None:
    for made in itertools.islice(embedded_conversations(category), 40):
        prompt, answer = made.messages
        assert (has_image(prompt), has_image(answer)) == IMAGES[category]
        assert made.source == category and made.license
        assert made.attributes["written-by"] == "template"
        assert made.attributes["split"] in ("train", "held-out")
