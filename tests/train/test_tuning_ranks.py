"""Two ranks fine-tune adapters and train by DPO as one process does."""

from pathlib import Path

import pytest
import torch

from calumma.checkpoints.model_folder import ModelComponents, save_model
from calumma.documents.preferences import write_preferences
from tests.launch import free_ports, run_ranks
from tests.train import tuning_ranks
from tests.train.runs import logged_metrics
from tests.train.test_dpo import PAIRS


@pytest.fixture(scope="module")
def folder(model_parts: ModelComponents, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Do the runs in one process and with two ranks."""
    made = tmp_path_factory.mktemp("tuning")
    save_model(made / "model", model_parts)
    write_preferences(made / "pairs.jsonl", PAIRS)
    tuning_ranks.tune(made, shards, 1)
    tuning_ranks.prefer(made, 1)
    first, second = free_ports(2)
    run_ranks(2, tuning_ranks.tune_and_prefer, made, shards, second, port=first, logs=made)
    return made


@pytest.mark.parametrize("name", ["tuned", "preferred"])
def test_two_ranks_train_what_one_process_trains(folder: Path, name: str) -> None:
    lines = [logged_metrics(folder / size / name) for size in ("1", "2")]
    for alone, shared in zip(*lines, strict=True):
        for key in ("loss", "grad_norm"):
            assert shared[key] == pytest.approx(alone[key], abs=1e-4), key
    one, two = (torch.load(folder / size / f"{name}.pt", weights_only=True) for size in "12")
    assert one.keys() == two.keys()
    for key, tensor in one.items():
        assert torch.allclose(tensor, two[key], atol=1e-4), key


def test_adapters_of_ranks_are_saved(folder: Path) -> None:
    sizes = [(folder / n / "tuned" / "adapter" / "adapter_model.safetensors").stat().st_size for n in "12"]
    assert sizes[0] == sizes[1]
