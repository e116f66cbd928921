"""Emoji: every family gets Unicode's names, groups and keywords."""

from pathlib import Path

from calumma.corpora.sources.emoji import emoji_file_reader, icon_svg, iconify_emoji_reader, read_emoji_test
from calumma.documents.document import Image, Text
from tests.corpora.packages import json_file, unicode_packages, write_image

BODY = '<rect width="5" height="5" fill="red"/>'


def icons(root: Path) -> Path:
    names = ["dog-face", "waving-hand-dark", "new-hand-medium-dark-skin-tone", "hidden"]
    json_file(
        root / "icons.json",
        {
            "icons": {name: {"body": BODY} | ({"hidden": True} if name == "hidden" else {})
                      for name in names},
            "width": 10,
            "height": 10,
        },
    )  # fmt: skip
    json_file(
        root / "chars.json",
        {"1f436": "dog-face", "1f44b-1f3ff": "waving-hand-dark", "1fffe-1f3fe": "new-hand-medium-dark-skin-tone"},
    )
    json_file(root / "metadata.json", {"categories": {"People & Body": [names[2]]}})
    return root


def test_icons_are_drawn_and_named_by_unicode(tmp_path: Path) -> None:
    folders = {**unicode_packages(tmp_path), "set": icons(tmp_path / "set")}
    dog, hand, new = iconify_emoji_reader("set")(folders)
    assert dog.attributes == {
        "caption": "dog face",
        "category": "animals-nature",
        "subgroup": "animal-mammal",
        "keywords": "dog, pet",
        "code": "1f436",
    }
    assert isinstance(dog.content[0], Image)
    assert dog.content[0].open().size == (256, 256)
    assert dog.content[1] == Text("dog face")
    assert hand.attributes["caption"] == "waving hand, dark skin tone"
    assert hand.attributes["skin-tone"] == "dark"
    assert hand.attributes["keywords"] == "hand, hello"
    assert new.attributes == {
        "caption": "new hand, medium-dark skin tone",
        "category": "people-body",
        "skin-tone": "medium-dark",
        "code": "1fffe-1f3fe",
    }


def test_files_named_by_code_are_read_and_others_left_out(tmp_path: Path) -> None:
    write_image(tmp_path / "set/assets/1f1eb-1f1f7.png")
    write_image(tmp_path / "set/assets/0031-fe0f-20e3.png")
    write_image(tmp_path / "set/assets/readme.png")
    folders = {**unicode_packages(tmp_path), "set": tmp_path / "set"}
    found = list(emoji_file_reader("set", "assets")(folders))
    assert [document.text for document in found] == ["key 1", "flag of France"]


def test_the_variation_selector_is_no_part_of_a_code(tmp_path: Path) -> None:
    folder = unicode_packages(tmp_path)["unicode-data"]
    table = read_emoji_test(folder / "usr/share/unicode/emoji/emoji-test.txt")
    assert table["0031-20e3"].subgroup == "keycap"


def test_an_icon_may_have_a_size_of_its_own() -> None:
    svg = icon_svg({"body": "x", "width": 3, "left": 1}, {"width": 16, "height": 16})
    assert 'viewBox="1 0 3 16"' in svg
