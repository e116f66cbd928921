"""Units of a game: portraits and sprites with descriptions."""

from __future__ import annotations

from pathlib import Path

from calumma.corpora.sources.wesnoth import parse_units, read_wesnoth
from tests.corpora.packages import text, write_image

UNIT = """[unit_type]
    id=Archer
    name= _ "female^Elvish Archer"
    race=elf
    image="units/archer.png~RC(a)"
    profile="portraits/archer.png"
    alignment=lawful
    [attack]
        description=_"sword"
        image=other.png
    [/attack]
    description= _ "They say ""archer""
and shoot."
[/unit_type]
"""
DATA = "usr/share/games/wesnoth/1.16/data"


def test_fields_of_attacks_are_not_the_units() -> None:
    (fields,) = parse_units(UNIT)
    assert fields["description"] == 'They say "archer" and shoot.'
    assert fields["image"] == "units/archer.png~RC(a)"


def test_portrait_and_sprite_are_read_once(tmp_path: Path) -> None:
    text(tmp_path / DATA / "core/units/elves/Archer.cfg", UNIT + UNIT)
    text(tmp_path / DATA / "core/units/elves/Nobody.cfg", '[unit_type]\nname=_ "X"\n[/unit_type]')
    write_image(tmp_path / DATA / "core/images/portraits/archer.png")
    write_image(tmp_path / DATA / "core/images/units/archer.png")
    portrait, sprite = read_wesnoth({"wesnoth-1.16-data": tmp_path})
    assert portrait.id == "portrait-0001-elvish-archer"
    assert sprite.id == "sprite-0002-elvish-archer"
    assert portrait.text == ('Elvish Archer, a lawful elf unit\nThey say "archer" and shoot.')
    assert sprite.attributes == {
        "caption": "Elvish Archer, a lawful elf unit",
        "category": "sprite",
        "keywords": "lawful, elf",
    }
