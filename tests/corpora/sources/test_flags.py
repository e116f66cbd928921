"""Flags are named by the table of territories."""

from __future__ import annotations

from pathlib import Path

from calumma.corpora.sources.flags import read_iso_flags
from tests.corpora.packages import text, write_image


def test_flags_of_known_territories_are_read(tmp_path: Path) -> None:
    text(
        tmp_path / "cldr/usr/share/unicode/cldr/common/main/en.xml",
        '<ldml><territory type="FR">France</territory><territory type="FR" alt="short">F</territory></ldml>',
    )
    for name in ("fr", "xx", "_earth"):
        write_image(tmp_path / f"flags/usr/share/iso-flags-png-320x240/{name}.png")
    folders = {"unicode-cldr-core": tmp_path / "cldr", "iso-flags-png-320x240": tmp_path / "flags"}
    assert [(d.id, d.text) for d in read_iso_flags(folders)] == [("fr", "flag of France")]
