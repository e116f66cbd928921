"""A conversion that is killed: there is no folder, and the next one is whole."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from calumma.checkpoints.model_folder import ModelComponents
from tests.checkpoints.random_models import folder_bytes, save_random_model
from tests.launch import SignalOnCall, launch

KILLED = SignalOnCall("calumma.checkpoints.hf_weights", "write_tensors", 2)
STOPPED = SignalOnCall("calumma.checkpoints.meta.vqgan_files", "write_pickled", 1, signal.SIGTERM)


@pytest.mark.parametrize(
    ("more", "death", "status"),
    [
        (("--to", "calumma", "--max-shard-size", "100kB"), KILLED, -signal.SIGKILL),
        (("--to", "meta", "--shards", "4"), STOPPED, 3),
    ],
)
def test_a_conversion_that_ends_half_way_leaves_no_folder(
    more: tuple[str, ...],
    death: SignalOnCall,
    status: int,
    model_parts: ModelComponents,
    tmp_path: Path,
) -> None:
    own, out, log = tmp_path / "own", tmp_path / "out", tmp_path / "log"
    save_random_model(own, model_parts)
    ended = launch("convert", own, out, *more, log=log, signal_on_call=death)
    assert ended.status == status, ended.output
    assert not out.exists()
    if status == 3:
        assert ended.output.endswith("stopped by a signal; nothing is left half written.\n")
        assert {path.name for path in tmp_path.iterdir()} == {"own", "log"}
    assert launch("convert", own, out, *more, log=log).status == 0
    assert {path.name for path in tmp_path.iterdir()} == {"own", "out", "log"}
    assert launch("convert", out, tmp_path / "back", "--to", "calumma", log=log).status == 0
    assert folder_bytes(tmp_path / "back") == folder_bytes(own)
