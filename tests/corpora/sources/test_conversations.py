"""Conversations with scenes."""

from __future__ import annotations

from pathlib import Path

from calumma.corpora.sources.conversations import parse_conversations, read_story_conversations
from calumma.documents.document import Image, Text
from tests.corpora.packages import text, write_image

DATA = (
    'conversation "intro"\n\tscene "scene/lobby"\n\t`The  bank.`\n\n\t`	You sign.`\n'
    "mission M\n\ton offer\n\t\tconversation\n\t\t\t`Words.`\n\t\t\tscene scene/lobby\n"
    "\t\t\tchoice\n\t\t\t\t`	(Go.)`\n\ton complete\n\t\t`not said`\n"
    "\t\tconversation\n\t\t\t`No scene.`\n"
)


def test_a_conversation_ends_with_its_indent() -> None:
    assert [len(lines) for lines in parse_conversations(DATA)] == [3, 4, 1]


def test_scenes_are_in_reading_order(tmp_path: Path) -> None:
    root = tmp_path / "usr/share/games/endless-sky"
    text(root / "data/start.txt", DATA)
    write_image(root / "images/scene/lobby.jpg")
    first, second = read_story_conversations({"endless-sky-data": tmp_path})
    assert (first.id, second.id) == ("start-001", "start-002")
    assert isinstance(first.content[0], Image)
    assert first.text == "The bank.\nYou sign."
    assert second.content[0] == Text("Words.") and second.content[2] == Text("(Go.)")
    assert second.attributes == {"title": "start, conversation 2"}
