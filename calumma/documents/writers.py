"""Writers of documents: one Parquet file or one file of JSON lines, written atomically.

The Parquet schema has one column per field of `Document`:

    id, source, license    string
    content                list<struct<type, text, bytes, path>>
    messages               list<struct<role, content: the same list>>
    attributes             map<string, string>

A document has `content` or `messages`; the other column is null. The same documents and the same
pyarrow give the same bytes.
"""

import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from calumma.documents.document import Document, Image, Part, Text, document_to_json, text_to_json
from calumma.documents.image_formats import image_suffix
from calumma.documents.jsonl import CODECS
from calumma.files import atomic_write

ROWS_PER_GROUP = 256
"""Documents in one row group: a reader holds this many in memory, with their images."""

_PART = pa.struct([("type", pa.string()), ("text", pa.string()), ("bytes", pa.binary()), ("path", pa.string())])
_PARTS = pa.list_(_PART)
SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("license", pa.string(), nullable=False),
        pa.field("content", _PARTS),
        pa.field("messages", pa.list_(pa.struct([("role", pa.string()), ("content", _PARTS)]))),
        pa.field("attributes", pa.map_(pa.string(), pa.string()), nullable=False),
    ]
)
"""The columns of a Parquet file of documents."""

_STORAGE: dict[str, Any] = {
    "compression": "zstd",
    "compression_level": 9,
    # A dictionary of images would be as large as the images; these columns do repeat.
    "use_dictionary": ["source", "license", "content.list.element.type", "attributes.key_value.key"],
    # Statistics of the image column would put whole images into the footer.
    "write_statistics": ["id", "source"],
}


def write_parquet(path: Path, documents: Iterable[Document]) -> int:
    """Write documents to one Parquet file, with the bytes of their image files.

    Returns:
        The number of documents written.

    Raises:
        OutputError: the file cannot be written.
        ImageError: an image file cannot be read.
    """
    count = 0
    with atomic_write(path) as temporary, pq.ParquetWriter(temporary, SCHEMA, **_STORAGE) as writer:
        rows = map(_row, documents)
        while group := list(itertools.islice(rows, ROWS_PER_GROUP)):
            writer.write_table(pa.Table.from_pylist(group, schema=SCHEMA))
            count += len(group)
    return count


def _row(document: Document) -> dict[str, Any]:
    turns = [{"role": turn.role, "content": [_part(part) for part in turn.parts]} for turn in document.messages]
    return {
        "id": document.id,
        "source": document.source,
        "license": document.license,
        "content": None if turns else [_part(part) for part in document.content],
        "messages": turns or None,
        "attributes": sorted(document.attributes.items()),
    }


def _part(part: Part) -> dict[str, Any]:
    if isinstance(part, Text):
        return {**text_to_json(part), "bytes": None, "path": None}
    return {"type": "image", "text": None, "bytes": part.read_bytes(), "path": None}


def write_jsonl(path: Path, documents: Iterable[Document], *, images: Literal["base64", "files"] = "base64") -> int:
    """Write documents as JSON lines, compressed if the name ends in .gz or .zst.

    Args:
        path: the file to write.
        documents: the documents, one per line.
        images: "base64" in the line, or "files" in a folder next to the file, named like the file
            with `-images` in place of `.jsonl`.

    Returns:
        The number of documents written.

    Raises:
        OutputError: the file or the folder cannot be written.
        ImageError: an image file cannot be read.
    """
    folder = path.with_name(path.name.split(".")[0] + "-images")
    image_folder = _ImageFolder(folder) if images == "files" else None
    count = 0
    with atomic_write(path) as temporary, pa.output_stream(str(temporary), compression=CODECS.get(path.suffix)) as out:
        for document in documents:
            record = document_to_json(document, image_folder.add if image_folder else None)
            out.write((json.dumps(record, ensure_ascii=False) + "\n").encode())
            count += 1
    return count


class _ImageFolder:
    """Writes images to a folder under running numbers, and returns their JSON parts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.count = 0

    def add(self, image: Image) -> dict[str, str]:
        """Write an image file, and return the JSON part that refers to it."""
        data = image.read_bytes()
        name = f"{self.count:06d}{image_suffix(data)}"
        with atomic_write(self.folder / name) as temporary:
            temporary.write_bytes(data)
        self.count += 1
        return {"type": "image", "path": f"{self.folder.name}/{name}"}
