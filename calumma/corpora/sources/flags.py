"""Flags of countries, named by CLDR's English names of territories."""

import xml.etree.ElementTree as ET
from collections.abc import Iterator

from calumma.corpora.catalog_entry import PackageFolders
from calumma.corpora.image_conversion import image_from_file
from calumma.documents.document import Document, Text

_FLAGS = "usr/share/iso-flags-png-320x240"
_NAMES = "usr/share/unicode/cldr/common/main/en.xml"


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
