"""Files cut into splits: together they are the file, whatever the size."""

import io
import json
import tarfile
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import calumma.documents.writers
from calumma.documents.document import Document, Text
from calumma.documents.file_splits import FileSplit, read_split, require_documents, split_files
from calumma.documents.readers import read_documents
from calumma.documents.writers import write_jsonl, write_parquet
from calumma.errors import DocumentError
from tests.documents.dropped import separate
from tests.documents.test_webdataset import tar

DOCUMENTS = [Document(id=str(n), source="s", content=(Text(f"text {n}"),)) for n in range(23)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the same documents to a file of each kind, in row groups and record batches of five."""
    folder = tmp_path_factory.mktemp("documents")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calumma.documents.writers, "ROWS_PER_GROUP", 5)
        write_parquet(folder / "a.parquet", DOCUMENTS)
    write_jsonl(folder / "b.jsonl", DOCUMENTS)
    write_jsonl(folder / "c.jsonl.gz", DOCUMENTS)
    lines = [json.dumps({"content": f"line {n}"}) + "\n" * (n % 3 + 1) for n in range(9)]
    (folder / "d.jsonl").write_text("".join(lines).rstrip("\n"), encoding="utf-8")
    tar(folder / "e.tar", {f"{n}.{k}": b"x" * 700 for n in range(23) for k in ("txt", "cls")})
    data = datasets.Dataset.from_dict({"text": [document.text for document in DOCUMENTS]})
    splits = {"train": data, "test": data.select(range(7))}
    datasets.DatasetDict(splits).save_to_disk(str(folder / "f"), num_shards={"train": 2, "test": 1})
    return folder


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30))
def test_all_spans_in_order_are_the_files(folder: Path, size: int) -> None:
    splits = list(split_files([folder], size))
    assert [d for split in splits for d in read_split(split)] == list(read_documents([folder]))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30))
def test_a_split_is_read_independently(folder: Path, size: int) -> None:
    expected = list(read_documents([folder / "a.parquet"]))
    for split in split_files([folder / "a.parquet"], size):
        assert split.count is not None
        assert list(read_split(split)) == expected[split.first : split.first + split.count]


def test_splits_by_hand(folder: Path) -> None:
    rows = list(split_files([folder / "a.parquet"], 10))
    assert [(split.first, split.count) for split in rows] == [(0, 10), (10, 10), (20, 3)]
    [compressed] = split_files([folder / "c.jsonl.gz"], 10)
    assert compressed == FileSplit(path=folder / "c.jsonl.gz")
    _, second = split_files([folder / "b.jsonl"], 20)
    lines = (folder / "b.jsonl").read_bytes().splitlines(keepends=True)
    assert (second.first, second.count, second.offset) == (20, 3, len(b"".join(lines[:20])))


@pytest.mark.parametrize("size", [1, 4, 30])
def test_tars_and_saved_datasets_are_cut_between_documents(folder: Path, size: int) -> None:
    for name, files in (("e.tar", [23]), ("f", [12, 11, 7])):
        splits = list(split_files([folder / name], size))
        assert len(splits) == sum(-(-rows // size) for rows in files)
        expected = list(read_documents([folder / name]))
        assert [d for split in splits for d in read_split(split)] == expected
        assert list(read_split(splits[-1])) == expected[-len(list(read_split(splits[-1]))) :]
    assert {d.attributes["split"] for d in read_split(splits[-1])} == {"test"}


def test_a_tar_with_long_names_is_cut_before_their_headers(tmp_path: Path) -> None:
    """Names beyond 100 characters have a header of their own before the member's."""
    for number, kind in enumerate((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)):
        path = tmp_path / f"{number}.tar"
        with tarfile.open(path, "w", format=kind) as archive:
            for name in range(5):
                member = tarfile.TarInfo(f"{'long' * 40}/{name}.txt")
                member.size = 4
                archive.addfile(member, io.BytesIO(b"text"))
        splits = list(split_files([path], 2))
        assert len(splits) == 3
        found = [document for split in splits for document in read_split(split)]
        assert found == list(read_documents([path]))


def test_a_tar_with_a_header_for_all_members_is_one_span(tmp_path: Path) -> None:
    member = tarfile.TarInfo("0.txt")
    member.size = 4
    with tarfile.open(tmp_path / "a.tar", "w", pax_headers={"comment": "of all"}) as archive:
        archive.addfile(member, io.BytesIO(b"text"))
    assert list(split_files([tmp_path], 1)) == [FileSplit(path=tmp_path / "a.tar")]


def test_a_fault_names_the_line_of_the_file_not_of_the_span(tmp_path: Path) -> None:
    lines = ['{"content": "a"}'] * 5 + ["{broken"] + ['{"content": "b"}'] * 2
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    records = [r for split in split_files([tmp_path], 3) for r in read_split(split, "drop")]
    [detail] = separate(records)[1]
    assert detail.startswith(f"{tmp_path / 'a.jsonl'}:6: not JSON")


def test_a_broken_file_is_one_split_whose_reader_raises_the_error(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and nothing")
    [split] = split_files([tmp_path], 3)
    with pytest.raises(DocumentError, match="truncated or corrupt; expected a Parquet file"):
        list(read_split(split))


def test_an_empty_table_has_no_spans(tmp_path: Path) -> None:
    pq.write_table(pq.read_table(_one(tmp_path)).slice(0, 0), tmp_path / "a.parquet")
    assert not list(split_files([tmp_path / "a.parquet"], 3))


def _one(folder: Path) -> Path:
    write_parquet(folder / "one.parquet", DOCUMENTS[:1])
    return folder / "one.parquet"


def test_files_without_a_document_are_refused(tmp_path: Path) -> None:
    require_documents([tmp_path], 1)
    with pytest.raises(DocumentError) as caught:
        require_documents([tmp_path, "b"], 0)
    assert str(caught.value) == (f"{tmp_path}, b: no document found; expected at least one. Name another path.")
