"""The study of precisions: every ablation changes a step, and a quick run makes both tables."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from calumma.batches.loader import DataConfig, PackedLoader
from calumma.model.config import DecoderConfig
from calumma.model.decoder import Decoder
from calumma.shards.reader import ShardReader
from calumma.train import decoder_trainer
from calumma.train.config import OptimizerConfig, ParallelConfig
from calumma.train.distributed import SINGLE_PROCESS
from calumma.train.optimizer import make_optimizers
from calumma.train.parallelize import parallelize_decoder
from studies.precision import study

TINY = Path(__file__).parents[1] / "end_to_end" / "tiny.toml"


@pytest.fixture
def train(decoder_config: DecoderConfig, reader: ShardReader) -> Callable[[str], list[Tensor]]:
    """Return a function that takes two steps under an ablation and returns the weights."""

    def take_steps(name: str) -> list[Tensor]:
        decoder = Decoder(decoder_config)
        decoder.init_weights(0)
        dtype = torch.float32 if name == "float32" else torch.bfloat16
        layout = parallelize_decoder(decoder, SINGLE_PROCESS, ParallelConfig(), "cpu", dtype)
        loader = PackedLoader(reader, DataConfig(seq_len=32, global_batch_size=4))
        loader.set_mixture({"pairs": 1.0})
        optimizers = make_optimizers(decoder, OptimizerConfig(name="muon", lr=1e-2))
        with study.ablation(name):
            for _ in range(2):
                decoder_trainer.optimizer_step(
                    decoder,
                    optimizers,
                    [loader.next()],
                    vocabulary=loader.vocabulary,
                    z_loss_weight=1e-5,
                    max_grad_norm=1.0,
                    layout=layout,
                )
        return [parameter.detach() for parameter in decoder.parameters()]

    return take_steps


@pytest.mark.parametrize("name", [name for name in study.ABLATIONS if name != "bfloat16"])
def test_an_ablation_changes_a_step_by_rounding_and_only_while_it_is_active(
    name: str, train: Callable[[str], list[Tensor]]
) -> None:
    before, changed, after = (train(which) for which in ("bfloat16", name, "bfloat16"))
    assert all(map(torch.equal, before, after))
    assert not all(map(torch.equal, before, changed))
    for one, other in zip(before, changed, strict=True):
        assert torch.allclose(one, other, atol=0.05)


def test_weights_without_master_weights_are_bfloat16(train: Callable[[str], list[Tensor]]) -> None:
    assert all(torch.equal(w, w.bfloat16().float()) for w in train("weights in bfloat16"))
    assert not all(torch.equal(w, w.bfloat16().float()) for w in train("optimizer state in bfloat16"))


def test_a_table_counts_the_metrics_inside_the_intervals() -> None:
    def demo(value: float) -> dict[str, object]:
        return {"text_bits_per_token": {"value": value, "interval": [value - 0.1, value + 0.1]}}

    demos = {"float32-0": demo(2.0), "bfloat16-0": demo(2.05), "float32-1": demo(2.0), "bfloat16-1": demo(2.15)}
    *_, row = study.demo_table(demos | {"float32-2": demo(9.0)}, [0, 1, 2])
    assert row == "| `text_bits_per_token` | 2.000, 2.000 | 2.050, 2.150 | 2.000, 2.100: +5.0 % | 1 of 2 |"


@pytest.mark.slow  # its parts are tested above and with the demo
def test_a_quick_run_makes_both_tables_and_is_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"--out {tmp_path} --config {TINY} --seeds 0 --ablation-seeds 0 --steps 4"
    monkeypatch.setattr(sys, "argv", ["study.py", *words.split()])
    study.main()
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results["demos"]) == {"float32-0", "bfloat16-0"}
    assert len(results["ablation"]) == len(study.ABLATIONS)
    tables = capsys.readouterr().out.splitlines()[-len(study.ABLATIONS) - 2 :]
    study.main()
    again = capsys.readouterr().out.splitlines()
    assert again[:2] == ["float32-0", "bfloat16-0"]  # nothing below them: no step was repeated
    assert again[-len(tables) :] == tables
    assert again[2].startswith("| metric |")
