"""Parquet files and saved datasets, in our schema and in those of Hugging Face datasets."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from calumma.documents.document import Document, Image, Text, Turn
from calumma.documents.parquet import is_saved_dataset, read_parquet, read_saved_dataset
from calumma.documents.writers import write_parquet
from calumma.errors import DocumentError
from tests.documents.dropped import separate
from tests.documents.image_files import BLUE, RED

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def pairs() -> pa.Table:
    """Two rows of an image with its caption, as `datasets` writes them."""
    columns: list[tuple[str, Any, Any]] = [
        ("image", IMAGE, [{"bytes": RED, "path": None}, {"bytes": BLUE, "path": "2.png"}]),
        ("caption", pa.string(), ["a red square", "a blue square"]),
        ("label", pa.int64(), [1, 2]),
        ("license", pa.string(), ["MIT", "CC0-1.0"]),
    ]
    return pa.table([pa.array(values, kind) for _, kind, values in columns], names=[c[0] for c in columns])


def save(folder: Path, table: pa.Table) -> Path:
    """Write a table in the format of `Dataset.save_to_disk`."""
    folder.mkdir(parents=True)
    with pa.ipc.new_stream(folder / "data-00000-of-00001.arrow", table.schema) as writer:
        writer.write_table(table)
    files = [{"filename": "data-00000-of-00001.arrow"}]
    (folder / "state.json").write_text(json.dumps({"_data_files": files}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def test_flat_columns_are_parts_in_their_order_and_the_rest_attributes(tmp_path: Path) -> None:
    pq.write_table(pairs(), tmp_path / "pairs.parquet")
    assert list(read_parquet(tmp_path / "pairs.parquet")) == [
        Document(
            id="pairs.parquet, row 0",
            license="MIT",
            content=(Image(data=RED), Text("a red square")),
            attributes={"label": "1"},
        ),
        Document(
            id="pairs.parquet, row 1",
            license="CC0-1.0",
            content=(Image(data=BLUE), Text("a blue square")),
            attributes={"label": "2"},
        ),
    ]


def test_lists_of_texts_and_images_are_several_parts_and_nulls_none(tmp_path: Path) -> None:
    images = [[{"bytes": RED, "path": None}, {"bytes": BLUE, "path": None}], None]
    table = pa.table(
        [pa.array([["one", "two"], ["three"]]), pa.array(images, pa.list_(IMAGE))], names=["captions", "images"]
    )
    pq.write_table(table, tmp_path / "many.parquet")
    first, second = read_parquet(tmp_path / "many.parquet")
    assert first.content == (Text("one"), Text("two"), Image(data=RED), Image(data=BLUE))
    assert second.content == (Text("three"),)


def test_an_image_without_bytes_is_a_file_next_to_the_table(tmp_path: Path) -> None:
    table = pa.table([pa.array([{"bytes": None, "path": "i/1.png"}], IMAGE)], names=["image"])
    pq.write_table(table, tmp_path / "paths.parquet")
    (document,) = read_parquet(tmp_path / "paths.parquet")
    assert document.images[0].path == tmp_path.resolve() / "i" / "1.png"


def test_images_of_a_column_fill_the_empty_image_parts_of_the_turns(tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "?"}]},
        {"role": "assistant", "content": [{"type": "image", "text": None}]},
    ]
    images = [{"bytes": RED, "path": None}, {"bytes": BLUE, "path": None}]
    table = pa.table([pa.array([turns]), pa.array([images], pa.list_(IMAGE))], names=["messages", "images"])
    (document,) = read_saved_dataset(save(tmp_path / "talk", table))
    assert document.messages == (Turn("user", (Image(data=RED), Text("?"))), Turn("assistant", (Image(data=BLUE),)))


def test_a_saved_dataset_is_read_with_unique_ids(tmp_path: Path) -> None:
    folder = save(tmp_path / "squares", pairs())
    assert is_saved_dataset({path.name for path in folder.iterdir()})
    assert not is_saved_dataset({path.name for path in tmp_path.iterdir()})
    documents = list(read_saved_dataset(folder))
    assert [d.text for d in documents] == ["a red square", "a blue square"]
    assert documents[1].id == "squares/data-00000-of-00001.arrow, row 1"


def test_a_saved_dataset_of_several_splits_has_them_as_attributes(tmp_path: Path) -> None:
    folder = tmp_path / "both"
    for split in ("train", "test"):
        save(folder / split, pairs())
    (folder / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert is_saved_dataset({path.name for path in folder.iterdir()})
    splits = [document.attributes["split"] for document in read_saved_dataset(folder)]
    assert splits == ["train", "train", "test", "test"]


def test_columns_without_text_or_image_are_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["a"], "score": [1]}), tmp_path / "x.parquet")
    with pytest.raises(DocumentError) as caught:
        list(read_parquet(tmp_path / "x.parquet"))
    assert str(caught.value) == (
        f"{tmp_path / 'x.parquet'}: the columns are body, score; expected content or messages, an "
        "image column (struct of bytes and path), or one of text, caption, captions, title, "
        "description, prompt, alt, alt_text, txt, sentence, sentences. Rename the column that holds the text."
    )


@pytest.mark.parametrize("keep", [0.9, 0.5, 0.0])
def test_a_parquet_file_cut_short_is_refused(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "docs.parquet"
    write_parquet(path, [Document(id="a", content=(Text("t"),))])
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(DocumentError) as caught:
        list(read_parquet(path))
    assert str(caught.value) == (
        f"{path}: truncated or corrupt; expected a Parquet file, as it was written. Copy or write it again."
    )


def test_a_missing_parquet_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DocumentError) as caught:
        list(read_parquet(tmp_path / "no.parquet"))
    assert str(caught.value) == (
        f"{tmp_path / 'no.parquet'}: cannot be read (No such file or directory); expected a "
        "Parquet file. Fix the path or its permissions."
    )


def test_a_saved_dataset_without_its_arrow_file_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "d", pairs())
    (folder / "data-00000-of-00001.arrow").unlink()
    with pytest.raises(DocumentError) as caught:
        list(read_saved_dataset(folder))
    assert str(caught.value) == (
        f"{folder / 'data-00000-of-00001.arrow'}: cannot be read (No such file or directory); "
        "expected an Arrow file. Fix the path or its permissions."
    )


def test_a_saved_dataset_with_a_broken_list_of_files_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "d", pairs())
    (folder / "state.json").write_text("{")
    with pytest.raises(DocumentError) as caught:
        list(read_saved_dataset(folder))
    assert str(caught.value) == (
        f"{folder}: truncated or corrupt; expected a folder of save_to_disk, as it was written. "
        "Copy or write it again."
    )


def test_a_row_that_is_no_document_is_named_and_can_be_left_out(tmp_path: Path) -> None:
    images = [{"bytes": None, "path": "../1.png"}, {"bytes": RED, "path": None}]
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table([pa.array(images, IMAGE)], names=["image"]), path)
    documents, details = separate(read_parquet(path, "drop"))
    assert len(documents) == 1
    assert details == [
        f"{path}, row 0, part 0: image path '../1.png' leads out of {tmp_path}; expected a path "
        "inside the folder of the document's file. Copy the image there."
    ]


def test_rows_are_numbered_through_all_batches(tmp_path: Path) -> None:
    texts = [f"text {n}" for n in range(200)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "t.parquet")
    documents = list(read_parquet(tmp_path / "t.parquet"))
    assert [d.text for d in documents] == texts
    assert documents[199].id == "t.parquet, row 199"


def test_a_value_that_python_cannot_hold_drops_its_row_alone(tmp_path: Path) -> None:
    good, bad = b"good", b"\xff\xfe"
    strings = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(b"\0\0\0\0\4\0\0\0\6\0\0\0"), pa.py_buffer(good + bad)]
    )
    times = pa.array([2**62, 5], pa.timestamp("ms"))
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table([strings, times], names=["text", "taken"]), path)
    documents, details = separate(read_parquet(path, "drop"))
    assert [(document.text, document.attributes["taken"]) for document in documents] == [("good", str(2**62))]
    [detail] = details
    assert detail.startswith(f"{path}, row 1, column 'text': a value of string cannot be read ('utf-8' codec can't")
    assert detail.endswith("; expected text, bytes or numbers. Convert the column, or drop the document.")
