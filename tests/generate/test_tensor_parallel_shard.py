"""Sharded decoders generate the tokens of one process."""

import json
from pathlib import Path

import pytest
import torch.distributed

from calumma.errors import GenerationError
from calumma.generate.tensor_parallel.shard import shard_decoder
from tests.generate.tensor_parallel_ranks import GROUPS, generate_tokens, random_decoder, run_rank
from tests.launch import free_ports, run_ranks


def test_two_ranks_generate_the_tokens_of_one(tmp_path: Path) -> None:
    run_ranks(2, run_rank, tmp_path, port=free_ports(1)[0], logs=tmp_path)
    full = random_decoder(GROUPS[-1])
    num_parameters = sum(parameter.numel() for parameter in full.blocks.parameters())
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        for groups in GROUPS:
            assert found["ids"][str(groups)] == generate_tokens(random_decoder(groups))
        assert num_parameters / 2 <= found["num_parameters"] < 0.52 * num_parameters


def test_ranks_that_do_not_divide_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 4)
    with pytest.raises(GenerationError) as caught:
        shard_decoder(random_decoder(1))
    assert str(caught.value) == (
        "4 ranks do not divide 2 key heads, 1 groups of norms and a feed-forward of 48; expected a "
        "divisor of all (of one group any is). Start another number."
    )
