"""Generate as one rank of a tensor-parallel decoder; see test_tensor_parallel_shard.py."""

import json
from pathlib import Path

import torch
import torch.distributed

from calumma.generate.engine import Engine
from calumma.generate.params import EngineConfig, Request
from calumma.generate.tensor_parallel.shard import shard_decoder
from calumma.model.config import DecoderConfig
from calumma.model.decoder import Decoder
from calumma.vocabulary import Vocabulary

V = Vocabulary(num_codes=16, num_text=40)
GROUPS = (1, 2)


def random_decoder(groups: int) -> Decoder:
    """Return a decoder whose logits differ widely, the same in every process."""
    config = DecoderConfig(
        vocabulary_size=V.size,
        model_dim=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        feed_forward_dim=48,
        max_seq_len=64,
        qk_norm_groups=groups,
    )
    made = Decoder(config)
    made.init_weights(0)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn(parameter.shape) / 8)
    return made.eval().requires_grad_(False)


def generate_tokens(decoder: Decoder, *, async_scheduling: bool = False) -> list[list[int]]:
    """Return the output tokens of some requests."""
    engine = Engine(decoder, V, codes_per_image=4, config=EngineConfig(async_scheduling=async_scheduling))
    requests = [
        Request(prompt_token_ids=(0, *V.text[number : 2 * number + 1]), max_new_tokens=20, seed=number)
        for number in range(4)
    ]
    states = engine.submit_all([*requests, Request(prompt_token_ids=(0,), max_new_tokens=16, modality="image")])
    while not engine.is_idle:
        engine.step()
    return [state.output_token_ids for state in states]


def run_rank(folder: Path) -> None:
    """Generate, and write the tokens and the size of this rank's shard to a file."""
    torch.distributed.init_process_group("gloo")
    found = {}
    for groups in GROUPS:
        decoder = random_decoder(groups)
        shard_decoder(decoder)
        found[str(groups)] = generate_tokens(decoder, async_scheduling=groups == 2)
    num_parameters = sum(parameter.numel() for parameter in decoder.blocks.parameters())
    rank = torch.distributed.get_rank()
    (folder / f"{rank}.json").write_text(json.dumps({"ids": found, "num_parameters": num_parameters}))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
