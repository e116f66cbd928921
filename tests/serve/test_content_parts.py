"""Content of requests: a text, parts, or token ids."""

import pytest
from pydantic import ValidationError

from calumma.serve.content_parts import ImagePart
from calumma.serve.protocol import CompletionRequest


def test_prompts_are_one_text_several_texts_or_parts() -> None:
    for prompt in ("a", ["a", "b"], [{"type": "text", "text": "a"}], [], [7, 8], [[7], [8, 9]]):
        CompletionRequest.model_validate({"prompt": prompt})
    for prompt in (7, [7, "a"], [[7], "a"], [-1], {"type": "text"}, ["a", {"type": "text"}]):
        with pytest.raises(ValidationError):
            CompletionRequest.model_validate({"prompt": prompt})


def test_the_url_of_an_image_may_be_a_plain_string() -> None:
    for url in ("data:,", {"url": "data:,"}):
        part = ImagePart.model_validate({"type": "image_url", "image_url": url})
        assert part.image_url.url == "data:,"
        assert part.model_dump()["image_url"] == {"url": "data:,"}


def test_a_part_is_text_or_an_image() -> None:
    both = {"text": "a", "image_url": {"url": "data:,"}}
    for type_, message in (
        ("text", "a text part has an image_url; expected a part of its own for each of them"),
        ("image_url", "an image_url part has a text; expected a part of its own for each of them"),
    ):
        with pytest.raises(ValidationError, match=message):
            CompletionRequest.model_validate({"prompt": [{"type": type_, **both}]})
