"""Any source is read completely, accounted for, or refused in one line.

`CALUMMA_FUZZ_CASES=10000 pytest tests/documents/test_sources_fuzzed.py` runs more cases.
"""

import base64
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import hypothesis
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from calumma.documents.column_account import ColumnAccount
from calumma.documents.document import Document
from calumma.documents.error_policy import DroppedDocument
from calumma.documents.readers import read_documents
from calumma.documents.record_columns import is_file_name
from calumma.errors import DocumentError
from tests.documents import source_strategies as sources
from tests.documents.source_strategies import Planted

CASES = int(os.environ.get("CALUMMA_FUZZ_CASES", "200")) // 4
SEED = int(os.environ.get("CALUMMA_FUZZ_SEED", "0"))
FUZZ = settings(
    max_examples=CASES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.generate),
)


def read(path: Path) -> list[Document | DroppedDocument]:
    """Read a path; what refuses it as a whole is one dropped document."""
    try:
        found = list(read_documents([path], "drop"))
    except DocumentError as error:
        return [DroppedDocument(id="", source="", reason="", detail=str(error))]
    for each in found:
        if isinstance(each, DroppedDocument):
            assert "\n" not in each.detail and each.detail.endswith(".")
    return found


def require_all(found: Iterable[Document], planted: Planted) -> None:
    """Require each planted text and image in a document, or in the account of what was not read."""
    documents = list(found)
    hypothesis.note(
        str([(d.id, d.text[:300], [str(i.path)[-60:] for i in d.images], d.account.to_json()) for d in documents])
    )
    texts, images, account = "", set(), ColumnAccount()
    for document in documents:
        # A text that names a file is looked for when the file is opened.
        names = [str(image.path) for image in document.images if image.path is not None]
        images |= {image.read_bytes() for image in document.images if image.path is None or image.path.is_file()}
        # Fields, and attributes that describe the document by their name.
        fields = [document.id, document.source, document.license]
        fields += [value for name, value in document.attributes.items() if is_description(name)]
        images |= {data for data in planted.images if base64.b64encode(data).decode() in document.text}
        texts += "\n".join([document.text, *names, *fields])
        account.update(document.account)
    lost = [(text, column) for text, column in planted.texts.items() if text not in texts]
    lost_images = [column for data, column in planted.images.items() if data not in images]
    num_unread = account.total("left over") + account.total("not read")
    assert len(lost) + len(lost_images) <= num_unread, (lost, lost_images, account.to_json())


def is_description(name: str) -> bool:
    """Return whether an attribute of this name may hold a text: the name of a file, or a key."""
    last = name.rpartition(".")[2]
    return is_file_name(last) or last == "__key__"


@seed(SEED)
@FUZZ
@given(sources.tables())
def test_any_table(tmp_path_factory: pytest.TempPathFactory, case: tuple[pa.Table, list[Planted]]) -> None:
    table, planted = case
    path = tmp_path_factory.mktemp("table") / "t.parquet"
    try:
        sources.write_parquet_table(path, table)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return  # Parquet has no such type
    found = read(path)
    shutil.rmtree(path.parent)
    if len(found) == len(planted):
        for each, contents in zip(found, planted, strict=True):
            if isinstance(each, Document):
                require_all([each], contents)
    else:
        assert isinstance(found[0], DroppedDocument)


@seed(SEED)
@FUZZ
@given(sources.records())
def test_any_json_line(tmp_path_factory: pytest.TempPathFactory, case: tuple[dict[str, Any], Planted]) -> None:
    record, planted = case
    path = tmp_path_factory.mktemp("lines") / "d.jsonl"
    path.write_text(json.dumps(record) + "\n")
    [found] = read(path)
    shutil.rmtree(path.parent)
    if isinstance(found, Document):
        require_all([found], planted)


@seed(SEED)
@FUZZ
@given(sources.archives())
def test_any_archive(tmp_path_factory: pytest.TempPathFactory, case: tuple[list[tuple[str, bytes]], Planted]) -> None:
    members, planted = case
    path = tmp_path_factory.mktemp("tar") / "a.tar"
    sources.write_tar(path, members)
    found = read(path)
    shutil.rmtree(path.parent)
    documents = {each.id: each for each in found if isinstance(each, Document)}
    dropped = [each.detail for each in found if isinstance(each, DroppedDocument)]

    def is_refused(member: str) -> bool:
        folder, _, last = member.rpartition("/")
        stem = f"{folder}/{last.partition('.')[0]}" if folder else last.partition(".")[0]
        return any(f", {stem}" in detail or "apart" in detail or stem not in documents for detail in dropped)

    texts = {text: member for text, member in planted.texts.items() if not is_refused(member)}
    images = {data: member for data, member in planted.images.items() if not is_refused(member)}
    require_all(documents.values(), Planted(texts, images))


@seed(SEED)
@FUZZ
@given(sources.image_folders())
def test_any_image_folder(tmp_path_factory: pytest.TempPathFactory, case: tuple[dict[str, bytes], Planted]) -> None:
    files, planted = case
    folder = tmp_path_factory.mktemp("folder")
    for name, data in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    found = read(folder)
    dropped = " ".join(each.detail for each in found if isinstance(each, DroppedDocument))
    images = {data: name for data, name in planted.images.items() if f"image {name} is not listed" not in dropped}
    if "no document" not in dropped:
        require_all([each for each in found if isinstance(each, Document)], Planted(planted.texts, images))
    shutil.rmtree(folder)
