"""LilyPond's manuals: pictures of engraved music, each with the code it was engraved from."""

from __future__ import annotations

import re
from collections.abc import Iterator

from calumma.corpora.captions import collapse_whitespace
from calumma.corpora.catalog_entry import PackageFolders
from calumma.corpora.image_conversion import image_from_file
from calumma.documents.document import Document, Text

_FOLDER = "usr/share/doc/lilypond/html/Documentation"
_SNIPPET = re.compile(r"% ly snippet:\n% \*+\n(.*?)\n%\s*\*{10}", re.DOTALL)
_PLACE = re.compile(r"^\\sourcefile(?:line|name).*\n", re.MULTILINE)
_TRANSLATED = re.compile(
    r'^ *(?:texidoc|doctitle)[a-z]{2} = "(?:[^"\\]|\\.)*"\s*\n', re.MULTILINE | re.DOTALL
)
_TITLE = re.compile(r'\bdoctitle\s*=\s*"([^"]+)"')


def read_lilypond(folders: PackageFolders) -> Iterator[Document]:
    """Read the snippets that make one picture: code is in one package, pictures in the other."""
    code_root, root = folders["lilypond-doc-html"] / _FOLDER, folders["lilypond-doc"] / _FOLDER
    for path in sorted(code_root.rglob("lily-*.ly")):
        place = path.relative_to(code_root)
        picture = (root / place).with_suffix(".png")
        code = extract_snippet(path.read_text("utf-8", errors="replace"))
        if not code or not picture.exists():
            continue
        title = _TITLE.search(code)
        caption = f"music notation: {collapse_whitespace(title[1])}" if title else "music notation"
        yield Document(
            id=str(place.with_suffix("")),
            content=(image_from_file(picture), Text(f"{caption}\n{code}")),
            attributes={"caption": caption, "category": "music notation"},
        )


def extract_snippet(text: str) -> str:
    """The code that a manual shows, without the page set up around it and without the
    translations of its title; empty if the file marks none."""
    found = _SNIPPET.search(text)
    return _TRANSLATED.sub("", _PLACE.sub("", found[1] + "\n")).strip() if found else ""
