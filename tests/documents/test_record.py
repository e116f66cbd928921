"""Records of many shapes, as other tools write them: every image and text is in the document."""

import base64
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from calumma.documents.document import Document, Text
from calumma.documents.readers import read_documents, source_name
from calumma.documents.record import document_from_record
from calumma.errors import DocumentError
from tests.documents.dropped import separate
from tests.documents.image_files import BLUE, RED

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
RED_STRUCT, BLUE_STRUCT = {"bytes": RED, "path": None}, {"bytes": BLUE, "path": None}
RED_BASE64 = base64.b64encode(RED).decode()
QUESTION = [{"role": "user", "content": "<image>What is this?"}, {"role": "assistant", "content": "A red square."}]
LLAVA = [{"from": "human", "value": "<image>\nWhat is this?"}, {"from": "gpt", "value": "A red square."}]
ANSWERED = ["user", "RED", "What is this?", "assistant", "A red square."]


def shape(document: Document) -> list[str]:
    """Return the parts in reading order; images by name, turns by role."""

    def names(parts: Any) -> list[str]:
        known = {RED: "RED", BLUE: "BLUE"}
        return [p.text if isinstance(p, Text) else known[p.read_bytes()] for p in parts]

    turns = [[turn.role, *names(turn.parts)] for turn in document.messages]
    return names(document.content) + [name for turn in turns for name in turn]


