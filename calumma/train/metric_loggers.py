"""Metric loggers: TensorBoard and Weights & Biases, both optional extras."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from calumma.errors import ConfigError
from calumma.files import fingerprint
from calumma.train.stability import LoggedMetrics


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """Where a run logs its metrics, besides `metrics.jsonl`."""

    report_interval_seconds: float = 30.0
    """Seconds between two updates of the run's `report.html`; 0 writes none."""

    tensorboard: bool = False
    """Whether to write RUN/tensorboard (extra `tensorboard`)."""

    wandb: bool = False
    """Whether to log to Weights & Biases (extra `wandb`); WANDB_MODE=offline needs no network."""

    wandb_project: str = "calumma"
    """Project of the run in Weights & Biases."""


class MetricLogger(Protocol):
    """A destination of metrics."""

    def log(self, step: int, metrics: LoggedMetrics) -> None:
        """Log the metrics of a step; steps are repeated after a rollback."""
        ...

    def close(self) -> None:
        """Flush and close."""
        ...


def open_metric_loggers(config: LogConfig, run: Path, step: int) -> list[MetricLogger]:
    """Open the configured loggers; values logged after `step` are superseded.

    Raises:
        ConfigError: one is not installed.
    """
    loggers: list[MetricLogger] = []
    if config.tensorboard:
        loggers.append(_TensorBoardLogger(run, step))
    if config.wandb:
        loggers.append(_WandbLogger(run, config.wandb_project))
    return loggers


class _TensorBoardLogger:
    """Writes metrics to the folder `tensorboard` of a run."""

    def __init__(self, run: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError as error:
            raise ConfigError(_missing("tensorboard")) from error
        self.writer: Any = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def log(self, step: int, metrics: LoggedMetrics) -> None:
        for name, value in metrics.items():
            if value is not None and name != "step":
                self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class _WandbLogger:
    """Sends metrics to Weights & Biases."""

    def __init__(self, run: Path, project: str) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ConfigError(_missing("wandb")) from error
        # A folder is one run, however often it is resumed.
        run_id = fingerprint(str(run.resolve()))
        self.run: Any = wandb.init(project=project, name=run.name, id=run_id, resume="allow", dir=str(run))
        # wandb's own step never decreases, but ours does after a rollback.
        self.run.define_metric("*", step_metric="step")

    def log(self, step: int, metrics: LoggedMetrics) -> None:
        self.run.log({name: value for name, value in metrics.items() if value is not None})

    def close(self) -> None:
        self.run.finish()


def _missing(name: str) -> str:
    return (
        f"log.{name}=true needs {name}, which is not installed. Install it with `pip install "
        f"'calumma[{name}]'`, or remove log.{name}."
    )
