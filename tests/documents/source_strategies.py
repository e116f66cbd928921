"""Strategies for sources: tables, JSON lines, tar files and image folders with planted contents.

Every planted text and image is unique, so that a test can look for each of them in the documents.
"""

import base64
import io
import itertools
import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

TEXT_NAMES = ("text", "caption", "captions", "title", "prompt", "alt", "TEXT", "description", "txt")
IMAGE_NAMES = ("image", "images", "img", "jpg", "png", "image_1", "Image", "photo")
OTHER_NAMES = (
    "notes", "sample", "x", "blip_caption", "question", "answer", "answers", "query", "response", "instruction",
    "output", "label", "content", "messages", "conversations", "texts", "context", "system", "id", "score",
    "file_name", "image_path", "json", "__key__", "input", "history", "choices", "text_list",
)  # fmt: skip
NAMES = (*TEXT_NAMES, *IMAGE_NAMES, *OTHER_NAMES)
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


@dataclass
class Planted:
    """The texts and images that were put into one record, each with its top-level column."""

    texts: dict[str, str] = field(default_factory=dict)
    images: dict[bytes, str] = field(default_factory=dict)


class Planter:
    """Makes unique texts and images, and notes them."""

    def __init__(self, draw: Callable[..., Any]) -> None:
        self.draw = draw
        self.numbers = itertools.count()
        self.planted = Planted()

    def text(self, column: str) -> str:
        number = next(self.numbers)
        mark = "<image>" if self.draw(st.integers(0, 5)) == 0 else ""
        text = f"planted words number{number}x of text"
        self.planted.texts[text] = column
        return mark + text

    def image(self, column: str) -> bytes:
        number = next(self.numbers)
        file = io.BytesIO()
        color = (number * 37 % 256, number // 7 % 256, number % 256)
        # The sides make images of one format distinct.
        image = PIL.Image.new("RGB", (8 + number % 16, 8 + number // 16), color)
        image.save(file, self.draw(st.sampled_from(FORMATS)))
        self.planted.images[file.getvalue()] = column
        return file.getvalue()


IMAGE_STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def arrow_types() -> st.SearchStrategy[pa.DataType]:
    """Types of columns, nested at most three levels."""
    leaves = st.sampled_from(
        [
            pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view(),
            pa.dictionary(pa.int32(), pa.string()), IMAGE_STRUCT, pa.int64(), pa.float32(), pa.bool_(), pa.null(),
            pa.timestamp("ns"), pa.date32(), pa.decimal128(9, 2), pa.duration("s"),
            pa.struct([("bytes", pa.large_binary()), ("path", pa.string()), ("format", pa.string())]),
            pa.struct([("bytes", pa.binary())]),
            pa.struct([("role", pa.string()), ("content", pa.string())]),
            pa.struct([("from", pa.string()), ("value", pa.string())]),
            pa.struct([("type", pa.string()), ("text", pa.string()), ("image", IMAGE_STRUCT)]),
            pa.struct([("user", pa.string()), ("assistant", pa.string()), ("source", pa.string())]),
        ]
    )  # fmt: skip

    def nested(inner: st.SearchStrategy[pa.DataType]) -> st.SearchStrategy[pa.DataType]:
        names = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True)
        return st.one_of(
            inner.map(pa.list_),
            inner.map(pa.large_list),
            inner.map(lambda kind: pa.list_(kind, 2)),
            inner.map(lambda kind: pa.map_(pa.string(), kind)),
            st.tuples(names, st.lists(inner, min_size=3, max_size=3)).map(
                lambda pair: pa.struct(list(zip(pair[0], pair[1], strict=False)))
            ),
        )

    return st.recursive(leaves, nested, max_leaves=3)


def arrow_value(kind: pa.DataType, column: str, planter: Planter) -> Any:
    """Return a value of a type, with planted texts and images."""
    draw = planter.draw
    if draw(st.integers(0, 7)) == 0:
        return None
    if pa.types.is_struct(kind):
        if {"bytes"} <= {inner.name for inner in kind}:
            others = {inner.name: None for inner in kind if inner.name != "bytes"}
            return {"bytes": planter.image(column), **others}
        plain = {"role": ["user", "assistant", "nobody"], "from": ["human", "gpt"], "type": ["text", "image", "other"]}
        return {
            inner.name: draw(st.sampled_from(plain[inner.name]))
            if inner.name in plain
            else arrow_value(inner.type, column, planter)
            for inner in kind
        }
    if pa.types.is_map(kind):
        return [(f"key{n}", arrow_value(kind.item_type, column, planter)) for n in range(draw(st.integers(0, 2)))]
    if hasattr(kind, "value_type") and not pa.types.is_dictionary(kind):
        count = 2 if pa.types.is_fixed_size_list(kind) else draw(st.integers(0, 3))
        return [arrow_value(kind.value_type, column, planter) for _ in range(count)]
    name = str(kind)
    if "string" in name:
        return planter.text(column) if draw(st.integers(0, 3)) else draw(st.sampled_from(["", "word", "1.png"]))
    if "binary" in name:
        return planter.image(column) if draw(st.integers(0, 3)) else draw(st.sampled_from([b"", b"\xff\0", b"ab"]))
    plain = {"int64": 7, "float": 0.5, "bool": True, "date32[day]": 7, "duration[s]": 7, "timestamp[ns]": 1}
    return plain.get(name) if name in plain else None


@st.composite
def tables(draw: Callable[..., Any]) -> tuple[pa.Table, list[Planted]]:
    """Return a table of one or two rows, and what is planted in each."""
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=5, unique=True))
    kinds = [draw(arrow_types()) for _ in names]
    rows, planted = [], []
    planter = Planter(draw)
    for _ in range(draw(st.integers(1, 2))):
        planter.planted = Planted()
        rows.append({n: arrow_value(k, n, planter) for n, k in zip(names, kinds, strict=True)})
        planted.append(planter.planted)
    columns = [
        pa.array([row[n] for row in rows], k.value_type).cast(k)
        if pa.types.is_dictionary(k)
        else pa.array([row[n] for row in rows], k)
        for n, k in zip(names, kinds, strict=True)
    ]
    return pa.table(columns, names=names), planted


