"""Decode steps of a GPU: how many operators they launch, and that none waits for the device.

Tensors are on the meta device, where they have no values, so reading one fails.
"""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from calumma.generate.engine import Engine
from calumma.generate.grammar import TokenKind
from calumma.generate.params import EngineConfig, ImageSampling, Request
from calumma.generate.step_output import SampledTokens, StepOutput
from calumma.model.config import DecoderConfig
from calumma.model.decoder import Decoder
from calumma.vocabulary import Vocabulary

LAYERS, CODES = 32, 16
V = Vocabulary(num_codes=16, num_text=900)

VIEWS = {
    "view", "_unsafe_view", "expand", "transpose", "t", "permute", "select", "slice", "unsqueeze", "squeeze",
    "split", "split_with_sizes", "unbind", "alias", "detach", "as_strided", "empty", "empty_like", "empty_strided",
    "lift_fresh", "flatten", "unflatten", "chunk", "dropout",
}  # fmt: skip
"""Operators that launch no kernel."""

WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "repeat_interleave"}
"""Operators whose result or shape the host must wait for."""


class LaunchCounter(TorchDispatchMode):
    """Counts the operators on the device that launch kernels, and those that wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]
        tensors = [x for x in (*args, output) if isinstance(x, Tensor)]
        if any(x.is_meta for x in tensors) and name not in VIEWS:
            self.launches[name] += 1
            self.waits[name] += name in WAITS
            # A mask as index has a result of unknown length.
            indices = args[1] if name in ("index", "index_put_", "index_put", "_index_put_impl_") else ()
            self.waits[name] += any(x is not None and x.dtype == torch.bool for x in indices)
        return output


def count_step(num_requests: int, monkeypatch: pytest.MonkeyPatch, *, with_image: bool) -> LaunchCounter:
    """Count the operators of one decode step of guided images."""
    shape = DecoderConfig(
        vocabulary_size=V.size,
        model_dim=64,
        num_layers=LAYERS,
        num_heads=4,
        num_kv_heads=4,
        feed_forward_dim=96,
        max_seq_len=512,
    )
    with torch.device("meta"):
        decoder = Decoder(shape).to(torch.bfloat16).eval().requires_grad_(False)
    monkeypatch.setattr("calumma.generate.model_runner.has_flash_kernel", lambda *weight: True)
    config = EngineConfig(max_cached_tokens=16_384, async_scheduling=True, enable_prefix_caching=False)
    engine = Engine(decoder, V, CODES, config=config)

    def get_output(output: StepOutput) -> list[SampledTokens]:
        likely = {TokenKind.IMAGE_CODE: V.codes[0]}
        return [SampledTokens(s, [likely[s.grammar.next_kind]], [0.0], [{}]) for s in output.requests]

    monkeypatch.setattr(StepOutput, "get_output", get_output)
    image = (V.begin_image, *V.codes, V.end_image) if with_image else ()
    for number in range(num_requests):
        prompt = (V.bos, *V.text[10 * number : 10 * number + 9], *image)
        request = Request(
            prompt_token_ids=prompt,
            max_new_tokens=CODES + 2,
            modality="image",
            max_images=1,
            image=ImageSampling(guidance_scale=3.0, image_guidance_scale=1.2),
            seed=number,
        )
        engine.submit(request)
    while not all(state.output_token_ids[1:] for state in engine.scheduler.running) or not engine.stats.num_running:
        engine.step()
    assert engine.stats.num_sequences == num_requests * (3 if with_image else 2)
    with LaunchCounter() as counter:
        engine.step()
    return counter


def test_24_sequences_take_as_many_launches_as_two_and_no_step_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    two = count_step(1, monkeypatch, with_image=False)
    many = count_step(8, monkeypatch, with_image=True)
    for counter in (two, many):
        assert counter.launches["varlen_attention"] == LAYERS
        assert counter.launches["scaled_dot_product_attention"] == 0
        assert counter.waits.total() == 0
    assert many.launches.total() <= 1.2 * two.launches.total()
