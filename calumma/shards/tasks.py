"""Building shards as numbered tasks, which any number of workers may share out.

A task is a span of a file of documents; spans are numbered by the files alone. Each task makes its
own pieces, so the shards come out the same whoever makes which task, and however often one is
begun. Beside the shards, `.build/` holds what only the building needs:

    .build/plan.json      the paths given, and the number of tasks
    .build/plan.jsonl     the span of each task, one a line
    .build/tasks/00000    what came of a task: its pieces, and what its file looked like then
    .build/stop           there while a build is stopping
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from calumma.documents.document import Document, Image
from calumma.documents.document_filter import DocumentFilter, FilterConfig
from calumma.documents.error_policy import DroppedDocument, OnError
from calumma.documents.file_splits import FileSplit, read_split, require_documents, split_files
from calumma.documents.paths import absolute_name, file_version, parse_path
from calumma.errors import ShardError
from calumma.files import (
    JsonLines,
    make_folder,
    read_json,
    sha256,
    write_json,
    write_json_lines,
)
from calumma.runtime import STOP
from calumma.shards.build import DOCUMENTS_PER_SHARD, write_manifest
from calumma.shards.dedup import (
    document_signatures,
    duplicate_path,
    signature_path,
    write_duplicates,
)
from calumma.shards.encode import DocumentEncoder, encoding_fingerprint
from calumma.shards.format import NOTE, shard_name
from calumma.shards.manifest import Manifest, Shard
from calumma.shards.shard_builder import ShardBuilder, batched
from calumma.tokens.folder import Tokenizers

WORK = ".build"


@dataclass(frozen=True, kw_only=True)
class BuildJob:
    """All that a task must know, in plain values: it travels to other processes and machines."""

    out: Path
    """The folder of the shards."""

    tokenizers: Path
    """The folder of both tokenizers."""

    documents_per_shard: int = DOCUMENTS_PER_SHARD
    """Documents in a piece: the most work that a kill can lose."""

    skip_bad: bool = False
    """Whether documents that cannot be read are left out and listed, instead of an error."""

    device: str = "cpu"
    """Where pictures are encoded."""

    decode_threads: int = 1
    """Threads of a worker that open pictures."""

    filters: FilterConfig = field(default_factory=FilterConfig)
    """Which documents are left out."""

    @property
    def work_dir(self) -> Path:
        """The folder of what only the building needs."""
        return self.out / WORK

    @property
    def stop_requested(self) -> bool:
        """Whether somebody asked this build to stop."""
        return STOP.is_requested or (self.work_dir / "stop").exists()

    def note(self, number: int) -> Path:
        """Where it is written what came of a task."""
        return self.work_dir / "tasks" / f"{number:05d}.json"


def write_plan(job: BuildJob, paths: Sequence[Path | str]) -> int:
    """Cut the files into tasks and write them down.

    Returns:
        The number of tasks.

    Raises:
        DocumentError: a path holds no files of documents.
        OutputError: the folder cannot be written.
    """
    make_folder(job.out)
    make_folder(job.work_dir / "tasks")
    (job.work_dir / "stop").unlink(missing_ok=True)
    spans = (
        [absolute_name(span.path), span.first, span.count, span.offset, span.dataset_split]
        for span in split_files(paths, job.documents_per_shard)
    )
    tasks = len(write_json_lines(job.work_dir / "plan.jsonl", spans))
    documents = [str(path) for path in paths]
    write_json(job.work_dir / "plan.json", {"documents": documents, "tasks": tasks})
    return tasks


@lru_cache(maxsize=1)
def _lines(path: Path, written: int) -> JsonLines:
    return JsonLines(path)


def _span(job: BuildJob, number: int) -> FileSplit:
    """What a task reads; the plan stays on disk, where each worker looks up its own line."""
    path = job.work_dir / "plan.jsonl"
    name, first, count, offset, split = _lines(path, path.stat().st_mtime_ns)[number]
    return FileSplit(
        path=parse_path(name), first=first, count=count, offset=offset, dataset_split=split
    )


_tokenizers = lru_cache(maxsize=1)(Tokenizers.load)


@lru_cache(maxsize=1)
def _encoder(folder: Path, device: str, decoders: int) -> DocumentEncoder:
    both = _tokenizers(folder, device)
    return DocumentEncoder(both.text, both.image, decode_threads=decoders)


@dataclass
class BuildTask:
    """What a worker does for each task; the one step of the pipeline."""

    job: BuildJob

    def __call__(self, data: Any, rank: int, world_size: int) -> int:
        """Make or keep the pieces of task `rank`.

        Returns:
            How many documents it read, those left out included; 0 where the build is stopping.

        Raises:
            CalummaError: a document cannot be read and is not to be skipped, or the disk is full.
        """
        job = self.job
        if job.stop_requested:
            return 0
        span = _span(job, rank)
        tokenizers = _tokenizers(job.tokenizers, job.device)
        encoder = _encoder(job.tokenizers, job.device, job.decode_threads)
        maker = ShardBuilder(encoder, job.out, encoding_fingerprint(tokenizers), job.skip_bad)
        made_of = _made_of(job, rank, span, encoding_fingerprint(tokenizers))
        if (known := self._kept(rank, made_of, maker)) is not None:
            return known
        # On a CPU one thread computes, here and in every worker: how many share the work would
        # otherwise decide in which order floating-point numbers are added up.
        with _one_thread():
            return self._make(rank, span, made_of, maker)

    def _kept(self, rank: int, made_of: list[Any], maker: ShardBuilder) -> int | None:
        """The documents of a task that is done already, its file unchanged and its pieces whole."""
        path = self.job.note(rank)
        note = read_json(path) if path.is_file() else {}
        if note.get("made_of") != made_of or not note["closed"]:
            return None
        for name, key in note["pieces"]:
            known = maker.known(name)
            if known is None or known[0] != key:
                return None
        return int(note["documents"])

    def _make(self, rank: int, span: FileSplit, made_of: list[Any], maker: ShardBuilder) -> int:
        job = self.job
        job.note(rank).unlink(missing_ok=True)
        pieces, documents, closed = [], 0, bool(_state(span))
        for part, (group, dropped) in enumerate(self._groups(rank, span)):
            if job.stop_requested:
                return 0
            name = shard_name(rank, part)
            maker.make(name, group, dropped)
            pieces.append([name, read_json(job.out / (name + NOTE))["key"]])
            documents += len(group) + len(dropped)
            closed = closed and not any(_points_outside(document) for document in group)
        note = {"made_of": made_of, "closed": closed, "documents": documents, "pieces": pieces}
        write_json(job.note(rank), note)
        return documents

    def _groups(
        self, rank: int, span: FileSplit
    ) -> Iterator[tuple[list[Document], list[DroppedDocument]]]:
        """The documents of each piece, with what was left out on the way to them."""
        job = self.job
        duplicates = _duplicates(job, rank)
        check = DocumentFilter(job.cleaning, _on_error(job)).check
        documents: list[Document] = []
        unreadable: list[DroppedDocument] = []
        first = 0

        def filtered() -> tuple[list[Document], list[DroppedDocument]]:
            kept, dropped = [], [*unreadable]
            for place, document in enumerate(documents, start=first):
                drop = duplicates(place, document) or check(document)
                if drop is None:
                    kept.append(document)
                else:
                    dropped.append(drop)
            return kept, dropped

        for document in read_split(span, _on_error(job)):
            if isinstance(document, DroppedDocument):
                unreadable.append(document)
                continue
            documents.append(document)
            if len(documents) == job.piece_documents:
                yield filtered()
                first += len(documents)
                documents.clear()
                unreadable.clear()
        if documents or unreadable:
            yield filtered()


def _on_error(job: BuildJob) -> OnError:
    return "drop" if job.skip_bad else "raise"


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _points_outside(document: Document) -> bool:
    """Whether a picture is a file of its own, which may change when the document's does not."""
    return any(isinstance(p, Image) and p.path is not None for p in document.parts())


