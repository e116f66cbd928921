"""`calumma build-shards`: documents to shards of ids."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from calumma.cli.command import Subparsers, add_command
from calumma.text_format import pluralize

if TYPE_CHECKING:
    from calumma.shards.manifest import Manifest
    from calumma.shards.tasks import BuildJob

EXECUTORS = ("local", "slurm", "ray")

_EXAMPLES = """\
  calumma build-shards docs/*.parquet --tokenizers tokenizers --out shards
  calumma build-shards web.jsonl --tokenizers tokenizers --out shards --skip-bad --workers 8
  calumma build-shards web --tokenizers tok --out shards --executor slurm --slurm slurm.toml"""


def add_build_shards_command(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = add_command(
        subparsers,
        "build-shards",
        "DOCS... --tokenizers DIR --out DIR [--skip-bad] [--clean FILE]",
        "Encode documents into shards of ids.\n"
        "Killed and started again, with more or fewer workers, it ends in the same bytes.",
        _EXAMPLES,
    )
    parser.add_argument("documents", nargs="+", metavar="DOCS", help="files, folders or globs")
    parser.add_argument(
        "--tokenizers", type=Path, required=True, metavar="DIR", help="both tokenizers"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the shards' folder")
    parser.add_argument(
        "--skip-bad",
        action="store_true",
        help="leave unreadable documents out and list them in quarantine.jsonl",
    )
    parser.add_argument(
        "--piece",
        type=int,
        default=512,
        metavar="N",
        help="documents in a piece: the most that a kill can lose (512)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="tasks done at a time (one a processor; one where a GPU encodes)",
    )
    parser.add_argument(
        "--executor",
        choices=EXECUTORS,
        default="local",
        metavar="WHO",
        help="local, slurm or ray: who does the tasks (local)",
    )
    parser.add_argument(
        "--slurm", type=Path, metavar="FILE", help="TOML: partition, time, cpus, gpus, memory_gb"
    )
    parser.add_argument(
        "--clean", type=Path, metavar="FILE", help="TOML: which documents are left out, and why"
    )
    parser.add_argument("--device", default="cpu", metavar="NAME", help="cpu, cuda or auto (cpu)")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    """Build, or go on building."""
    from calumma.documents.document_filter import FilterConfig
    from calumma.documents.scorers import load_scorer
    from calumma.errors import ConfigError
    from calumma.files import require_local
    from calumma.runtime import resolve_device
    from calumma.shards.tasks import BuildJob
    from calumma.toml_config import load_config

    if args.piece < 1 or (args.workers is not None and args.workers < 1):
        raise ConfigError(
            f"--piece {args.piece} --workers {args.workers}; expected at least 1 of each. Leave them "
            "out for what is usual."
        )
    require_local(args.out)
    local = args.executor == "local"
    device = str(resolve_device(args.device)) if local else args.device
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    workers = args.workers or (processors if device == "cpu" else 1)
    job = BuildJob(
        out=args.out if local else args.out.resolve(),
        tokenizers=args.tokenizers if local else args.tokenizers.resolve(),
        documents_per_shard=args.piece,
        skip_bad=args.skip_bad,
        device=device,
        decode_threads=max(1, processors // workers) if local else 1,
        filters=load_config(FilterConfig, args.clean, []) if args.clean else FilterConfig(),
    )
    for rule in job.filters.scores:
        load_scorer(rule.function)
    _require_tokenizers(args.tokenizers)
    if args.executor == "slurm":
        _submit(args, job, args.workers or -1)
        return
    _tell(job, _built(args, job, workers))


def _require_tokenizers(folder: Path) -> None:
    """Tell of broken tokenizers at once, before any worker begins."""
    from calumma.tokens.folder import Tokenizers

    Tokenizers.load(folder)


def _built(args: argparse.Namespace, job: BuildJob, workers: int) -> Manifest:
    from calumma.cli.progress import ProgressBar
    from calumma.shards.executors import build_local, build_on_ray

    if args.executor == "ray":
        gpus = 0 if job.device == "cpu" else 1
        return build_on_ray(job, args.documents, workers, gpus=gpus)
    with ProgressBar("shards", None, "documents") as bar:
        return build_local(job, args.documents, workers, bar.advance)


def _submit(args: argparse.Namespace, job: BuildJob, workers: int) -> None:
    from calumma.errors import ConfigError
    from calumma.shards.executors import SlurmConfig, submit_to_slurm
    from calumma.toml_config import load_config

    if args.slurm is None:
        raise ConfigError(
            "--executor slurm without --slurm FILE; expected a TOML file that names at least the "
            'partition. Write one line into it: partition = "NAME".'
        )
    config = load_config(SlurmConfig, args.slurm, [])
    *before, last = submit_to_slurm(job, args.documents, workers, config)
    print(f"jobs {', '.join(before)}; then job {last} writes {job.out / 'manifest.json'}")
    print(
        f"logs: {job.work_dir / 'slurm'}/*/slurm_logs; if a job fails, give the same command again"
    )


def _tell(job: BuildJob, manifest: Manifest) -> None:
    from calumma.shards.format import QUARANTINE_NAME

    print(
        f"{job.out}: {manifest.num_sequences} sequences, {manifest.num_tokens} ids in "
        f"{pluralize(len(manifest.shards), 'piece')}; fingerprint {manifest.fingerprint}"
    )
    for reason, count in manifest.dropped.items():
        print(f"left out {count} ({reason}), listed in {job.out / QUARANTINE_NAME}")