def read(record: dict[str, Any], folder: Path | None = None) -> list[str]:
    return shape(document_from_record(record, folder, "x, row 3"))


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"messages": QUESTION, "images": [RED_STRUCT]}, ANSWERED),
        ({"conversations": LLAVA, "image": RED_STRUCT}, ANSWERED),
        ({"image": RED_STRUCT, "question": "What is this?", "answer": "A red square."}, ANSWERED),
        (
            {"image": RED_STRUCT, "question": "What is this?", "answers": ["No.", "A red square.", "A red square."]},
            ANSWERED,
        ),
        (
            {
                "images": [RED_STRUCT],
                "texts": [{"user": "What is this?", "assistant": "A red square.", "source": "x"}],
            },
            ANSWERED,
        ),
        ({"content": "one <image> two<image>", "images": [RED, BLUE]}, ["one ", "RED", " two", "BLUE"]),
        ({"jpg": RED, "caption": "red", "key": "1"}, ["RED", "red"]),
        ({"image": {"bytes": RED, "path": None, "format": "png"}, "text": "a"}, ["RED", "a"]),
        ({"image": {"bytes": RED}, "text": "a"}, ["RED", "a"]),
        ({"text": "a", "images": [RED, BLUE]}, ["a", "RED", "BLUE"]),
        ({"sample": {"image": RED_STRUCT, "caption": "red"}}, ["RED", "red"]),
        ({"image": RED_STRUCT, "caption": {"en": "red", "de": "rot"}}, ["RED", "red", "rot"]),
        ({"image": RED_STRUCT, "caption": [("en", "red")]}, ["RED", "red"]),
        ({"caption": ["a", None], "image": RED_STRUCT}, ["a", "RED"]),
        ({"text": "a", "image": RED_BASE64}, ["a", "RED"]),
        ({"text": "a", "image": f"data:image/png;base64,{RED_BASE64}"}, ["a", "RED"]),
        ({"content": [{"type": "image", "base64": base64.encodebytes(RED).decode()}]}, ["RED"]),
        ({"content": [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{RED_BASE64}"}}]}, ["RED"]),
        (
            {"content": [{"type": "image_url", "image_url": f"data:image/png;base64,{RED_BASE64}"}, "hi"]},
            ["RED", "hi"],
        ),
        ({"text": "hello", "meta": {"a": 1}}, ["hello"]),
        ({"content": "the letters <image>"}, ["the letters <image>"]),
        ({"image": RED_STRUCT, "query": "What?", "response": "Red."}, ["user", "RED", "What?", "assistant", "Red."]),
        ({"image": RED_STRUCT, "query": "What?", "label": ["Red."]}, ["user", "RED", "What?", "assistant", "Red."]),
        ({"image": RED_STRUCT, "prompt": "Q", "completion": "A"}, ["user", "RED", "Q", "assistant", "A"]),
        (
            {"image": RED_STRUCT, "questions": ["Q", "R"], "answers": ["A", "B"]},
            ["user", "RED", "Q", "assistant", "A", "user", "R", "assistant", "B"],
        ),
        (
            {"image": RED_STRUCT, "qa_pairs": [{"question": "Q", "answer": "A"}]},
            ["user", "RED", "Q", "assistant", "A"],
        ),
        ({"image": RED_STRUCT, "question": "<image>Q", "answer": "A"}, ["user", "RED", "Q", "assistant", "A"]),
        (
            {"instruction": "I", "input": "in", "output": "O", "system": "S", "history": [["Q", "A"]]},
            ["system", "S", "user", "Q", "assistant", "A", "user", "I\nin", "assistant", "O"],
        ),
        ({"instruction": "I", "input": "", "output": "O"}, ["user", "I", "assistant", "O"]),
        ({"conversations": LLAVA, "image": RED_STRUCT, "system": "Be brief."}, ["system", "Be brief.", *ANSWERED]),
        ({"messages": [{"from": "human", "value": "hi"}]}, ["user", "hi"]),
        (
            {"context": "c", "question": "Q", "answers": {"text": ["A"], "answer_start": [3]}},
            ["user", "Q", "assistant", "A"],
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "image": RED_STRUCT, "text": None}]}]},
            ["user", "RED"],
        ),
        (
            {
                "content": [
                    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": RED_BASE64}}
                ]
            },
            ["RED"],
        ),
        ({"URL": "https://x/1.jpg", "TEXT": "a", "jpg": RED}, ["a", "RED"]),
        ({"Image": RED_STRUCT, "Caption": "a"}, ["RED", "a"]),
        ({"image": {"base64": RED_BASE64}, "text": "a"}, ["RED", "a"]),
        ({"image_1": RED_STRUCT, "image_2": BLUE_STRUCT, "image_3": None, "text": "a"}, ["RED", "BLUE", "a"]),
        ({"frame": RED_BASE64, "text": "a"}, ["RED", "a"]),
        ({"frame": f"data:image/png;base64,{RED_BASE64}", "text": "a"}, ["RED", "a"]),
        ({"pages": [[RED], [BLUE]], "text": "a"}, ["RED", "BLUE", "a"]),
        ({"samples": [{"image": RED_STRUCT, "text": "a"}, {"image": None, "text": "b"}]}, ["RED", "a", "b"]),
        (
            {"jpg": RED, "txt": "a", "json": {"caption": "a", "title": "t"}, "__key__": "7", "__url__": "x.tar"},
            ["RED", "a", "t"],
        ),
        ({"png": RED, "txt": b"a", "json": b'{"width": 4}'}, ["RED", "a"]),
        ({"__key__": "7", "png": RED, "json": json.dumps({"conversations": LLAVA}).encode()}, ANSWERED),
        ({"image": RED_STRUCT, "question": "What is this?"}, ["RED", "What is this?"]),
        ({"jpg": RED, "caption": "a", "image_path": "1.png", "file_name": "2.png"}, ["RED", "a"]),
        ({"text": ""}, [""]),
        ({"image": {"bytes": None, "path": None}, "text": "a"}, ["a"]),
    ],
)
def test_a_record_of_another_tool_is_read_completely(record: dict[str, Any], expected: list[str]) -> None:
    assert read(record) == expected


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"file_name": "1.png", "text": "red"}, ["RED", "red"]),
        ({"image": "1.png", "conversations": LLAVA}, ANSWERED),
        ({"messages": QUESTION, "images": ["1.png"]}, ANSWERED),
        (
            {"text_list": ["one", "two"], "image_info": [{"image_name": "1.png", "matched_text_index": 1}]},
            ["one", "RED", "two"],
        ),
        ({"content": [{"type": "image", "image": "1.png"}]}, ["RED"]),
        ({"file_name": "1.png", "messages": QUESTION}, ANSWERED),
        ({"file_name": "1.png", "question": "What is this?", "answer": "A red square."}, ANSWERED),
        ({"image_path": "1.png", "caption": "a"}, ["RED", "a"]),
        ({"caption": "a", "image_files": ["1.png", "1.png"]}, ["RED", "RED", "a"]),
        ({"img_url": "1.png", "caption": "a"}, ["RED", "a"]),
        ({"photo": "1.png", "caption": "a"}, ["RED", "a"]),
    ],
)
def test_images_are_files_next_to_the_records(tmp_path: Path, record: dict[str, Any], expected: list[str]) -> None:
    (tmp_path / "1.png").write_bytes(RED)
    assert read(record, tmp_path) == expected


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            {"messages": QUESTION, "images": [RED_STRUCT, BLUE_STRUCT]},
            "x, row 3: 2 images for 1 slots (<image> marks and image parts without an image); "
            "expected as many slots as images. Fix the row, or drop the document.",
        ),
        (
            {"messages": QUESTION, "images": []},
            "x, row 3: 0 images for 1 slots (<image> marks and image parts without an image); "
            "expected as many slots as images. Fix the row, or drop the document.",
        ),
        (
            {"title": 1984, "image": RED_STRUCT},
            "x, row 3, column 'title': found int; expected text, or a list of texts. Convert the "
            "column, or rename it.",
        ),
        (
            {"prompt": [{"role": "user", "content": "hi"}], "image": RED_STRUCT},
            "x, row 3, column 'prompt': found a list of dict; expected text, or a list of texts. "
            "Convert the column, or rename it.",
        ),
        (
            {"conversations": "hi"},
            "x, row 3, column 'conversations': found str; expected a list of turns, such as "
            '{"from": "human", "value": "..."}. Convert the column, or rename it.',
        ),
        (
            {"question": ["a"], "answer": "b"},
            "x, row 3, column 'question': found a list of str; expected text. Convert the column, or rename it.",
        ),
        (
            {"images": [RED, "https://x/y.png"], "text": "a"},
            "x, row 3, column 'images': the image is a web address, 'https://x/y.png'; expected "
            "its bytes, or a path next to the file. Download the images first.",
        ),
        (
            {"images": [RED, 7], "text": "a"},
            "x, row 3, column 'images': found int among images; expected an image in each entry. "
            "Remove the entry, or drop the document.",
        ),
        (
            {"texts": ["a"], "images": [None, RED]},
            "x, row 3: texts has 1 entries and images 2; expected lists of one length, with null "
            "where the other list has the part. Fix the lists, or drop the document.",
        ),
        (
            {"text_list": ["a"], "image_info": [{"image_name": "1.png", "matched_text_index": 1}]},
            "x, row 3, column 'image_info': found \"{'image_name': '1.png', 'matched_text_index': "
            '1}"; expected the image_name of a file and a matched_text_index below 1. Fix it, or '
            "drop the document.",
        ),
        (
            {"content": "a", "attributes": ["b"]},
            'x, row 3: "attributes" is list; expected an object of names and values. Fix it, or remove it.',
        ),
        (
            {"body": "a", "score": 1},
            "x, row 3: the columns are body, score; expected content or messages, an image, or one "
            "of text, caption, captions, title, description, prompt, alt, alt_text, txt, sentence, "
            "sentences. Rename the column that "
            "holds the text.",
        ),
        (
            {"image": 7, "text": "a"},
            "x, row 3, column 'image': found int; expected an image: bytes, a path, a data URL or base64. Convert the "
            "column, or rename it.",
        ),
        (
            {"image": None, "text": None},
            "x, row 3: no image and no text in image, text; expected at least one. Fill the columns, or drop the "
            "document.",
        ),
        (
            {"image": RED, "text": b"\xff"},
            "x, row 3, column 'text': byte 0 is not UTF-8; expected text in UTF-8. Save it as UTF-8, or drop the "
            "document.",
        ),
        (
            {"url": "https://x/y.jpg", "text": "a", "width": 4},
            "x, row 3, column 'url': the image is a web address, 'https://x/y.jpg'; expected its bytes, or a path "
            "next to the file. Download the images first.",
        ),
        (
            {"image_url": "https://x/y", "text": "a"},
            "x, row 3, column 'image_url': the image is a web address, 'https://x/y'; expected its bytes, or a path "
            "next to the file. Download the images first.",
        ),
        (
            {"__key__": "7", "json": "{", "png": RED},
            "x, row 3, column 'json': not JSON (Expecting property name enclosed in double quotes: line 1 column 2 "
            "(char 1)); expected an object. Fix it, or drop the document.",
        ),
        (
            {"conversations": LLAVA},
            "x, row 3: 0 images for 1 slots (<image> marks and image parts without an image); "
            "expected as many slots as images. Fix the row, or drop the document.",
        ),
        (
            {"texts": ["a", None], "images": [None, 7]},
            "x, row 3, position 1: found int in images; expected bytes, a struct of bytes, or a path. Fix it, or "
            "drop the document.",
        ),
        (
            {"content": [{"type": "text", "text": 7}]},
            "x, row 3, part 0: the text of a text part is int; expected a string. Fix it, or remove the part.",
        ),
        (
            {"content": [{"type": "image", "url": "https://x/y.png"}]},
            "x, row 3, part 0: the image is a web address, 'https://x/y.png'; expected a path, "
            "base64 or a data URL. Download the image first.",
        ),
    ],
)
def test_a_record_of_which_something_would_be_lost_is_refused(record: dict[str, Any], message: str) -> None:
    with pytest.raises(DocumentError) as caught:
        read(record)
    assert str(caught.value) == message


