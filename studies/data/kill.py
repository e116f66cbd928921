"""Kill a shard build five times and compare the result with an undisturbed build.

    python studies/data/kill.py --corpora corpora --out out/kill [--quick] [--ray]

`corpora` has the corpora of `calumma corpus fetch` that `studies/data/README.md` names. The build
runs once undisturbed, and once killed with SIGKILL at five random moments, each time restarted with
another number of workers. Then all bytes are compared and documents counted. The last line is one
JSON object.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from calumma.documents.document import Document, Image, Text
from calumma.documents.readers import read_documents
from calumma.documents.writers import write_parquet
from calumma.files import read_json
from calumma.shards.cache import WORK_DIR
from calumma.shards.reader import ShardReader
from calumma.tokens.image import ImageTokenizer
from calumma.tokens.text import TextTokenizer
from calumma.tokens.vq.config import VQConfig
from calumma.tokens.vq.network import VQModel

PAIRS = ("noto", "fluent-flat", "fluent-3d", "openmoji", "openclipart", "twemoji")
PAGES = (*("gimp-help", "python-scipy-doc", "python-sklearn-doc", "python-skimage-doc"), "libgegl-doc")
TEXTS = ("wordnet",)
WORKERS = (2, 1, 3, 4, 2, 3)
"""Worker processes of each start."""

NUM_BROKEN = 7


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpora", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="one small corpus of each kind")
    parser.add_argument("--ray", action="store_true", help="build once more on a local Ray")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    names = [*PAIRS[:1], *PAGES[-1:]] if args.quick else [*PAIRS, *PAGES, *TEXTS]
    paths = [args.corpora / name for name in names]
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizers = make_tokenizers(args.out / "tokenizers", paths)
    broken = make_broken(args.out / "broken.parquet")
    command = [
        *(sys.executable, "-m", "calumma", "build-shards", *map(str, paths), str(broken)),
        *("--tokenizers", str(tokenizers), "--skip-invalid"),
    ]
    results = study(command, args.out, random.Random(args.seed), with_ray=args.ray)
    rows = sum(pq.ParquetFile(f).metadata.num_rows for p in paths for f in p.glob("*.parquet"))
    print(json.dumps({"corpora": names, "documents_in": rows + NUM_BROKEN, **results}))


def make_tokenizers(folder: Path, paths: list[Path]) -> Path:
    """Train a small text tokenizer, and make an image tokenizer with random weights."""
    torch.manual_seed(0)
    config = VQConfig(
        resolution=32,
        base_channels=32,
        channel_multipliers=(1, 1, 2),
        num_res_blocks=1,
        latent_channels=16,
        code_dim=8,
        num_codes=512,
    )
    texts = (document.text for path in paths for document in read_documents([path]))
    TextTokenizer.train(texts, num_text=4096, num_codes=512).save(folder)
    ImageTokenizer(VQModel(config)).save(folder)
    return folder


def make_broken(path: Path) -> Path:
    """Write documents that cannot be encoded."""
    parts = (Text("not an image"), Image(data=b"not an image"))
    write_parquet(path, [Document(id=str(n), source="b", content=parts) for n in range(NUM_BROKEN)])
    return path


def study(command: list[str], out: Path, generator: random.Random, *, with_ray: bool) -> dict[str, Any]:
    """Build undisturbed, build with kills, and compare."""
    undisturbed, killed = out / "undisturbed", out / "killed"
    for folder in (undisturbed, killed, out / "ray"):
        shutil.rmtree(folder, ignore_errors=True)
    seconds = build(command, undisturbed, "--workers", "2")
    tasks = num_done(undisturbed)
    kills = []
    for number, workers in enumerate(WORKERS[:5]):
        # At a random task of the next sixth, and up to a second later.
        after_tasks = generator.randint(number * tasks // 6, (number + 1) * tasks // 6)
        kills.append(kill_when(command, killed, workers, after_tasks, generator.random()))
        log(f"killed {kills[-1]}")
    build(command, killed, "--workers", str(WORKERS[5]))
    manifest = ShardReader(undisturbed).manifest
    results: dict[str, Any] = {
        "kills": kills,
        "seconds_undisturbed": round(seconds, 1),
        "differing_files": differing(undisturbed, killed),
        "files": len(contents(undisturbed)),
        "sequences": manifest.total.num_sequences,
        "dropped": manifest.dropped,
        "num_tokens": manifest.total.num_tokens,
        "images": manifest.total.num_images,
    }
    if with_ray:
        results["seconds_ray"] = round(build(command, out / "ray", "--executor", "ray"), 1)
        results["differing_files_ray"] = differing(undisturbed, out / "ray")
    return results


def build(command: list[str], out: Path, *more: str) -> float:
    """Run a build to its end and return the seconds."""
    started = time.monotonic()
    subprocess.run([*command, "--out", str(out), *more], check=True)
    return time.monotonic() - started


def num_done(out: Path) -> int:
    """Return the number of finished tasks."""
    records = [read_json(path) for path in (out / WORK_DIR / "tasks").glob("*.json")]
    return sum(record["num_documents"] is not None for record in records)


def kill_when(command: list[str], out: Path, workers: int, tasks: int, seconds: float) -> dict[str, Any]:
    """Kill a build some seconds after a number of tasks, and count workers that survive it."""
    process = subprocess.Popen(
        [*command, "--out", str(out), "--workers", str(workers)], start_new_session=True, stderr=subprocess.DEVNULL
    )
    while num_done(out) < tasks and process.poll() is None:
        time.sleep(0.05)
    time.sleep(seconds)
    assert process.poll() is None, "the build finished before it was killed"
    os.kill(process.pid, signal.SIGKILL)
    killed = time.monotonic()
    process.wait()
    while (alive := in_session(process.pid)) and time.monotonic() < killed + 30:
        time.sleep(0.05)
    return {
        "workers": workers,
        "tasks_done": num_done(out),
        "workers_exited_after_seconds": round(time.monotonic() - killed, 2),
        "orphans": len(alive),
    }


def in_session(session: int) -> list[int]:
    """Return the ids of the running processes of a session."""
    process_ids = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            process_ids.append(int(folder.name))
    return process_ids


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files of shards by name, without the build folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != WORK_DIR}


def differing(one: Path, other: Path) -> list[str]:
    """Return the names of files that differ between two folders."""
    first, second = contents(one), contents(other)
    return sorted(n for n in {*first, *second} if first.get(n) != second.get(n))


def log(line: str) -> None:
    """Print a line of progress."""
    print(line, flush=True)


if __name__ == "__main__":
    main()
