"""Attribution names sources, packages and licenses, and brings the texts along."""

from __future__ import annotations

from pathlib import Path

import pytest

from calumma.corpora.attribution import package_notice, write_attribution
from calumma.corpora.catalog_entry import Package
from tests.corpora.packages import text
from tests.corpora.small_corpus import SMALL, in_cache


def test_the_file_names_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_cache(tmp_path / "cache", monkeypatch)
    write_attribution(tmp_path, [SMALL])
    assert "\n".join((tmp_path / "ATTRIBUTION.md").read_text().splitlines()[5:]) == (
        "## small\n\n"
        "- License of the data: MIT ([text](licenses/MIT.md))\n"
        "- Packages: small 1.0 (npm)\n"
        "- Copyright (c) A. Painter.\n"
        "- Notices of the packages: [small](licenses/small.md)"
    )
    assert (tmp_path / "licenses/small.md").read_text() == "Do as you like.\n"
    assert "without limitation the rights" in (tmp_path / "licenses/MIT.md").read_text()


def test_debian_packages_say_it_in_their_copyright_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALUMMA_CACHE", str(tmp_path))
    text(tmp_path / "packages/apt/words-1/usr/share/doc/words/copyright", "Public domain.")
    assert package_notice(Package("apt", "words", "1")) == "Public domain.\n"