def _made_of(job: BuildJob, rank: int, span: FileSplit, fingerprint: str) -> list[Any]:
    """What decides a task's work, pictures in files of their own aside."""
    rules = [job.documents_per_shard, job.skip_bad, job.filters.fingerprint]
    if job.filters.needs_dedup:
        path = duplicate_path(job.work_dir, rank)
        rules.append(sha256(path) if path.is_file() else "")
    where = [str(span.path), span.first, span.count, span.offset, span.dataset_split]
    return [*where, *_state(span), fingerprint, *rules]


def _state(span: FileSplit) -> list[Any]:
    """What changes with a span's file; empty where it does not tell, so that it is read again."""
    try:
        return file_version(span.path)
    except OSError:
        return []  # whoever reads it tells


def _duplicates(job: BuildJob, rank: int) -> Callable[[int, Document], DroppedDocument | None]:
    """What says of a document of a task, by its place, whether it is an earlier one again."""
    if not job.filters.needs_dedup:
        return lambda place, document: None
    known = read_json(duplicate_path(job.work_dir, rank))

    def judge(place: int, document: Document) -> DroppedDocument | None:
        if str(place) not in known:
            return None
        reason, task, earlier = known[str(place)]
        detail = f"of document {earlier} of task {task}, both from 0"
        return DroppedDocument(id=document.id, source=document.source, reason=reason, detail=detail)

    return judge


