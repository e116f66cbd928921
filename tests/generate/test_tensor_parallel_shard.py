"""Ranks that share a decoder say what one process says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch.distributed

from calumma.errors import GenerationError
from calumma.generate.tensor_parallel.shard import shard_decoder
from tests.generate.sharing_ranks import GROUPS, drawn, generate, generated
from tests.launch import free_ports, start_ranks


def test_two_ranks_say_what_one_says(tmp_path: Path) -> None:
    start_ranks(2, generate, tmp_path, port=free_ports(1)[0], logs=tmp_path)
    whole = drawn(GROUPS[-1])
    inside = sum(parameter.numel() for parameter in whole.blocks.parameters())
    for rank in range(2):
        told = json.loads((tmp_path / f"{rank}.json").read_text())
        for groups in GROUPS:
            assert told["ids"][str(groups)] == generated(drawn(groups))
        assert inside / 2 <= told["inside"] < 0.52 * inside


def test_ranks_that_do_not_divide_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 4)
    with pytest.raises(GenerationError) as caught:
        shard_decoder(drawn(1))
    assert str(caught.value) == (
        "4 ranks do not divide 2 key heads, 1 groups of norms and a feed-forward of 48; expected a "
        "divisor of all (of one group any is). Start another number."
    )
