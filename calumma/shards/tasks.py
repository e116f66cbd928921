"""Building shards as numbered tasks that any number of workers can share.

A task is one split of a document file. The splits depend only on the files, and each task writes
its own shards, so the result does not depend on which worker runs which task, or how often. What
only the build needs is in `.build/`:

    .build/plan.json           the paths given, and the number of tasks
    .build/plan.jsonl          the split of each task, one per line
    .build/tasks/00000.json    the record of each task (`cache`)
    .build/stop                exists while the build is stopping
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any, Literal

import torch

from calumma.documents.column_account import ColumnAccount
from calumma.documents.document import Document
from calumma.documents.document_filter import DocumentFilter, FilterConfig
from calumma.documents.error_policy import DroppedDocument, OnError
from calumma.documents.file_splits import FileSplit, read_split, require_documents, split_files
from calumma.documents.paths import absolute_name, file_version, parse_path
from calumma.errors import ShardError
from calumma.files import JsonLines, make_folder, read_json, sha256, write_json, write_json_lines
from calumma.hub import find_model_folder
from calumma.runtime import STOP
from calumma.shards.cache import WORK_DIR, BuildCache, TaskRecord
from calumma.shards.dedup import document_signatures, duplicate_path, signature_path, write_duplicates
from calumma.shards.encode import DocumentEncoder
from calumma.shards.manifest import Manifest, encoding_fingerprint, require_current_version, write_manifest
from calumma.shards.shard_builder import DocumentGroup, ShardBuilder, build_task
from calumma.tokens.folder import Tokenizers
from calumma.tokens.vq.inference import Precision

DOCUMENTS_PER_SHARD = 512


@lru_cache(maxsize=1)
def _cached_encoder(
    folder: Path, versions: tuple[Any, ...], device: str, precision: Precision, decode_threads: int
) -> DocumentEncoder:
    tokenizers = Tokenizers.load(folder, device, image_precision=precision)
    return DocumentEncoder(tokenizers, decode_threads=decode_threads)


def _load_encoder(job: "BuildJob") -> DocumentEncoder:
    """Return the encoder of a job, the one of the task before if no file of its tokenizers has changed."""
    folder = find_model_folder(job.tokenizers).absolute()
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    versions = tuple((path.name, *file_version(path)) for path in files)
    return _cached_encoder(folder, versions, job.device, job.image_precision, job.decode_threads)


@dataclass(frozen=True, kw_only=True)
class BuildJob:
    """The settings of a build, in plain values that are sent to other processes and machines."""

    out: Path
    """The shard folder."""

    tokenizers: Path
    """The folder of both tokenizers."""

    documents_per_shard: int = DOCUMENTS_PER_SHARD
    """Number of documents in a shard: the work lost at most when a worker is killed."""

    on_error: OnError = "raise"
    """Whether a document that cannot be read or encoded stops the build or is dropped."""

    device: str = "cpu"
    """The device that encodes images."""

    image_precision: Precision = "float32"
    """Precision of the image encoder; 16 bits are quicker and change about one code in a thousand."""

    decode_threads: int = 1
    """Threads per worker that decode images."""

    filters: FilterConfig = field(default_factory=FilterConfig)
    """Which documents are dropped."""

    ignored_columns: tuple[str, ...] = ()
    """Columns that are not read; an image or a text in any other one must be in a document."""

    @property
    def work_dir(self) -> Path:
        """The folder of what only the build needs."""
        return self.out / WORK_DIR

    @property
    def stop_requested(self) -> bool:
        """Whether this build was asked to stop."""
        return STOP.is_requested or (self.work_dir / "stop").exists()

    def request_stop(self) -> None:
        """Ask all workers to stop after their current shard."""
        (self.work_dir / "stop").touch()


def write_plan(job: BuildJob, paths: Sequence[Path | str]) -> int:
    """Split the document files into tasks, write the plan, and return the number of tasks.

    Raises:
        DocumentError: a path holds no document files.
        OutputError: the folder cannot be written.
        ShardError: the folder holds shards of another format version.
    """
    require_current_version(make_folder(job.out))
    make_folder(job.work_dir / "tasks")
    (job.work_dir / "stop").unlink(missing_ok=True)
    splits = (
        [absolute_name(split.path), split.first, split.count, split.offset, split.dataset_split]
        for split in split_files(paths, job.documents_per_shard)
    )
    num_tasks = len(write_json_lines(job.work_dir / "plan.jsonl", splits))
    documents = [str(path) for path in paths]
    write_json(job.work_dir / "plan.json", {"documents": documents, "tasks": num_tasks})
    return num_tasks


@lru_cache(maxsize=1)
def _cached_plan(path: Path, modified: int) -> JsonLines:
    return JsonLines(path)


def _read_plan(job: BuildJob, task: int) -> FileSplit:
    """Return the split of a task, from the line of the plan on disk."""
    path = job.work_dir / "plan.jsonl"
    name, first, number, offset, dataset = _cached_plan(path.absolute(), path.stat().st_mtime_ns)[task]
    return FileSplit(path=parse_path(name), first=first, count=number, offset=offset, dataset_split=dataset)


@dataclass(frozen=True)
class BuildStage:
    """One stage of a build; datatrove's executors call it with the number of each task."""

    name: Literal["signatures", "dedup", "build", "finish"]
    job: BuildJob
    num_tasks: int

    def __call__(self, data: Any, rank: int, world_size: int) -> int:
        """Run task `rank`; return the number of documents finished, 0 if the build is stopping.

        Raises:
            CalummaError: a document cannot be read under "raise", or the disk is full.
        """
        if self.name == "finish":
            finish_build(self.job)
        elif not self.job.stop_requested:
            if self.name == "build":
                return _build(self.job, rank)
            if self.name == "signatures":
                _write_signatures(self.job, rank)
            else:
                write_duplicates(self.job.work_dir, _plan_record(self.job)["tasks"])
        return 0


