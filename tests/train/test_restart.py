"""A killed run resumes by the same command and ends as an undisturbed one."""

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from calumma.tokens.folder import Tokenizers
from tests.checkpoints.random_models import folder_bytes
from tests.launch import SERVER, SignalOnCall, free_ports, launch
from tests.train import restarting
from tests.train.runs import logged_metrics

MOMENTS = {
    "in a step": SignalOnCall("calumma.train.decoder_trainer", "optimizer_step", 2),
    "with the tensors of a save not written": SignalOnCall("calumma.checkpoints.training_checkpoint", "save_file", 3),
    "with the tensors written and no record": SignalOnCall("calumma.checkpoints.training_checkpoint", "write_json", 2),
    "in a model folder": SignalOnCall("calumma.checkpoints.model_folder", "write_safetensors", 1),
}
"""Counted from where the run resumes each time."""

CONFIG = """
shards = "{folder}"
tokenizers = "{folder}"
steps = 8
[checkpoint]
interval = 1
keep_every = 3
async_save = true
[data]
seq_len = 32
global_batch_size = 4
pack_window = 2
[model]
model_dim = 32
num_layers = 2
num_heads = 4
num_kv_heads = 2
feed_forward_dim = 48
dropout = 0.1
[stage_one.weights]
pairs = 1.0
text = 1.0
[stage_two.weights]
pairs = 1.0
"""


@pytest.fixture
def restored_signals(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Restore the signal handlers of this process after the test."""
    monkeypatch.setenv("TORCHELASTIC_SIGNALS_TO_HANDLE", "SIGTERM")
    before = {
        number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    }
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.slow
@pytest.mark.usefixtures("restored_signals")
def test_torchrun_restarts_two_nodes_when_a_rank_is_killed(undisturbed: Path, shards: Path, tmp_path: Path) -> None:
    """Two launchers of torchrun, each with two ranks, stand for two machines."""
    run, [port] = tmp_path / "run", free_ports(1)
    other = SERVER.Process(target=restarting.launch_node, args=(2, port, run, shards))
    other.start()
    restarting.launch_node(2, port, run, shards)
    other.join()
    assert other.exitcode == 0
    assert restarting.kill_marker(run).read_text() == "attempt 0"
    losses, expected_losses = ([step["loss"] for step in logged_metrics(r)] for r in (run, undisturbed))
    assert losses == pytest.approx(expected_losses, abs=1e-5)
    weights, expected_weights = (torch.load(r / "weights.pt") for r in (run, undisturbed))
    for key, tensor in expected_weights.items():
        assert torch.allclose(tensor, weights[key], atol=1e-5), key


def test_killed_at_any_moment_one_process_ends_with_the_same_bits(
    shards: Path, tokenizers: Tokenizers, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    shutil.copytree(shards, folder)
    tokenizers.text.save(folder)
    tokenizers.image.save(folder)
    config = tmp_path / "run.toml"
    config.write_text(CONFIG.format(folder=folder))

    def run(name: str, death: SignalOnCall | None = None) -> int | None:
        log = tmp_path / f"{name}.log"
        return launch("pretrain", config, "--out", tmp_path / name, log=log, signal_on_call=death).status

    assert run("undisturbed") == 0
    for moment, death in MOMENTS.items():
        assert run("killed", death) == -signal.SIGKILL, moment
    assert run("killed") == 0
    ours, expected = tmp_path / "killed", tmp_path / "undisturbed"
    assert logged_metrics(ours) == logged_metrics(expected)
    assert folder_bytes(ours / "model") == folder_bytes(expected / "model")
    assert folder_bytes(ours / "models") == folder_bytes(expected / "models")
