"""`calumma build-shards`: encode documents into shards of token ids."""

import argparse
import os
from collections.abc import Sequence
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
  calumma build-shards web.jsonl --tokenizers tokenizers --out shards --skip-invalid --workers 8
  calumma build-shards web --tokenizers tok --out shards --executor slurm --slurm slurm.toml"""


def add_build_shards_command(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "build-shards",
        "DOCS... --tokenizers DIR --out DIR [--skip-invalid] [--filter FILE]",
        "Encode documents into shards of token ids.\n"
        "The same command resumes an interrupted build; any number of workers writes the same "
        "bytes.",
        _EXAMPLES,
    )
    parser.add_argument("documents", nargs="+", metavar="DOCS", help="files, folders or globs")
    parser.add_argument("--tokenizers", type=Path, required=True, metavar="DIR", help="folder of both tokenizers")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the shard folder")
    parser.add_argument(
        "--skip-invalid",
        action="store_true",
        help="drop documents that cannot be read and list them in quarantine.jsonl",
    )
    parser.add_argument(
        "--shard-documents",
        type=int,
        default=512,
        metavar="N",
        help="documents per shard: the work lost at most when a worker is killed (512)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="tasks that run at a time (default: one per processor; one if a GPU encodes)",
    )
    parser.add_argument(
        "--executor",
        choices=EXECUTORS,
        default="local",
        metavar="NAME",
        help="where the tasks run: local, slurm or ray (local)",
    )
    parser.add_argument("--slurm", type=Path, metavar="FILE", help="TOML: partition, time, cpus, gpus, memory_gb")
    parser.add_argument(
        "--ignore-columns",
        default="",
        metavar="A,B",
        help="columns not to read; every other image and text must be in a document",
    )
    parser.add_argument("--filter", type=Path, metavar="FILE", help="TOML: rules by which documents are dropped")
    parser.add_argument("--device", default="cpu", metavar="NAME", help="cpu, cuda or auto (cpu)")
    parser.add_argument(
        "--image-precision",
        choices=("float32", "float16", "bfloat16"),
        default="float32",
        metavar="NAME",
        help="of the image encoder: float32, float16 or bfloat16 (float32)",
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from calumma.documents.document_filter import FilterConfig
    from calumma.documents.scorers import load_scorer
    from calumma.errors import ConfigError
    from calumma.files import require_local
    from calumma.hub import find_model_folder
    from calumma.runtime import resolve_device
    from calumma.shards.tasks import BuildJob
    from calumma.tokens.folder import Tokenizers
    from calumma.toml_config import load_config

    if args.shard_documents < 1 or (args.workers is not None and args.workers < 1):
        raise ConfigError(
            f"--shard-documents {args.shard_documents} --workers {args.workers}; expected at least "
            "1 of each. Omit them for the defaults."
        )
    require_local(args.out)
    is_local = args.executor == "local"
    device = str(resolve_device(args.device)) if is_local else args.device
    num_cpus = _num_cpus()
    num_workers = args.workers or (num_cpus if device == "cpu" else 1)
    job = BuildJob(
        out=args.out if is_local else args.out.resolve(),
        tokenizers=args.tokenizers if is_local else find_model_folder(args.tokenizers).resolve(),
        documents_per_shard=args.shard_documents,
        on_error="drop" if args.skip_invalid else "raise",
        device=device,
        image_precision=args.image_precision,
        decode_threads=max(1, num_cpus // num_workers) if is_local else 1,
        filters=load_config(FilterConfig, args.filter, []) if args.filter else FilterConfig(),
        ignored_columns=tuple(filter(None, args.ignore_columns.split(","))),
    )
    # Errors in scorers and tokenizers are reported here, before any worker starts.
    for rule in job.filters.scores:
        load_scorer(rule.function)
    Tokenizers.load(args.tokenizers)
    if args.executor == "slurm":
        _submit(args, job, args.workers or -1)
    else:
        _print_summary(job, _build(args, job, num_workers))


def build_on_this_machine(documents: Sequence[str], tokenizers: Path, out: Path) -> None:
    """Build shards with the default options, or resume, and print a summary."""
    from calumma.cli.progress import ProgressBar
    from calumma.shards.executors import build_local
    from calumma.shards.tasks import BuildJob

    num_cpus = _num_cpus()
    job = BuildJob(out=out, tokenizers=tokenizers)
    with ProgressBar("shards", None, "documents") as bar:
        manifest = build_local(job, documents, num_cpus, bar.advance)
    _print_summary(job, manifest)


def _num_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


def _build(args: argparse.Namespace, job: "BuildJob", num_workers: int) -> "Manifest":
    if args.executor == "ray":
        from calumma.shards.cluster import build_on_ray

        gpus = 0 if job.device == "cpu" else 1
        return build_on_ray(job, args.documents, num_workers, gpus=gpus)
    from calumma.cli.progress import ProgressBar
    from calumma.shards.executors import build_local

    with ProgressBar("shards", None, "documents") as bar:
        return build_local(job, args.documents, num_workers, bar.advance)


def _submit(args: argparse.Namespace, job: "BuildJob", num_workers: int) -> None:
    from calumma.errors import ConfigError
    from calumma.shards.cluster import SlurmConfig, submit_to_slurm
    from calumma.toml_config import load_config

    if args.slurm is None:
        raise ConfigError(
            "--executor slurm without --slurm FILE; expected a TOML file that names at least the "
            'partition. Write one line into it: partition = "NAME".'
        )
    config = load_config(SlurmConfig, args.slurm, [])
    *task_jobs, last = submit_to_slurm(job, args.documents, num_workers, config)
    print(f"jobs {', '.join(task_jobs)}; then job {last} writes {job.out / 'manifest.json'}")
    print(f"logs: {job.work_dir / 'slurm'}/*/slurm_logs; if a job fails, repeat the same command")


def _print_summary(job: "BuildJob", manifest: "Manifest") -> None:
    from calumma.shards.format import QUARANTINE_NAME

    print(
        f"{job.out}: {manifest.total.num_sequences} sequences, {manifest.total.num_tokens} tokens "
        f"in {pluralize(len(manifest.shards), 'shard')}; fingerprint {manifest.fingerprint}"
    )
    for line in manifest.account.lines():
        print(line)
    for reason, count in manifest.dropped.items():
        print(f"dropped {count} ({reason}), listed in {job.out / QUARANTINE_NAME}")
