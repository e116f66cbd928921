"""Metrics to other people's programs: TensorBoard, Weights & Biases. Both are extras."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from calumma.errors import ConfigError
from calumma.files import fingerprint
from calumma.train.stability import Metrics


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """Where a run tells of itself, beside `metrics.jsonl`."""

    report_interval_seconds: float = 30.0
    """Seconds between two writings of the run's `report.html`; 0 writes none."""

    tensorboard: bool = False
    """Whether to write RUN/tensorboard (extra `tensorboard`)."""

    wandb: bool = False
    """Whether to write to Weights & Biases (extra `wandb`); without a network, set WANDB_MODE to
    offline."""

    wandb_project: str = "calumma"


class MetricLogger(Protocol):
    """One such program."""

    def log(self, step: int, told: Metrics) -> None:
        """Write what a step told; steps may come again after a roll-back."""
        ...

    def close(self) -> None:
        """Write what is left."""
        ...


def open_metric_loggers(config: LogConfig, run: Path, step: int) -> list[MetricLogger]:
    """The writers that a config asks for.

    Args:
        config: which.
        run: the run's folder.
        step: steps done; what was written of later ones counts no more.

    Raises:
        ConfigError: one is not installed.
    """
    made: list[MetricLogger] = []
    if config.tensorboard:
        made.append(_TensorBoard(run, step))
    if config.wandb:
        made.append(_Wandb(run, config.wandb_project))
    return made


class _TensorBoard:
    def __init__(self, run: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError as error:
            raise ConfigError(_absent("tensorboard")) from error
        self.writer: Any = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def log(self, step: int, told: Metrics) -> None:
        for name, value in told.items():
            if value is not None and name != "step":
                self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class _Wandb:
    def __init__(self, run: Path, project: str) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ConfigError(_absent("wandb")) from error
        # The same folder is the same run, however often it is taken up.
        known = fingerprint(str(run.resolve()))
        self.run: Any = wandb.init(
            project=project, name=run.name, id=known, resume="allow", dir=str(run)
        )
        # Its own count of steps never falls, and ours does after a roll-back.
        self.run.define_metric("*", step_metric="step")

    def log(self, step: int, told: Metrics) -> None:
        self.run.log({name: value for name, value in told.items() if value is not None})

    def close(self) -> None:
        self.run.finish()


def _absent(name: str) -> str:
    return (
        f"log.{name}=true, and {name} is not installed; expected it. Install it with `pip install "
        f"'calumma[{name}]'`, or leave log.{name} out."
    )
