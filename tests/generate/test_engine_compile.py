"""Compiled blocks: the same tokens, from a few graphs for all steps."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from calumma.checkpoints.model_folder import ModelComponents
from calumma.generate import model as generate_model
from calumma.generate.engine import Engine, compile_blocks
from calumma.generate.model import Model
from calumma.generate.params import EngineConfig, Request, TextSampling
from calumma.model.config import DecoderConfig
from calumma.model.decoder import Decoder
from calumma.model.quantization import quantize_int8
from calumma.vocabulary import Vocabulary

V = Vocabulary(num_codes=16, num_text=300)
LAYERS = 9
"""More than the eight times that torch recompiles one function."""


@pytest.fixture
def deep() -> Decoder:
    """Return a decoder of nine layers of width 32."""
    shape = DecoderConfig(
        vocabulary_size=V.size,
        model_dim=32,
        num_layers=LAYERS,
        num_heads=4,
        num_kv_heads=2,
        feed_forward_dim=48,
        max_seq_len=600,
    )
    made = Decoder(shape)
    made.init_weights(0)
    return made.eval().requires_grad_(False)


@pytest.fixture
def compiled() -> Iterator[list[int]]:
    """Return a list for the number of operations of each compiled graph."""
    torch._dynamo.reset()
    counters.clear()
    yield []
    torch._dynamo.reset()


def counting(graphs: list[int]) -> Callable[..., Any]:
    """Return a backend that compiles nothing and counts operations."""

    def backend(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., Any]:
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    return backend


def outputs(decoder: Decoder, *, cuda_graphs: bool, prompt: int) -> list[list[int]]:
    """Return the output tokens of different requests, with prompts of up to twice this length."""
    config = EngineConfig(max_cached_tokens=3000, max_num_seqs=16, cuda_graphs=cuda_graphs)
    engine = Engine(decoder, V, codes_per_image=4, config=config)
    states = engine.submit_all(
        [
            Request(
                prompt_token_ids=(0, *V.text[: prompt * number + 1]),
                max_new_tokens=8 + 2 * number,
                image_first=number % 2 == 0,
                seed=number,
                text=TextSampling(temperature=2),
            )
            for number in range(3)
        ]
    )
    while not engine.is_idle:
        engine.step()
    return [state.output_token_ids for state in states]


@pytest.mark.parametrize(("quantized", "cuda_graphs"), [(False, False), (True, True)])
def test_a_few_graphs_serve_all_steps(deep: Decoder, compiled: list[int], cuda_graphs: bool, quantized: bool) -> None:
    if quantized:
        quantize_int8(deep)
    plain = copy.deepcopy(deep)
    compile_blocks(deep, backend=counting(compiled))
    for prompt in (3, 20):
        assert outputs(deep, cuda_graphs=cuda_graphs, prompt=prompt) == outputs(
            plain, cuda_graphs=cuda_graphs, prompt=prompt
        )
    # A block is four graphs around attention, or one with gathered attention; each for one token
    # and for several, and once more if a step has as many tokens as there are channels.
    assert 0 < len(compiled) <= (12 if not cuda_graphs else 15)
    before = len(compiled)
    outputs(deep, cuda_graphs=cuda_graphs, prompt=11)
    assert len(compiled) == before
    assert all("CachedAttention.__call__" in reason for reason in counters["graph_break"])


@torch.no_grad()
def test_compiled_blocks_are_equal_within_rounding(decoder: Decoder, compiled: list[int]) -> None:
    plain = copy.deepcopy(decoder)
    decoder = copy.deepcopy(decoder)
    compile_blocks(decoder, backend="aot_eager")
    ids = torch.randint(0, 300, (2, 17), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(decoder(ids), plain(ids), atol=1e-5)


def test_a_model_compiles_its_blocks(model_parts: ModelComponents, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Decoder] = []
    monkeypatch.setattr(generate_model, "compile_blocks", compiled.append)
    model = Model(model_parts)
    model.compile()
    assert compiled == [model.decoder]