@dataclass
class SignatureTask:
    """The step before the first, where duplicates are looked for."""

    job: BuildJob

    def __call__(self, data: Any, rank: int, world_size: int) -> int:
        """Write down the signatures of task `rank`; 0, as no document is done by that."""
        job = self.job
        span = _span(job, rank)
        made_of = _made_of(replace(job, cleaning=FilterConfig()), rank, span, "")
        made_of.append(job.filters.fingerprint)
        path = signature_path(job.work_dir, rank)
        if job.stop_requested or (path.is_file() and read_json(path)["made_of"] == made_of):
            return 0
        documents = read_split(span, (lambda error: None) if job.skip_bad else stop)
        write_json(path, {"made_of": made_of, **document_signatures(documents, job.filters)})
        return 0


@dataclass
class DedupTask:
    """The one task between signatures and pieces."""

    job: BuildJob

    def __call__(self, data: Any, rank: int, world_size: int) -> int:
        """Write down which documents are left out as duplicates; 0, as none is done by that."""
        if not self.job.stop_requested:
            write_duplicates(self.job.work_dir, _plan(self.job)["tasks"])
        return 0


def build_stages(job: BuildJob, tasks: int) -> list[tuple[Callable[[Any, int, int], Any], int]]:
    """What is done one after the other, each with the number of its tasks."""
    first: list[tuple[Callable[[Any, int, int], Any], int]] = []
    if job.filters.needs_dedup:
        first = [(SignatureTask(job), tasks), (DedupTask(job), 1)]
    return [*first, (BuildTask(job), tasks)]


def finish_build(job: BuildJob) -> Manifest:
    """Bind the pieces of all tasks together, when every one is done.

    Raises:
        ShardError: a task is not done.
        DocumentError: not one document was found.
    """
    record = _plan(job)
    notes = [job.note(number) for number in range(record["tasks"])]
    found = 0
    for number, note in enumerate(notes):
        if not note.is_file():
            raise ShardError(
                f"{job.out}: task {number} of {len(notes)} is not done; expected all of them. Start "
                "the same command again: what is finished is kept."
            )
        found += read_json(note)["documents"]
    require_documents(record["documents"], found)
    tokenizers = _tokenizers(job.tokenizers, job.device)
    return write_manifest(
        job.out, tokenizers, _pieces(job, notes), cleaning=job.filters.fingerprint
    )


def _plan(job: BuildJob) -> dict[str, Any]:
    record: dict[str, Any] = read_json(job.work_dir / "plan.json")
    return record


def _pieces(job: BuildJob, notes: Iterable[Path]) -> Iterator[Shard]:
    for note in notes:
        for name, _ in read_json(note)["pieces"]:
            yield Shard.from_json(read_json(job.out / (name + NOTE))["piece"])


@dataclass
class FinishTask:
    """`finish` as the one task of a job that waits for all others."""

    job: BuildJob

    def __call__(self, data: Any, rank: int, world_size: int) -> None:
        """Bind the pieces together."""
        finish_build(self.job)
