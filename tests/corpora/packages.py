"""Small packages built for the tests of the readers."""

import json
from pathlib import Path
from typing import Any

import PIL.Image


def text(path: Path, content: str, encoding: str = "utf-8") -> Path:
    """Write a text file, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding)
    return path


def json_file(path: Path, content: Any) -> Path:
    """Write a JSON file."""
    return text(path, json.dumps(content))


def write_image(path: Path, size: tuple[int, int] = (64, 64), color: str = "red") -> Path:
    """Write an image of one color."""
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", size, color).save(path)
    return path


SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="10pt" height="10pt">'
    '<rect width="5" height="5" fill="currentColor"/></svg>'
)
"""A vector whose size is in points."""


def unicode_packages(root: Path) -> dict[str, Path]:
    """`unicode-data` and CLDR with three emoji."""
    text(
        root / "unicode-data/usr/share/unicode/emoji/emoji-test.txt",
        "# group: Animals & Nature\n# subgroup: animal-mammal\n"
        "1F436 ; fully-qualified # 🐶 E0.6 dog face\n"
        "# group: People & Body\n# subgroup: hand-fingers-open\n"
        "1F44B ; fully-qualified # 👋 E0.6 waving hand\n"
        "1F44B 1F3FF ; fully-qualified # 👋🏿 E1.0 waving hand: dark skin tone\n"
        "# group: Symbols\n# subgroup: keycap\n"
        "0031 FE0F 20E3 ; fully-qualified # 1️⃣ E0.6 keycap: 1\n"
        "# group: Flags\n# subgroup: country-flag\n"
        "1F1EB 1F1F7 ; fully-qualified # 🇫🇷 E0.6 flag: France\n",
    )
    annotations = {"🐶": {"default": ["dog", "pet"]}, "👋": {"default": ["hand", "hello"]}}
    json_file(root / "cldr/annotations/en/annotations.json", {"annotations": {"annotations": annotations}})
    return {"unicode-data": root / "unicode-data", "cldr-annotations-full": root / "cldr"}
