"""Round trips, deterministic bytes, and atomic files."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calumma.documents.document import ROLES, Document, Image, Part, SpecialToken, Text, Turn
from calumma.documents.readers import read_documents
from calumma.documents.writers import ROWS_PER_GROUP, SCHEMA, write_jsonl, write_parquet
from calumma.errors import ImageError
from tests.documents.image_files import BLUE, RED

DOCUMENTS = [
    Document(
        id="pair",
        source="squares",
        license="MIT",
        content=(Text("red"), Image(data=RED)),
        attributes={"split": "train", "group": "red"},
    ),
    Document(
        id="talk", messages=(Turn("user", (Text("Draw blue."),)), Turn("assistant", (Image(data=BLUE), Text("Here."))))
    ),
    Document(id="empty"),
]

texts = st.text(st.characters(codec="utf-8"), max_size=8)
parts: st.SearchStrategy[Part] = st.one_of(
    texts.map(Text), texts.map(SpecialToken), st.binary(max_size=8).map(lambda data: Image(data=data))
)
part_tuples = st.lists(parts, max_size=3).map(tuple)
turns = st.builds(Turn, st.sampled_from(ROLES), part_tuples)
fields = {"id": texts.filter(bool), "source": texts, "license": texts}
documents = st.one_of(
    st.builds(Document, **fields, content=part_tuples, attributes=st.dictionaries(texts, texts, max_size=2)),
    st.builds(Document, **fields, messages=st.lists(turns, min_size=1, max_size=3).map(tuple)),
)


@pytest.mark.parametrize("name", ["d.jsonl", "d.jsonl.gz", "d.jsonl.zst", "d.parquet"])
@pytest.mark.parametrize("images", ["base64", "files"])
def test_what_is_written_is_read_again(tmp_path: Path, name: str, images: str) -> None:
    path = tmp_path / name
    if name == "d.parquet":
        assert write_parquet(path, DOCUMENTS) == 3
    else:
        assert write_jsonl(path, DOCUMENTS, images=images) == 3  # type: ignore[arg-type]
    again = list(read_documents([path]))
    assert [
        [part if isinstance(part, Text) else Image(data=part.read_bytes()) for part in d.parts()] for d in again
    ] == [list(d.parts()) for d in DOCUMENTS]
    assert [(d.id, d.source, d.license, d.attributes) for d in again] == [
        (d.id, d.source or "d", d.license, d.attributes) for d in DOCUMENTS
    ]


@settings(max_examples=30, deadline=None)
@given(st.lists(documents, min_size=1, max_size=3))
def test_any_documents_survive_both_formats(tmp_path_factory: pytest.TempPathFactory, made: list[Document]) -> None:
    folder = tmp_path_factory.mktemp("any")
    write_parquet(folder / "d.parquet", made)
    write_jsonl(folder / "d.jsonl", made)
    named = [dataclasses.replace(each, source=each.source or "d") for each in made]
    assert list(read_documents([folder / "d.parquet"])) == named
    assert list(read_documents([folder / "d.jsonl"])) == named


@pytest.mark.parametrize("name", ["d.jsonl", "d.jsonl.gz", "d.jsonl.zst", "d.parquet"])
def test_the_same_documents_give_the_same_bytes(tmp_path: Path, name: str) -> None:
    write = write_parquet if name == "d.parquet" else write_jsonl
    for folder in ("one", "two"):
        write(tmp_path / folder / name, iter(DOCUMENTS))
    assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_image_files_have_running_numbers(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "d.jsonl", DOCUMENTS, images="files")
    names = sorted(path.name for path in (tmp_path / "d-images").iterdir())
    assert names == ["000000.png", "000001.png"]


def test_row_groups_hold_256_documents_and_the_schema_is_the_written_one(tmp_path: Path) -> None:
    path = tmp_path / "d.parquet"
    count = write_parquet(path, (Document(id=str(n), content=()) for n in range(300)))
    file = pq.ParquetFile(path)
    rows = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
    assert (count, rows) == (300, [ROWS_PER_GROUP, 44])
    assert file.schema_arrow.names == SCHEMA.names


def test_a_file_that_cannot_be_finished_leaves_the_old_one(tmp_path: Path) -> None:
    def broken() -> Iterator[Document]:
        yield DOCUMENTS[0]
        yield Document(id="x", content=(Image(path=tmp_path / "no.png"),))

    for name, write in (("d.parquet", write_parquet), ("d.jsonl", write_jsonl)):
        path = tmp_path / name
        write(path, DOCUMENTS)
        before = path.read_bytes()
        with pytest.raises(ImageError):
            write(path, broken())
        assert path.read_bytes() == before
