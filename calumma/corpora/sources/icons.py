"""Icon sets, flags of countries, and the stamps of Tux Paint."""

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

from calumma.corpora.captions import collapse_whitespace
from calumma.corpora.catalog_entry import CorpusReader, PackageFolders
from calumma.corpora.image_conversion import image_from_file, rasterize_svg
from calumma.corpora.sources.emoji import icon_svg
from calumma.documents.document import Document, Image, Text
from calumma.errors import ImageError

_FLAGS = "usr/share/iso-flags-png-320x240"
_NAMES = "usr/share/unicode/cldr/common/main/en.xml"

_STAMPS = "usr/share/tuxpaint/stamps"


def iconify_reader(package: str, style: str) -> CorpusReader:
    """Return a reader of an `@iconify-json` package; captions end in `style`: "apple icon"."""

    def read(folders: PackageFolders) -> Iterator[Document]:
        folder = folders[package]
        icons = json.loads((folder / "icons.json").read_text("utf-8"))
        metadata = json.loads((folder / "metadata.json").read_text("utf-8"))
        categories = {name: category for category, names in metadata.get("categories", {}).items() for name in names}
        for name, icon in icons["icons"].items():
            if not icon.get("hidden"):
                image = Image(data=rasterize_svg(icon_svg(icon, icons)))
                yield _document(name, image, style, [categories.get(name, "")])

    return read


def read_tabler(folders: PackageFolders) -> Iterator[Document]:
    """Read Tabler's outline icons."""
    folder = folders["@tabler/icons"]
    for name, icon in json.loads((folder / "icons.json").read_text("utf-8")).items():
        path = folder / "icons" / "outline" / f"{name}.svg"
        if path.exists():
            words = [icon.get("category", ""), *map(str, icon.get("tags", []))]
            yield _document(name, _rasterize(path), "line icon", words)


def read_lucide(folders: PackageFolders) -> Iterator[Document]:
    """Read Lucide's icons."""
    folder = folders["lucide-static"]
    for name, tags in json.loads((folder / "tags.json").read_text("utf-8")).items():
        path = folder / "icons" / f"{name}.svg"
        if path.exists():
            yield _document(name, _rasterize(path), "line icon", ["", *tags])


def read_phosphor(folders: PackageFolders) -> Iterator[Document]:
    """Read Phosphor's icons in two tones, with the tags that its JavaScript lists."""
    folder = folders["@phosphor-icons/core"]
    tags = phosphor_tags((folder / "dist" / "index.umd.js").read_text("utf-8"))
    for path in sorted((folder / "assets" / "duotone").glob("*.svg")):
        name = path.stem.removesuffix("-duotone")
        words = [tag for tag in tags.get(name, []) if not tag.startswith("*")]
        yield _document(name, _rasterize(path), "duotone icon", ["", *words])


def phosphor_tags(script: str) -> dict[str, list[str]]:
    """Parse the tags of each icon from the text of the package's script, which is not run."""
    found = re.findall(r'name:\s*"([^"]+)".{0,600}?tags:\s*\[([^\]]*)\]', script, re.DOTALL)
    return {name: re.findall(r'"([^"]+)"', tags) for name, tags in found}


def read_openmoji(folders: PackageFolders) -> Iterator[Document]:
    """Read OpenMoji with its own names, tags and groups."""
    folder = folders["openmoji"]
    for emoji in json.loads((folder / "data" / "openmoji.json").read_text("utf-8")):
        path = folder / "color" / "svg" / f"{emoji['hexcode']}.svg"
        if not path.exists():
            continue
        tags = ", ".join(filter(None, (emoji["tags"], emoji["openmoji_tags"])))
        yield Document(
            id=emoji["hexcode"],
            content=(image_from_file(path), Text(emoji["annotation"])),
            attributes={
                "caption": emoji["annotation"],
                "category": emoji["group"],
                "subgroup": emoji["subgroups"],
                "keywords": tags,
            },
        )


def _rasterize(path: Path) -> Image:
    svg = path.read_text("utf-8").replace("currentColor", "#000")
    return Image(data=rasterize_svg(svg))


def _document(name: str, image: Image, style: str, words: list[str]) -> Document:
    """Build the document of an icon; `words` are the category, which may be empty, and the tags."""
    caption = f"{name.replace('-', ' ')} {style}"
    attributes = {"caption": caption, "category": words[0], "keywords": ", ".join(words[1:])}
    return Document(
        id=name, content=(image, Text(caption)), attributes={key: value for key, value in attributes.items() if value}
    )


def read_iso_flags(folders: PackageFolders) -> Iterator[Document]:
    """Read the flags whose file is named after the two letters of a CLDR territory."""
    tree = ET.parse(folders["unicode-cldr-core"] / _NAMES)
    names = {
        element.attrib["type"].lower(): element.text or ""
        for element in tree.iter("territory")
        if "alt" not in element.attrib
    }
    for path in sorted((folders["iso-flags-png-320x240"] / _FLAGS).glob("??.png")):
        if name := names.get(path.stem):
            caption = f"flag of {name}"
            yield Document(
                id=path.stem,
                content=(image_from_file(path), Text(caption)),
                attributes={"caption": caption, "category": "flags", "subgroup": "country-flag"},
            )


def read_tuxpaint(folders: PackageFolders) -> Iterator[Document]:
    """Read the stamps; the first line of the text file next to an image is the English caption."""
    root = folders["tuxpaint-stamps-default"] / _STAMPS
    for words in sorted(root.rglob("*.txt")):
        lines = words.read_text("utf-8", errors="replace").splitlines()
        caption = collapse_whitespace(lines[0]) if lines else ""
        images = [p for p in (words.with_suffix(".png"), words.with_suffix(".svg")) if p.exists()]
        name = words.relative_to(root)
        if not caption or not images:
            continue
        try:
            image = image_from_file(images[0])
        except ImageError:
            continue
        yield Document(
            id=str(name.with_suffix("")),
            content=(image, Text(caption)),
            attributes={"caption": caption, "category": name.parts[0], "subgroup": "/".join(name.parts[1:-1])},
        )