def build_stages(job: BuildJob, num_tasks: int) -> list[BuildStage]:
    """Return the stages of a build in order, without "finish"."""
    dedup = [BuildStage("signatures", job, num_tasks), BuildStage("dedup", job, 1)]
    return [*(dedup if job.filters.needs_dedup else ()), BuildStage("build", job, num_tasks)]


def _build(job: BuildJob, task: int) -> int:
    """Build the shards of a task, or keep those that are up to date; return the documents read."""
    split, cache = _read_plan(job, task), BuildCache(job.out)
    encoder = _load_encoder(job)
    encoding = encoding_fingerprint(encoder.tokenizers.fingerprints)
    inputs = _task_inputs(job, task, split, encoding)
    old = cache.lookup(task)
    if old and old.inputs == inputs and old.is_self_contained and old.num_documents is not None:
        return old.num_documents
    record = TaskRecord(inputs=inputs, shards=old.shards if old else {})
    record.is_self_contained = bool(_file_version(split))
    builder = ShardBuilder(encoder, job.out, encoding, job.on_error)
    # On a CPU every worker computes on one thread: the number of threads decides the order in
    # which floating-point numbers are added up.
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        groups = _read_groups(job, task, split, record)
        return build_task(cache, task, record, builder, groups, lambda: job.stop_requested)
    finally:
        torch.set_num_threads(num_threads)


def _read_groups(job: BuildJob, task: int, split: FileSplit, record: TaskRecord) -> Iterator[DocumentGroup]:
    """Yield the documents of each shard of a task, with those dropped between them.

    The account of their columns is stored in `record`.

    Raises:
        DocumentError: an image or a text of a document is left over, under any `on_error`.
    """
    account = ColumnAccount()
    needs_dedup = job.filters.needs_dedup
    duplicates = read_json(duplicate_path(job.work_dir, task)) if needs_dedup else {}
    document_filter = DocumentFilter(job.filters, job.on_error)
    kept: list[Document] = []
    dropped: list[DroppedDocument] = []
    indices = count()
    for document in read_split(split, job.on_error, job.ignored_columns):
        if isinstance(document, DroppedDocument):
            dropped.append(document)
            continue
        document.account.require_complete(f"{split.path}, document {document.id}")
        account.update(document.account)
        index = next(indices)
        if str(index) in duplicates:
            reason, first_task, first = duplicates[str(index)]
            detail = f"of document {first} of task {first_task}, both from 0"
            dropped.append(DroppedDocument(id=document.id, source=document.source, reason=reason, detail=detail))
        elif (drop := document_filter.check(document)) is not None:
            dropped.append(drop)
        else:
            kept.append(document)
        if (index + 1) % job.documents_per_shard == 0:
            yield kept, dropped
            kept, dropped = [], []
    record.columns = account.to_json()
    if kept or dropped:
        yield kept, dropped


def _task_inputs(job: BuildJob, task: int, split: FileSplit, encoding: str) -> list[Any]:
    """Return everything that decides a task's output, except images in files of their own."""
    rules: list[Any] = [job.documents_per_shard, job.on_error, job.filters.fingerprint, *job.ignored_columns]
    if job.filters.needs_dedup:
        path = duplicate_path(job.work_dir, task)
        rules.append(sha256(path) if path.is_file() else "")
    where = [str(split.path), split.first, split.count, split.offset, split.dataset_split]
    return [*where, *_file_version(split), encoding, *rules]


def _file_version(split: FileSplit) -> list[Any]:
    """Return values that change with a split's file; empty if it has none and is read again."""
    try:
        return file_version(split.path)
    except OSError:
        return []  # reading the split raises a message about the file


def _write_signatures(job: BuildJob, task: int) -> None:
    split = _read_plan(job, task)
    inputs = _task_inputs(replace(job, filters=FilterConfig()), task, split, "")
    inputs.append(job.filters.fingerprint)
    path = signature_path(job.work_dir, task)
    if not path.is_file() or read_json(path)["inputs"] != inputs:
        read = read_split(split, job.on_error, job.ignored_columns)
        documents = (document for document in read if isinstance(document, Document))
        write_json(path, {"inputs": inputs, **document_signatures(documents, job.filters)})


def finish_build(job: BuildJob) -> Manifest:
    """Write the manifest of the shards of all tasks.

    Raises:
        ShardError: a task is not complete.
        DocumentError: no document was found.
    """
    plan, cache = _plan_record(job), BuildCache(job.out)
    found, account = 0, ColumnAccount()
    for task in range(plan["tasks"]):
        record = cache.read(task)
        if record is None or record.num_documents is None:
            raise ShardError(
                f"{job.out}: task {task} of {plan['tasks']} is not complete; expected all of them. "
                "Repeat the same command: finished shards are kept."
            )
        found += record.num_documents
        account.update(ColumnAccount.from_json(record.columns))
    require_documents(plan["documents"], found)
    tokenizers = _load_encoder(job).tokenizers
    fingerprints = {**tokenizers.fingerprints, "filters": job.filters.fingerprint}
    shards = cache.shards(plan["tasks"])
    return write_manifest(job.out, tokenizers.text.vocabulary, fingerprints, shards, account)


def _plan_record(job: BuildJob) -> dict[str, Any]:
    record: dict[str, Any] = read_json(job.work_dir / "plan.json")
    return record
