"""Conversations with scenes."""

from pathlib import Path

from calumma.corpora.sources.endless_sky import (
    parse_conversations,
    parse_planets,
    read_planets,
    read_story_conversations,
)
from calumma.documents.document import Image, Text
from tests.corpora.packages import text, write_image

STORY = (
    'conversation "intro"\n\tscene "scene/lobby"\n\t`The  bank.`\n\n\t`	You sign.`\n'
    "mission M\n\ton offer\n\t\tconversation\n\t\t\t`Words.`\n\t\t\tscene scene/lobby\n"
    "\t\t\tchoice\n\t\t\t\t`	(Go.)`\n\ton complete\n\t\t`not said`\n"
    "\t\tconversation\n\t\t\t`No scene.`\n"
)

DATA = (
    '# a comment\nplanet "New Rome"\n\tattributes paradise mining\n\tlandscape land/beach2\n'
    "\tdescription `Warm  sand.`\n\tdescription `\tCold water.`\n\tspaceport `A port.`\n"
    "planet Bare\n\tlandscape land/beach2\nsystem Sol\n\tdescription `not of a planet`\n"
)


def test_a_conversation_ends_with_its_indent() -> None:
    assert [len(lines) for lines in parse_conversations(STORY)] == [3, 4, 1]


def test_scenes_are_in_reading_order(tmp_path: Path) -> None:
    root = tmp_path / "usr/share/games/endless-sky"
    text(root / "data/start.txt", STORY)
    write_image(root / "images/scene/lobby.jpg")
    first, second = read_story_conversations({"endless-sky-data": tmp_path})
    assert (first.id, second.id) == ("start-001", "start-002")
    assert isinstance(first.content[0], Image)
    assert first.text == "The bank.\nYou sign."
    assert second.content[0] == Text("Words.") and second.content[2] == Text("(Go.)")
    assert second.attributes == {"title": "start, conversation 2"}


def test_fields_belong_to_the_planet_above_them() -> None:
    (rome, fields), (bare, _) = parse_planets(DATA)
    assert (rome, bare) == ("New Rome", "Bare")
    assert fields["description"] == ["Warm  sand.", "\tCold water."]


def test_a_planet_needs_a_photograph_and_a_description(tmp_path: Path) -> None:
    root = tmp_path / "usr/share/games/endless-sky"
    text(root / "data/map.txt", DATA)
    write_image(root / "images/land/beach2.jpg")
    (document,) = read_planets({"endless-sky-data": tmp_path})
    assert document.text == "landscape of the planet New Rome: beach\nWarm sand.\nCold water."
    assert document.attributes == {
        "caption": "landscape of the planet New Rome: beach",
        "category": "beach",
        "keywords": "paradise, mining",
        "photograph": "beach2.jpg",
    }
