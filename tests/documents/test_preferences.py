"""Pairs of answers: read as they were written, and refused by line."""

import json
from pathlib import Path

import pytest

from calumma.documents.document import Image, Text
from calumma.documents.preferences import Preference, read_preferences, write_preferences
from calumma.errors import DocumentError
from tests.images import png

PAIR = Preference(
    id="a",
    prompt=(Text("draw a circle"),),
    chosen=(Text("here:"), Image(data=png(0))),
    rejected=(Text("no"),),
    source="rule",
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    assert write_preferences(path, [PAIR, PAIR]) == 2
    first, _ = read_preferences(path)
    assert (first.id, first.source, first.prompt, first.rejected) == (
        "a", "rule", PAIR.prompt, PAIR.rejected
    )  # fmt: skip
    assert first.chosen[1].read_bytes() == png(0)


def test_both_answers_follow_the_same_prompt() -> None:
    chosen, rejected = PAIR.conversations
    assert [turn.role for turn in chosen.messages] == ["user", "assistant"]
    assert chosen.messages[0] == rejected.messages[0]
    assert (chosen.messages[1].parts, rejected.messages[1].parts) == (PAIR.chosen, PAIR.rejected)


def test_image_files_are_relative_and_ids_are_optional(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(png(1))
    record = {"prompt": "hm", "chosen": [{"type": "image", "path": "1.png"}], "rejected": ["no"]}
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n" + json.dumps(record) + "\n")
    (pair,) = read_preferences(path)
    assert pair.id == "2"
    assert pair.chosen[0].read_bytes() == png(1)


@pytest.mark.parametrize("field", ["prompt", "chosen", "rejected"])
def test_a_line_that_lacks_a_side_is_refused(field: str, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    record = {"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]} | {field: []}
    path.write_text(json.dumps(record))
    with pytest.raises(DocumentError) as caught:
        list(read_preferences(path))
    assert str(caught.value) == (
        f'{path}:1: there is no "{field}"; expected a prompt, a chosen and a rejected answer, each '
        "a list of parts. Add it, or remove the line."
    )


def test_a_line_that_is_no_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("{")
    with pytest.raises(DocumentError) as caught:
        list(read_preferences(path))
    message = str(caught.value)
    assert message.startswith(f"{path}:1: not JSON (")
    assert message.endswith("); expected one pair per line. Export the pairs again.")


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DocumentError) as caught:
        list(read_preferences(tmp_path / "none.jsonl"))
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'none.jsonl'}: cannot be read (")
    assert message.endswith("Fix the path, or export the pairs again.")
