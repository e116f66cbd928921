"""Icon sets: each has its own way to say its tags."""

from pathlib import Path

from calumma.corpora.sources.icons import (
    iconify_reader,
    phosphor_tags,
    read_iso_flags,
    read_lucide,
    read_openmoji,
    read_phosphor,
    read_tabler,
    read_tuxpaint,
)
from tests.corpora.packages import SVG, json_file, text, write_image

STAMPS = "usr/share/tuxpaint/stamps"


def test_iconify_icons_have_categories(tmp_path: Path) -> None:
    body = {"body": '<rect width="9" height="9" fill="currentColor"/>'}
    json_file(tmp_path / "icons.json", {"icons": {"big-sword": body, "old": {**body, "hidden": True}}})
    json_file(tmp_path / "metadata.json", {"categories": {"Weapons": ["big-sword"]}})
    (document,) = iconify_reader("p", "icon")({"p": tmp_path})
    assert document.attributes == {"caption": "big sword icon", "category": "Weapons"}
    assert document.images[0].open().getpixel((5, 5))[3] == 255


def test_tabler_icons_have_tags(tmp_path: Path) -> None:
    json_file(tmp_path / "icons.json", {"a-b": {"category": "Text", "tags": ["x", 3]}, "gone": {}})
    text(tmp_path / "icons/outline/a-b.svg", SVG)
    (document,) = read_tabler({"@tabler/icons": tmp_path})
    assert document.text == "a b line icon"
    assert document.attributes["keywords"] == "x, 3"


def test_lucide_icons_have_tags(tmp_path: Path) -> None:
    json_file(tmp_path / "tags.json", {"cat": ["pet"], "gone": []})
    text(tmp_path / "icons/cat.svg", SVG)
    (document,) = read_lucide({"lucide-static": tmp_path})
    assert document.attributes == {"caption": "cat line icon", "keywords": "pet"}


def test_phosphor_tags_are_found_in_the_script(tmp_path: Path) -> None:
    script = 'x=[{name: "acorn", codepoint: 1, tags: ["*new*", "nut"]},{name:"bee",tags:["fly"]}]'
    assert phosphor_tags(script) == {"acorn": ["*new*", "nut"], "bee": ["fly"]}
    text(tmp_path / "dist/index.umd.js", script)
    text(tmp_path / "assets/duotone/acorn-duotone.svg", SVG)
    (document,) = read_phosphor({"@phosphor-icons/core": tmp_path})
    assert document.attributes == {"caption": "acorn duotone icon", "keywords": "nut"}


def test_openmoji_has_its_own_words(tmp_path: Path) -> None:
    emoji = {
        "hexcode": "1F436", "annotation": "dog face", "group": "animals-nature",
        "subgroups": "animal-mammal", "tags": "pet", "openmoji_tags": "wuff",
    }  # fmt: skip
    json_file(tmp_path / "data/openmoji.json", [emoji, {**emoji, "hexcode": "0"}])
    text(tmp_path / "color/svg/1F436.svg", SVG)
    (document,) = read_openmoji({"openmoji": tmp_path})
    assert document.text == "dog face"
    assert document.attributes["keywords"] == "pet, wuff"


def test_flags_of_known_territories_are_read(tmp_path: Path) -> None:
    text(
        tmp_path / "cldr/usr/share/unicode/cldr/common/main/en.xml",
        '<ldml><territory type="FR">France</territory><territory type="FR" alt="short">F</territory></ldml>',
    )
    for name in ("fr", "xx", "_earth"):
        write_image(tmp_path / f"flags/usr/share/iso-flags-png-320x240/{name}.png")
    folders = {"unicode-cldr-core": tmp_path / "cldr", "iso-flags-png-320x240": tmp_path / "flags"}
    assert [(d.id, d.text) for d in read_iso_flags(folders)] == [("fr", "flag of France")]


def test_the_first_line_is_the_caption(tmp_path: Path) -> None:
    write_image(tmp_path / STAMPS / "animals/birds/owl.png")
    text(tmp_path / STAMPS / "animals/birds/owl.txt", "An owl.\nde.utf8=Eine Eule.\n")
    text(tmp_path / STAMPS / "food/pear.svg", SVG)
    text(tmp_path / STAMPS / "food/pear.txt", "A pear.")
    found = list(read_tuxpaint({"tuxpaint-stamps-default": tmp_path}))
    assert [(d.id, d.text) for d in found] == [("animals/birds/owl", "An owl."), ("food/pear", "A pear.")]
    assert found[0].attributes == {"caption": "An owl.", "category": "animals", "subgroup": "birds"}


def test_words_without_an_image_and_images_without_words_are_left_out(tmp_path: Path) -> None:
    text(tmp_path / STAMPS / "a/alone.txt", "Nothing.")
    write_image(tmp_path / STAMPS / "a/silent.png")
    text(tmp_path / STAMPS / "a/silent.txt", "")
    text(tmp_path / STAMPS / "a/broken.png", "no image")
    text(tmp_path / STAMPS / "a/broken.txt", "Broken.")
    assert list(read_tuxpaint({"tuxpaint-stamps-default": tmp_path})) == []
