"""The build cache: one JSON file per task with the shards it has written.

    OUT/.build/tasks/00000.json

An interrupted or repeated build skips every shard whose key is unchanged and whose files are
intact; a complete task whose inputs are unchanged does not read its documents again.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from calumma.documents.document import Document, Image
from calumma.documents.error_policy import DroppedDocument
from calumma.files import read_json, sha256, write_json
from calumma.shards.manifest import Shard

WORK_DIR = ".build"


@dataclass(frozen=True)
class CachedShard:
    """A shard that was written."""

    key: str
    """Hash of everything that decides the shard's bytes."""

    shard: Shard


@dataclass(kw_only=True)
class TaskRecord:
    """The progress of one task."""

    inputs: list[Any]
    """Everything that decides the task's output, except images in files of their own."""

    shards: dict[str, CachedShard] = field(default_factory=dict)
    """By name: first those of an earlier build, then those of this one."""

    num_documents: int | None = None
    """Number of documents read, dropped ones included; None until the task is complete."""

    columns: dict[str, dict[str, int]] = field(default_factory=dict)
    """What became of the columns of its documents, as of `ColumnAccount.to_json`."""

    is_self_contained: bool = False
    """Whether the document file alone decides the output: no image is in a file of its own."""


class BuildCache:
    """The task records of one shard folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, task: int) -> Path:
        """Return the path of a task's record."""
        return self.folder / WORK_DIR / "tasks" / f"{task:05d}.json"

    def read(self, task: int) -> TaskRecord | None:
        """Read a task's record as it was stored; None if there is none."""
        path = self.path(task)
        if not path.is_file():
            return None
        record = read_json(path)
        shards = {
            each["shard"]["name"]: CachedShard(each["key"], Shard.from_json(each["shard"]))
            for each in record["shards"]
        }
        return TaskRecord(**record | {"shards": shards})

    def lookup(self, task: int) -> TaskRecord | None:
        """Read a task's record without the shards whose files are missing or have changed.

        The task then is incomplete.
        """
        record = self.read(task)
        if record is None:
            return None
        intact = {n: each for n, each in record.shards.items() if self._is_intact(each.shard)}
        if len(intact) < len(record.shards):
            record.shards, record.num_documents = intact, None
        return record

    def _is_intact(self, shard: Shard) -> bool:
        files = {self.folder / (shard.name + suffix): h for suffix, h in shard.sha256.items()}
        return all(path.is_file() and sha256(path) == expected for path, expected in files.items())

    def store(self, task: int, record: TaskRecord) -> None:
        """Write a task's record."""
        shards = [asdict(each) for each in record.shards.values()]
        write_json(self.path(task), {**vars(record), "shards": shards})

    def shards(self, num_tasks: int) -> Iterator[Shard]:
        """Yield the shards of all tasks in order; every task must be complete."""
        for task in range(num_tasks):
            record = self.read(task)
            assert record is not None
            yield from (each.shard for each in record.shards.values())


def shard_key(
    settings: Sequence[Any],
    documents: Iterable[Document],
    image_digests: Iterable[Sequence[bytes | None]],
    dropped: Iterable[DroppedDocument],
) -> str:
    """Hash everything that decides the bytes of a shard.

    Args:
        settings: what decides the token ids besides the documents.
        documents: the shard's documents, in order.
        image_digests: SHA-256 of each image of each document; None for one that cannot be read.
        dropped: the dropped documents listed with the shard.
    """
    head = [*settings, [asdict(drop) for drop in dropped]]
    digest = hashlib.sha256(repr(head).encode())
    for document, images in zip(documents, image_digests, strict=True):
        hashes = iter(images)
        turns = [(turn.role, len(turn.parts)) for turn in document.messages]
        parts = [next(hashes) if isinstance(p, Image) else p.text for p in document.parts()]
        digest.update(repr([document.id, document.source, turns, parts]).encode())
    return digest.hexdigest()
