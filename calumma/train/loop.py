"""The one loop: take up, step, log, save, stop."""

from __future__ import annotations

import contextlib
import io
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TextIO

from calumma.checkpoints.run import (
    Checkpoint,
    Keep,
    Saved,
    newest_checkpoint,
    save_checkpoint,
)
from calumma.files import make_folder, write_text, writing
from calumma.runtime import STOP
from calumma.train.world import ALONE, World

METRICS_NAME = "metrics.jsonl"


class Learner(Protocol):
    """What the loop drives: a decoder on rows of ids, or an image tokenizer on pixels."""

    def step(self, number: int) -> dict[str, float]:
        """Do step `number` (from 0) and say what it saw; "num_tokens" gives the rate."""
        ...

    def state(self) -> dict[str, Any]:
        """All that decides what comes next: tensors, numbers, and lists and dicts of them."""
        ...

    def restore(self, saved: Saved) -> None:
        """Go back to a state."""
        ...


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How long, how often saved, and whose run it is."""

    steps: int
    save_every: int
    fingerprint: str
    """Of everything that decides the run's course; a checkpoint of another is refused."""

    keep: Keep = field(default_factory=Keep)


Progress = Callable[[int, Mapping[str, float]], None]


def run_loop(
    learner: Learner,
    run: Path,
    config: LoopConfig,
    progress: Progress = lambda step, metrics: None,
    world: World = ALONE,
) -> None:
    """Train from the newest checkpoint, or from the start, to the last step.

    Every step is one line of `metrics.jsonl`; lines of steps done again after a kill replace the
    lost ones, so the file always tells of one undisturbed run. All ranks take the same steps and
    stop at the same one; the first alone writes.

    Raises:
        Interrupted: a signal asked to stop; the last step done is saved.
    """
    make_folder(run)
    taken_up = newest_checkpoint(run, config.fingerprint)
    first = 0
    if taken_up is not None:
        learner.restore(taken_up)
        first = taken_up.step
    progress(first, {})
    with writing(run), _metrics_log(run / METRICS_NAME, first, world) as log:
        waited = time.perf_counter()
        for number in range(first, config.steps):
            started = time.perf_counter()
            metrics = learner.step(number)
            ended = time.perf_counter()
            seen = {"step": number + 1, **metrics, "seconds": ended - started}
            if "num_tokens" in metrics:
                seen["tokens_per_second"] = metrics["num_tokens"] / (ended - waited)
            log.write(_line(seen))
            waited = ended
            done = number + 1
            # Asked once: a signal that comes after this line waits for the next step's save.
            stopping = world.any(STOP.wanted)
            if done % config.save_every == 0 or done == config.steps or stopping:
                log.flush()
                checkpoint = Checkpoint(done, learner.state())
                save_checkpoint(run, checkpoint, config.fingerprint, config.keep)
            progress(done, seen)
            if stopping:
                STOP.wanted = True
                STOP.check(f"{run} holds step {done} of {config.steps}")


def _metrics_log(path: Path, steps: int, world: World) -> contextlib.AbstractContextManager[TextIO]:
    """The file of metrics with its first `steps` lines, to write on; nowhere but in the first."""
    world.wait()  # until all have read the checkpoint that the first may drop
    if not world.first:
        return io.StringIO()
    _trim_metrics(path, steps)
    return path.open("a", encoding="utf-8")


def _line(seen: Mapping[str, float]) -> str:
    """One line of metrics; JSON has no word for what is not finite but null."""
    told = {name: value if math.isfinite(value) else None for name, value in seen.items()}
    return json.dumps(told) + "\n"


def _trim_metrics(path: Path, steps: int) -> None:
    """Keep the first `steps` lines; what a killed run wrote beyond its checkpoint goes."""
    if path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        write_text(path, "".join(lines[:steps]))