def json_value(draw: Callable[..., Any], column: str, planter: Planter, depth: int) -> Any:
    """Return a value of JSON with planted texts and images."""
    kind = draw(st.integers(0, 9 if depth else 5))
    if kind == 0:
        return planter.text(column)
    if kind == 1:
        encoded = base64.b64encode(planter.image(column)).decode()
        return draw(st.sampled_from([encoded, f"data:image/png;base64,{encoded}"]))
    if kind == 2:
        return draw(st.sampled_from([None, 7, 0.5, True, "", "word", "1.png", "https://x/1.png", [], {}]))
    if kind in (3, 4):
        return planter.text(column)
    if kind == 5:
        encoded = base64.b64encode(planter.image(column)).decode()
        return {"type": "image", draw(st.sampled_from(["base64", "url", "image", "data"])): (
            encoded if draw(st.booleans()) else f"data:image/png;base64,{encoded}")}  # fmt: skip
    if kind == 6:
        return [json_value(draw, column, planter, depth - 1) for _ in range(draw(st.integers(0, 3)))]
    if kind == 7:
        roles = st.sampled_from(["user", "assistant", "human", "gpt"])
        keys = draw(st.sampled_from([("role", "content"), ("from", "value")]))
        return [
            {keys[0]: draw(roles), keys[1]: json_value(draw, column, planter, depth - 1)}
            for _ in range(draw(st.integers(1, 2)))
        ]
    if kind == 8:
        return {"type": "text", "text": json_value(draw, column, planter, 0)}
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True))
    return {name: json_value(draw, column, planter, depth - 1) for name in names}


@st.composite
def records(draw: Callable[..., Any]) -> tuple[dict[str, Any], Planted]:
    """Return a record of JSON, and what is planted in it."""
    planter = Planter(draw)
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=5, unique=True))
    return {name: json_value(draw, name, planter, 3) for name in names}, planter.planted


SUFFIXES = ("png", "jpg", "txt", "json", "caption", "0.png", "1.png", "0.txt", "cls", "bin", "webp.txt", "PNG", "md")
STEMS = ("1", "2", "a/1", "b.c/1", "v1.5")


@st.composite
def archives(draw: Callable[..., Any]) -> tuple[list[tuple[str, bytes]], Planted]:
    """Return the members of a tar file in order, and what is planted in them."""
    planter = Planter(draw)
    members: list[tuple[str, bytes]] = []
    for stem in draw(st.lists(st.sampled_from(STEMS), min_size=1, max_size=3, unique=True)):
        for suffix in draw(st.lists(st.sampled_from(SUFFIXES), min_size=1, max_size=4)):
            name = f"{stem}.{suffix}"
            last = suffix.rpartition(".")[2].lower()
            if last in ("png", "jpg"):
                data = planter.image(name)
            elif last == "json":
                names = draw(st.lists(st.sampled_from(NAMES), max_size=3, unique=True))
                made = {each: json_value(draw, name, planter, 2) for each in names}
                data = json.dumps(made).encode()
            elif last == "bin":
                data = planter.image(name) if draw(st.booleans()) else b"\xff\xfe\0"
            else:
                data = planter.text(name).encode()
            members.append((name, data))
    junk = draw(st.lists(st.sampled_from(["._1.png", "__MACOSX/._1.png", ".DS_Store"]), max_size=2))
    members += [(name, b"\0\5\x16\7" + bytes(20)) for name in junk]
    order = draw(st.permutations(range(len(members)))) if draw(st.integers(0, 3)) == 0 else range(len(members))
    return [members[n] for n in order], planter.planted


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    """Write members, which may repeat, in their order."""
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


@st.composite
def image_folders(draw: Callable[..., Any]) -> tuple[dict[str, bytes], Planted]:
    """Return the files of an image folder by name, and what is planted in them."""
    planter = Planter(draw)
    images = draw(st.lists(st.sampled_from(["1.png", "2.jpg", "b/3.png", "4.tiff"]), min_size=1, unique=True))
    files = {name: planter.image(name) for name in images}
    kind = draw(st.sampled_from(["jsonl", "csv", "txt"]))
    if kind == "txt":
        files |= {
            f"{name.rpartition('.')[0]}.txt": planter.text(name).encode() for name in images if draw(st.booleans())
        }
        return files, planter.planted
    listed = [name for name in images if draw(st.integers(0, 4))]
    column = draw(st.sampled_from(["text", "caption", "notes"]))
    rows = [{"file_name": name, column: planter.text(column)} for name in listed]
    if kind == "jsonl":
        files["metadata.jsonl"] = "".join(json.dumps(row) + "\n" for row in rows).encode()
    else:
        lines = [f"file_name,{column}", *(f"{row['file_name']},{row[column]}" for row in rows)]
        files["metadata.csv"] = "\n".join(lines).encode()
    return files, planter.planted


def write_parquet_table(path: Path, table: pa.Table) -> None:
    """Write a table of any types."""
    pq.write_table(table, path)
