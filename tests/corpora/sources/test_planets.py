"""Planets: photographs with what the game says of them."""

from __future__ import annotations

from pathlib import Path

from calumma.corpora.sources.planets import parse_planets, read_planets
from tests.corpora.packages import text, write_image

DATA = (
    '# a comment\nplanet "New Rome"\n\tattributes paradise mining\n\tlandscape land/beach2\n'
    "\tdescription `Warm  sand.`\n\tdescription `\tCold water.`\n\tspaceport `A port.`\n"
    "planet Bare\n\tlandscape land/beach2\nsystem Sol\n\tdescription `not of a planet`\n"
)


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
