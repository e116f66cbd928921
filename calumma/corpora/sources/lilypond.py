"""LilyPond's manuals: images of engraved music, each with its source code."""

from __future__ import annotations

import re
from collections.abc import Iterator

from calumma.corpora.captions import collapse_whitespace
from calumma.corpora.catalog_entry import PackageFolders
from calumma.corpora.image_conversion import image_from_file
from calumma.documents.document import Document, Text

_FOLDER = "usr/share/doc/lilypond/html/Documentation"
_SNIPPET = re.compile(r"% ly snippet:\n% \*+\n(.*?)\n%\s*\*{10}", re.DOTALL)
_SOURCE_FILE = re.compile(r"^\\sourcefile(?:line|name).*\n", re.MULTILINE)
_TRANSLATED = re.compile(
    r'^ *(?:texidoc|doctitle)[a-z]{2} = "(?:[^"\\]|\\.)*"\s*\n', re.MULTILINE | re.DOTALL
)
_TITLE = re.compile(r'\bdoctitle\s*=\s*"([^"]+)"')


def read_lilypond(folders: PackageFolders) -> Iterator[Document]:
    """Read the snippets with one image: code is in one package, images in the other."""
    code_root, root = folders["lilypond-doc-html"] / _FOLDER, folders["lilypond-doc"] / _FOLDER
    for path in sorted(code_root.rglob("lily-*.ly")):
        name = path.relative_to(code_root)
        png = (root / name).with_suffix(".png")
        code = extract_snippet(path.read_text("utf-8", errors="replace"))
        if not code or not png.exists():
            continue
        title = _TITLE.search(code)
        caption = f"music notation: {collapse_whitespace(title[1])}" if title else "music notation"
        yield Document(
            id=str(name.with_suffix("")),
            content=(image_from_file(png), Text(f"{caption}\n{code}")),
            attributes={"caption": caption, "category": "music notation"},
        )


def extract_snippet(text: str) -> str:
    """Extract the code that a manual shows, without page setup and translated titles."""
    found = _SNIPPET.search(text)
    return _TRANSLATED.sub("", _SOURCE_FILE.sub("", found[1] + "\n")).strip() if found else ""
