"""A folder of documents, tokenizers and a reference build, for the tests of executors."""

from pathlib import Path

import pytest

from calumma.documents.document import Document
from calumma.documents.writers import write_jsonl, write_parquet
from calumma.shards.cache import WORK_DIR
from calumma.shards.executors import build_local
from calumma.shards.tasks import BuildJob
from calumma.tokens.folder import Tokenizers


@pytest.fixture(scope="module")
def folder(tokenizers: Tokenizers, documents: list[Document], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with tokenizers, two document files, and their shards from one process."""
    folder = tmp_path_factory.mktemp("executors")
    tokenizers.text.save(folder / "tok")
    tokenizers.image.save(folder / "tok")
    write_parquet(folder / "docs" / "a.parquet", documents[:25])
    write_jsonl(folder / "docs" / "b.jsonl", documents[25:])
    build_local(job(folder, folder / "reference"), [folder / "docs"], 1)
    return folder


def job(folder: Path, out: Path) -> BuildJob:
    return BuildJob(out=out, tokenizers=folder / "tok", documents_per_shard=4)


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != WORK_DIR}
