"""Metric loggers, with fakes in place of TensorBoard and Weights & Biases."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from calumma.errors import ConfigError
from calumma.train.metric_loggers import LogConfig, open_metric_loggers


class Fake:
    """Notes what it is called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        def called(*arguments: Any, **named: Any) -> Fake:
            self.calls.append((name, arguments, named))
            return self

        return called


def given(monkeypatch: pytest.MonkeyPatch, name: str, **members: Any) -> None:
    made = ModuleType(name)
    for member, value in members.items():
        setattr(made, member, value)
    monkeypatch.setitem(sys.modules, name, made)


METRICS = {"step": 7, "loss": 2.5, "log_z": None}


def test_tensorboard_gets_each_finite_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake()
    given(monkeypatch, "torch.utils.tensorboard.writer", SummaryWriter=fake.made)
    given(monkeypatch, "torch.utils.tensorboard")
    [writer] = open_metric_loggers(LogConfig(tensorboard=True), tmp_path, 6)
    writer.log(7, METRICS)
    writer.close()
    assert fake.calls == [
        ("made", (str(tmp_path / "tensorboard"),), {"purge_step": 7}),
        ("add_scalar", ("loss", 2.5, 7), {}),
        ("close", (), {}),
    ]


def test_wandb_takes_the_same_folder_for_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake()
    given(monkeypatch, "wandb", init=fake.init)
    for _ in range(2):
        [writer] = open_metric_loggers(LogConfig(wandb=True, wandb_project="lizards"), tmp_path, 0)
        writer.log(7, METRICS)
        writer.close()
    first, second = fake.calls[:4], fake.calls[4:]
    assert first == second
    assert first[0][2] == {
        "project": "lizards",
        "name": tmp_path.name,
        "id": first[0][2]["id"],
        "resume": "allow",
        "dir": str(tmp_path),
    }
    assert len(first[0][2]["id"]) == 12
    assert first[1:] == [
        ("define_metric", ("*",), {"step_metric": "step"}),
        ("log", ({"step": 7, "loss": 2.5},), {}),
        ("finish", (), {}),
    ]


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_package_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = {"tensorboard": "torch.utils.tensorboard.writer", "wandb": "wandb"}[name]
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(ConfigError) as caught:
        open_metric_loggers(LogConfig(**{name: True}), tmp_path, 0)
    assert str(caught.value) == (
        f"log.{name}=true needs {name}, which is not installed. Install it with "
        f"`pip install 'calumma[{name}]'`, or remove log.{name}."
    )


def test_none_is_opened_by_default(tmp_path: Path) -> None:
    assert open_metric_loggers(LogConfig(), tmp_path, 0) == []
