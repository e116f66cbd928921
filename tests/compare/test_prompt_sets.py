"""The released format, plain documents, and their errors."""

import json
from pathlib import Path
from typing import Any

import pytest

from calumma.compare.prompt_sets import CAPTION_REQUEST, prompt_modality, read_prompts, with_caption_request
from calumma.documents.document import Image, Text
from calumma.errors import DocumentError
from tests.images import png


def _write(path: Path, *records: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def released(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a b.png").write_bytes(png(1))
    return _write(
        tmp_path / "prompts.jsonl",
        {
            "id": 7,
            "prompt": "What is <img> here?",
            "task_type": "Identification",
            "image_urls": ["https://example.com/x/a%20b.png"],
        },
        {"id": 8, "prompt": "Why is the sky blue?", "task_type": "Explanation", "image_urls": []},
    )


def test_released_prompts_become_documents_with_images_in_position(released: Path) -> None:
    first, second = read_prompts(released)
    assert [type(part) for part in first.content] == [Text, Image, Text]
    assert (first.id, first.attributes) == ("7", {"category": "Identification"})
    assert first.images[0].path == released.parent.resolve() / "images" / "a b.png"
    assert second.text == "Why is the sky blue?"
    assert [prompt_modality(first), prompt_modality(second)] == ["mixed", "text"]


def test_plain_documents_and_the_users_turn_are_prompts(tmp_path: Path) -> None:
    path = _write(
        tmp_path / "plain.jsonl",
        {"id": "a", "content": [{"type": "text", "text": "one"}], "attributes": {"category": "X"}},
        {"id": "b", "messages": [{"role": "user", "content": "two"}, {"role": "assistant", "content": "never read"}]},
    )
    first, second = read_prompts(path)
    assert (first.text, first.attributes["category"]) == ("one", "X")
    assert (second.text, second.attributes["category"]) == ("two", "")


def test_a_system_without_images_is_asked_for_captions(released: Path) -> None:
    prompts = list(with_caption_request(read_prompts(released)))
    assert all(prompt.content[-1] == Text(f"\n{CAPTION_REQUEST}") for prompt in prompts)
    assert "<caption>" in CAPTION_REQUEST


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            {"id": 1, "prompt": "see <img>", "image_urls": []},
            "line 1: 1 placeholders <img> and 0 image_urls; expected the same number. Fix the line, or leave it out.",
        ),
        (
            {"id": 1, "prompt": "see <img>", "image_urls": ["https://example.com/../../etc/no.png"]},
            "line 1: the image https://example.com/../../etc/no.png is missing; expected it as "
            "images/no.png next to the file, as nothing is downloaded. Copy it there, or leave the "
            "line out.",
        ),
    ],
)
def test_invalid_lines_are_refused(tmp_path: Path, record: dict[str, Any], message: str) -> None:
    path = _write(tmp_path / "p.jsonl", record)
    with pytest.raises(DocumentError) as caught:
        read_prompts(path)
    assert str(caught.value) == f"{path}, {message}"


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    path = _write(tmp_path / "p.jsonl", {"id": 1, "prompt": "good"})
    path.write_text(path.read_text() + "[]\n")
    with pytest.raises(DocumentError) as caught:
        read_prompts(path)
    message = str(caught.value)
    assert message.startswith(f"{path}, line 2: no prompt can be read (TypeError(")
    assert message.endswith(
        '; expected an object with "id", "prompt", "task_type" and "image_urls". Fix the line, or leave it out.'
    )


def test_ids_are_unique(tmp_path: Path) -> None:
    path = _write(tmp_path / "p.jsonl", {"id": 1, "prompt": "a"}, {"id": 1, "prompt": "b"})
    with pytest.raises(DocumentError) as caught:
        read_prompts(path)
    assert str(caught.value) == (
        f"{path}: two prompts have the id '1'; expected unique ids. Give one of them another id."
    )