FUZZED: list[tuple[dict[str, Any], str]] = [
    ({"json": ["some words to read"], "__key__": "7", "jpg": RED}, "json (text)"),
    ({"__key__": {"type": "text", "note": "some words to read"}, "text": "a"}, "__key__.note (text)"),
    ({"id": ["some words to read"], "text": "a"}, "id (text)"),
    ({"id": "7", "__key__": "some words to read", "text": "a"}, "__key__ (text)"),
]
"""Records that the fuzzed tests found to be read in part."""


@pytest.mark.parametrize(("record", "left_over"), FUZZED)
def test_records_that_fuzzing_found(record: dict[str, Any], left_over: str) -> None:
    assert document_from_record(record, None, "x").account.to_json()["left over"] == {left_over: 1}


LEFT_OVER: list[tuple[dict[str, Any], dict[str, int]]] = [
    ({"messages": QUESTION, "images": [RED], "text": "flat"}, {"text (text)": 1}),
    ({"content": "body", "title": "flat"}, {"title (text)": 1}),
    ({"question": "Q", "answer": "A", "image": RED, "caption": "flat"}, {"caption (text)": 1}),
    ({"image": RED, "prompt": "P", "chosen": "yes", "rejected": "no"}, {"chosen (text)": 1, "rejected (text)": 1}),
    ({"question": "Q", "answer": "A", "choices": ["A", "B"]}, {"choices (text)": 2}),
    ({"question": "Q", "answer": "A", "context": "flat"}, {"context (text)": 1}),
    ({"image": RED, "blip_caption": "a dog"}, {"blip_caption (text)": 1}),
    ({"image": RED, "notes": "a dog in a park"}, {"notes (text)": 1}),
    ({"image": RED, "notes": "公园里的狗"}, {"notes (text)": 1}),
    ({"text": "a", "meta": {"more": {"prose": "a dog in a park"}}}, {"meta.more.prose (text)": 1}),
    ({"text": "a", "extra": {"prose": "a dog in a park"}}, {"extra.prose (text)": 1}),
    ({"text": "a", "tags": ["a dog in a park", "x"]}, {"tags (text)": 1}),
    ({"text": "a", "blob": b"\xff\0\xfe"}, {"blob (bytes that are neither an image nor UTF-8)": 1}),
    ({"messages": [{"role": "user", "content": "hi", "reasoning": "so"}]}, {"messages.reasoning (text)": 1}),
    ({"messages": [{"role": "user", "content": "hi", "images": [RED]}]}, {"messages.images (an image)": 1}),
    ({"content": [{"type": "text", "text": "a", "image": RED_STRUCT}]}, {"content.image (an image)": 1}),
    ({"content": [{"type": "image", "bytes": RED, "text": "a dog"}]}, {"content.text (text)": 1}),
    ({"conversations": [{"from": "human", "value": "hi", "value_de": "a b c"}]}, {"conversations.value_de (text)": 1}),
    ({"image": RED, "sound": {"bytes": b"RIFF\xff\0\0\0WAVE", "path": "1.wav"}},
     {"sound.bytes (bytes that are neither an image nor UTF-8)": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("record", "expected"), LEFT_OVER)
def test_the_account_has_what_no_document_holds(record: dict[str, Any], expected: dict[str, int]) -> None:
    account = document_from_record(record, None, "x, row 3").account
    assert account.to_json()["left over"] == expected
    with pytest.raises(DocumentError, match="left over"):
        account.require_complete("x, row 3")
    names = [name.rpartition(" (")[0] for name in expected]
    ignored = document_from_record(record, None, "x, row 3", ignored=names).account
    ignored.require_complete("x, row 3")
    assert ignored.to_json()["not read"].keys() >= {f"{name} (ignored)" for name in names}


def test_the_account_counts_every_value_once() -> None:
    record = {
        "id": 7, "license": "MIT", "image": {"bytes": RED, "path": None, "width": 4}, "caption": ["a", "b"],
        "exif": '{"Image Make": "a b c d"}', "url": "https://x/y", "embedding": [0.1, 0.2], "score": 0.5,
        "answers": ["A", "A", "B"], "question": "Q",
    }  # fmt: skip
    document = document_from_record(record, None, "x, row 3", ignored=["caption"])
    assert document.account.to_json() == {
        "field": {"id": 1, "license": 1},
        "image": {"image": 1},
        "text": {"question": 1, "answers": 1},
        "attribute": {"image.width": 1, "exif": 1, "url": 1, "score": 1},
        "not read": {
            "caption (ignored)": 1, "embedding (a list of float)": 1, "answers (other answers to the question)": 2,
        },
    }  # fmt: skip
    assert document.attributes == {
        "image.width": "4", "exif": '{"Image Make": "a b c d"}', "url": "https://x/y", "score": "0.5"
    }  # fmt: skip


def test_a_text_that_the_turns_repeat_is_read() -> None:
    record = {"prompt": "hi", "messages": [{"role": "user", "content": "hi"}]}
    account = document_from_record(record, None, "x").account
    assert account.to_json() == {"text": {"messages": 1, "prompt": 1}}


def test_an_id_of_zero_is_an_id() -> None:
    assert document_from_record({"id": 0, "text": "a"}, None, "x:1").id == "0"
    assert document_from_record({"id": "", "text": "a"}, None, "/d/x:1").id == "x:1"


@pytest.mark.parametrize(
    "kind",
    [
        pa.binary(),
        pa.large_binary(),
        pa.binary(len(RED)),
        IMAGE,
        pa.struct([("path", pa.string()), ("bytes", pa.large_binary()), ("width", pa.int32())]),
        pa.struct([("bytes", pa.binary())]),
        pa.list_(pa.binary()),
        pa.list_(IMAGE),
        pa.large_list(IMAGE),
        pa.list_(IMAGE, 1),
        pa.struct([("image", IMAGE), ("caption", pa.string())]),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["image", "photo"])
def test_image_columns_of_every_arrow_type(tmp_path: Path, kind: pa.DataType, name: str) -> None:
    def value(kind: pa.DataType) -> Any:
        if pa.types.is_struct(kind):
            return {field.name: value(field.type) for field in kind}
        if hasattr(kind, "value_type"):
            return [value(kind.value_type)]
        return RED if "binary" in str(kind) else None

    table = pa.table([pa.array([value(kind)], kind), pa.array(["red"])], names=[name, "text"])
    pq.write_table(table, tmp_path / "a.parquet")
    [document] = read_documents([tmp_path])
    assert shape(document) == ["RED", "red"]


def test_a_value_of_another_type_drops_its_row_alone(tmp_path: Path) -> None:
    table = pa.table({"text": ["a", "b"], "attributes": ['{"a": 1}', None]})
    pq.write_table(table, tmp_path / "a.parquet")
    documents, details = separate(read_documents([tmp_path], "drop"))
    assert [document.text for document in documents] == ["b"]
    assert details == [
        f'{tmp_path / "a.parquet"}, row 0: "attributes" is str; expected an object of names and '
        "values. Fix it, or remove it."
    ]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "txt"])
def test_a_folder_of_captioned_images(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "squares"
    folder.mkdir()
    pairs = {"1.png": (RED, "a red, plain square"), "2.png": (BLUE, "blue")}
    for name, (data, _) in pairs.items():
        (folder / name).write_bytes(data)
    if kind == "txt":
        for name, (_, text) in pairs.items():
            (folder / name).with_suffix(".txt").write_text(f"\ufeff{text}\n")
    elif kind == "csv":
        rows = "".join(f'{name},"{text}"\n' for name, (_, text) in pairs.items())
        (folder / "metadata.csv").write_text(f"file_name,text\n{rows}")
    else:
        rows = [{"file_name": name, "text": text} for name, (_, text) in pairs.items()]
        (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    documents = list(read_documents([folder]))
    assert [(d.id, d.source) for d in documents] == [("1.png", "squares"), ("2.png", "squares")]
    assert [shape(d) for d in documents] == [["RED", "a red, plain square"], ["BLUE", "blue"]]


def test_a_row_of_csv_with_too_many_cells_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text("file_name,text\n1.png,a, b\n2.png,c\n")
    documents, details = separate(read_documents([tmp_path / "metadata.csv"], "drop"))
    assert [document.text for document in documents] == ["c"]
    assert details == [
        f"{tmp_path / 'metadata.csv'}, row 0: another number of cells than the header has; "
        "expected one for each column. Put cells with commas in quotes."
    ]


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("birds.jsonl", "birds"),
        ("birds-00000-of-00002.parquet", "birds"),
        ("web/data/train-00000-of-00002.parquet", "web"),
        ("cc3m/00017.tar", "cc3m"),
        ("pages/one.html", "pages"),
    ],
)
def test_the_source_is_named_after_the_file_or_its_folder(name: str, source: str) -> None:
    assert source_name(Path("/data") / name) == source
