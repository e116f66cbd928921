"""Emoji: small images with the names, groups and keywords of Unicode.

The images come from several families; names and groups come from `emoji-test.txt` and keywords from
CLDR, so an emoji has the same caption in every family. A code is the emoji's characters in
lower-case hex, joined by hyphens, without the variation selector U+FE0F.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from calumma.corpora.captions import SKIN_TONES
from calumma.corpora.catalog_entry import CorpusReader, PackageFolders
from calumma.corpora.image_conversion import rasterize_svg
from calumma.documents.document import Document, Image, Text

_TEST_FILE = "usr/share/unicode/emoji/emoji-test.txt"
_KEYWORDS_FILE = "annotations/en/annotations.json"
_TONE_CODES = {f"1f3f{digit}": tone for digit, tone in zip("bcdef", SKIN_TONES, strict=True)}


@dataclass(frozen=True)
class Emoji:
    """Name and groups of an emoji in Unicode."""

    name: str
    category: str
    subgroup: str


def read_emoji_test(path: Path) -> dict[str, Emoji]:
    """Read `emoji-test.txt`: code -> emoji."""
    table: dict[str, Emoji] = {}
    category = subgroup = ""
    for line in path.read_text("utf-8").splitlines():
        if line.startswith("# group:"):
            category = _slug(line.removeprefix("# group:"))
        elif line.startswith("# subgroup:"):
            subgroup = line.removeprefix("# subgroup:").strip()
        elif ";" in line and not line.startswith("#"):
            fields, comment = line.split("#", 1)
            code = _code(fields.split(";")[0].split())
            name = comment.split(maxsplit=2)[2]
            table.setdefault(code, Emoji(_caption(name), category, subgroup))
    return table


def read_keywords(path: Path) -> dict[str, list[str]]:
    """Read CLDR's annotations: code -> keywords."""
    entries = json.loads(path.read_text("utf-8"))["annotations"]["annotations"]
    return {
        _code([f"{ord(character):x}" for character in characters]): entry.get("default", [])
        for characters, entry in entries.items()
    }


def iconify_emoji_reader(package: str) -> CorpusReader:
    """Return a reader of an `@iconify-json` package of emoji in SVG."""

    def read(folders: PackageFolders) -> Iterator[Document]:
        words = _Words(folders)
        folder = folders[package]
        icons = json.loads((folder / "icons.json").read_text("utf-8"))
        codes = _codes_of_icons(folder, words)
        categories = _categories_of_icons(folder)
        for name, icon in icons["icons"].items():
            if icon.get("hidden"):
                continue
            svg = icon_svg(icon, icons)
            unknown = Emoji(_name_of_icon(name), _slug(categories.get(name, "")), "")
            yield words.document(name, codes.get(name, ""), Image(data=rasterize_svg(svg)), unknown)

    return read


def emoji_file_reader(package: str, folder: str) -> CorpusReader:
    """Return a reader of a package with one image file per emoji, named after its code."""

    def read(folders: PackageFolders) -> Iterator[Document]:
        words = _Words(folders)
        for path in sorted((folders[package] / folder).iterdir()):
            code = _code(path.stem.replace("_", "-").split("-"))
            if emoji := words.known.get(code):
                yield words.document(path.stem, code, Image(path=path), emoji)

    return read


def icon_svg(icon: dict[str, object], icons: dict[str, object]) -> str:
    """Build the SVG text of one icon of an iconify file; sizes default to those of the file."""
    width = icon.get("width", icons.get("width", 16))
    height = icon.get("height", icons.get("height", 16))
    body = str(icon["body"]).replace("currentColor", "#000")
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{width}" height="{height}" '
        f'viewBox="{icon.get("left", 0)} {icon.get("top", 0)} {width} {height}">{body}</svg>'
    )


class _Words:
    """Captions and attributes of emoji, from the packages `unicode-data` and CLDR."""

    def __init__(self, folders: PackageFolders) -> None:
        self.known = read_emoji_test(folders["unicode-data"] / _TEST_FILE)
        self.keywords = read_keywords(folders["cldr-annotations-full"] / _KEYWORDS_FILE)

    def document(self, name: str, code: str, image: Image, unknown: Emoji) -> Document:
        """Build the document of an emoji; `unknown` describes it if Unicode does not."""
        emoji = self.known.get(code, unknown)
        tones = [tone for hex_code, tone in _TONE_CODES.items() if hex_code in code.split("-")]
        plain = _code([part for part in code.split("-") if part not in _TONE_CODES])
        attributes = {
            "caption": emoji.name,
            "category": emoji.category,
            "subgroup": emoji.subgroup,
            "keywords": ", ".join(self.keywords.get(plain, [])),
            "skin-tone": " and ".join(tones),
            "code": code,
        }
        return Document(
            id=name,
            content=(image, Text(emoji.name)),
            attributes={key: value for key, value in attributes.items() if value},
        )


def _codes_of_icons(folder: Path, words: _Words) -> dict[str, str]:
    """Return code by icon name; if several codes share an icon, one that Unicode names."""
    codes: dict[str, str] = {}
    for characters, name in json.loads((folder / "chars.json").read_text("utf-8")).items():
        code = _code(characters.split("-"))
        if name not in codes or codes[name] not in words.known:
            codes[name] = code
    return codes


def _categories_of_icons(folder: Path) -> dict[str, str]:
    categories = json.loads((folder / "metadata.json").read_text("utf-8")).get("categories", {})
    return {name: category for category, names in categories.items() for name in names}


def _code(characters: list[str]) -> str:
    return "-".join(character.lower() for character in characters if character.lower() != "fe0f")


def _slug(category: str) -> str:
    """Convert the name of a group to one word: "Animals & Nature" to "animals-nature"."""
    return "-".join(category.lower().replace("&", " ").split())


def _caption(name: str) -> str:
    """Convert a Unicode name to a caption: "flag: France" to "flag of France"."""
    if name.startswith("flag: "):
        return "flag of " + name.removeprefix("flag: ")
    if name.startswith("keycap: "):
        return "key " + name.removeprefix("keycap: ")
    return name.replace(": ", ", ")


def _name_of_icon(name: str) -> str:
    """Return the caption of an icon that is newer than the table of names."""
    words = name.replace("-", " ")
    for tone in sorted(SKIN_TONES, key=len, reverse=True):
        spaced = " " + tone.replace("-", " ")
        for ending in (spaced + " skin tone", spaced):
            if words.endswith(ending):
                return f"{words.removesuffix(ending)}, {tone} skin tone"
    return words
