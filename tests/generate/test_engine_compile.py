"""Compiled blocks: the same ids, compiled a few times in all, whatever steps are made of them."""

from __future__ import annotations

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
"""More than the eight times for which torch compiles one function anew."""


@pytest.fixture
def deep() -> Decoder:
    """Nine layers of 32."""
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
    """One number for each graph that was compiled: its operations."""
    torch._dynamo.reset()
    counters.clear()
    yield []
    torch._dynamo.reset()


def counting(graphs: list[int]) -> Callable[..., Any]:
    """A backend that compiles nothing and counts."""

    def backend(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., Any]:
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    return backend


def answers(decoder: Decoder, *, captured: bool, prompt: int) -> list[list[int]]:
    """What some requests get, of which no two are alike, with a prompt of so many ids."""
    budget = EngineConfig(max_cached_tokens=3000, max_num_seqs=16, cuda_graphs=captured)
    engine = Engine(decoder, V, codes_per_image=4, config=budget)
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


@pytest.mark.parametrize(("whole", "captured"), [(False, False), (True, True)])
def test_a_handful_of_graphs_serves_every_step(
    deep: Decoder, compiled: list[int], captured: bool, whole: bool
) -> None:
    if whole:
        quantize_int8(deep)
    plain = copy.deepcopy(deep)
    compile_blocks(deep, backend=counting(compiled))
    for prompt in (3, 20):
        assert answers(deep, captured=captured, prompt=prompt) == answers(
            plain, captured=captured, prompt=prompt
        )
    # Around attention a block is four graphs, and over windows of one width one; each for one id
    # and for several, and once more where a step had as many ids as the stream has channels.
    assert 0 < len(compiled) <= (12 if not captured else 15)
    before = len(compiled)
    answers(deep, captured=captured, prompt=11)
    assert len(compiled) == before
    assert all("CachedAttention.__call__" in reason for reason in counters["graph_break"])


@torch.no_grad()
def test_what_a_compiler_makes_of_it_is_the_same_within_rounding(
    decoder: Decoder, compiled: list[int]
) -> None:
    plain = copy.deepcopy(decoder)
    decoder = copy.deepcopy(decoder)
    compile_blocks(decoder, backend="aot_eager")
    ids = torch.randint(0, 300, (2, 17), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(decoder(ids), plain(ids), atol=1e-5)


def test_a_model_has_its_own_blocks_compiled(
    model_parts: ModelComponents, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Decoder] = []
    monkeypatch.setattr(generate_model, "compile_blocks", asked.append)
    model = Model(model_parts)
    model.compile()
    assert asked == [model.decoder]
