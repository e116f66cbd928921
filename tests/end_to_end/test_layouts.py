"""A killed conversion leaves no folder, and the next one succeeds."""

import signal
from pathlib import Path

import pytest

from calumma.checkpoints.model_folder import ModelComponents
from tests.checkpoints.random_models import folder_bytes, save_random_model
from tests.launch import SignalOnCall, launch

KILLED = SignalOnCall("calumma.checkpoints.hf_weights", "write_safetensors", 2)
STOPPED = SignalOnCall("calumma.checkpoints.meta.vqgan_files", "write_torch_file", 1, signal.SIGTERM)


@pytest.mark.parametrize(
    ("options", "signal_on_call", "status"),
    [
        (("--to", "calumma", "--max-shard-size", "100kB"), KILLED, -signal.SIGKILL),
        (("--to", "meta", "--shards", "4"), STOPPED, 3),
    ],
)
def test_an_interrupted_conversion_leaves_no_folder(
    options: tuple[str, ...], signal_on_call: SignalOnCall, status: int, model_parts: ModelComponents, tmp_path: Path
) -> None:
    own, out, log = tmp_path / "own", tmp_path / "out", tmp_path / "log"
    save_random_model(own, model_parts)
    ended = launch("convert", own, out, *options, log=log, signal_on_call=signal_on_call)
    assert ended.status == status, ended.output
    assert not out.exists()
    if status == 3:
        assert ended.output.endswith("stopped by a signal; no file is left half written.\n")
        assert {path.name for path in tmp_path.iterdir()} == {"own", "log"}
    assert launch("convert", own, out, *options, log=log).status == 0
    assert {path.name for path in tmp_path.iterdir()} == {"own", "out", "log"}
    assert launch("convert", out, tmp_path / "back", "--to", "calumma", log=log).status == 0
    assert folder_bytes(tmp_path / "back") == folder_bytes(own)
