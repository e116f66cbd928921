"""Weight quantization: errors, refusals, and independence of the rows of a batch.

torch multiplies float8 on a CPU as well, at a fortieth of float32's speed: what a GPU computes is
computed here, once the two checks of the device are out of the way.
"""

import copy
import math
import sys
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from calumma.checkpoints.model_folder import ModelComponents
from calumma.errors import GenerationError
from calumma.generate.events import Sample
from calumma.generate.model import Model
from calumma.generate.params import ImageSampling, TextSampling
from calumma.model import quantization
from calumma.model.config import DecoderConfig
from calumma.model.decoder import Decoder
from calumma.model.presets import PRESETS
from calumma.model.quantization import (
    Int4Linear,
    Int8Linear,
    max_int8_weight,
    pack_int4,
    quantize,
    quantize_int4,
    quantize_int8,
    require_fp8,
    unpack_int4,
)
from tests.images import noise


def test_weights_are_within_half_a_step() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(64, 48, bias=False)
    made = Int8Linear(linear)
    assert made.weight.dtype == torch.int8
    assert bool((made.weight.abs().amax(dim=1) == max_int8_weight()).all())
    error = (made.weight * made.scale[:, None] - linear.weight).abs()
    assert bool((error <= made.scale[:, None] * 0.5001).all())


def test_a_cpu_without_vnni_gets_smaller_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    assert 2 * 255 * max_int8_weight() < 2**15 <= 2 * 255 * (max_int8_weight() + 2)
    linear = nn.Linear(64, 48, bias=False)
    assert int(Int8Linear(linear).weight.abs().max()) == max_int8_weight()


def test_a_row_of_zeros_is_zero() -> None:
    linear = nn.Linear(32, 32, bias=False)
    made = Int8Linear(linear)
    assert torch.equal(made(torch.zeros(2, 32)), torch.zeros(2, 32))
    nn.init.zeros_(linear.weight)
    assert torch.equal(Int8Linear(linear)(torch.ones(1, 32)), torch.zeros(1, 32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_int4_products_are_those_of_the_rounded_matrix(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(192, 64, bias=False)
    packed, scale = pack_int4(linear.weight, 64)
    assert (packed.shape, packed.dtype, scale.shape) == ((64, 96), torch.uint8, (64, 3))
    rounded = unpack_int4(packed, scale, torch.float32)
    assert (rounded - linear.weight).norm() / linear.weight.norm() < 0.1
    made = Int4Linear(packed, scale)
    x = torch.randn(3, 11, 192).to(dtype)
    expected = F.linear(x.float(), rounded)
    assert torch.allclose(made(x).float(), expected, atol=0.05, rtol=0.02)
    made.pack_for_cpu()
    found = made(x)
    assert (found.shape, found.dtype) == (expected.shape, dtype)
    assert (found.float() - expected).norm() / expected.norm() < 0.006
    assert torch.equal(found[1:2, 3:4], made(x[1:2, 3:4])), "rows are independent"
    assert made.num_weights == 192 * 64


def test_int4_rounds_to_the_best_of_its_scales() -> None:
    weight = torch.full((1, 64), 0.1)
    weight[0, 0] = 7.0
    assert torch.allclose(unpack_int4(*pack_int4(torch.eye(64) * 7, 64), torch.float32), torch.eye(64) * 7, atol=0.02)
    assert unpack_int4(*pack_int4(weight, 64), torch.float32)[0, 0] == pytest.approx(7, rel=0.3)
    assert torch.equal(unpack_int4(*pack_int4(torch.zeros(2, 64), 32), torch.float32), torch.zeros(2, 64))


def test_shapes_that_int4_does_not_have_are_refused(decoder: Decoder) -> None:
    with pytest.raises(GenerationError) as caught:
        quantize(copy.deepcopy(decoder), "int4")
    assert str(caught.value) == (
        "quantization='int4' of a decoder with model_dim=32 and feed_forward_dim=48; expected multiples of 32. Use "
        "int8."
    )


@pytest.mark.parametrize("integers", [True, False], ids=["integers", "widened"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_the_product_is_as_near_as_its_rounding(
    dtype: torch.dtype, integers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantization, "HAS_INT8_MATMUL", integers)
    torch.manual_seed(0)
    linear = nn.Linear(96, 64, bias=False)
    made = Int8Linear(linear)
    x = torch.randn(3, 11, 96).to(dtype)
    found = made(x)
    expected = linear(x.float())
    assert (found.shape, found.dtype) == (expected.shape, dtype)
    assert (found.float() - expected).norm() / expected.norm() < 0.015
    x = x.float()
    off_weight = made.scale / 2
    off_x = x.abs().amax(-1, keepdim=True) / 127 / 2 if integers else 2**-9 * x.abs().mean()
    farthest = off_weight * x.abs().sum(-1, keepdim=True)
    farthest = farthest + off_x * linear.weight.abs().sum(-1) + 96 * off_x * off_weight
    assert bool(((found.float() - expected).abs() <= farthest + 2**-7 * expected.abs() + 1e-5).all())


@torch.no_grad()
def test_the_result_of_a_row_does_not_depend_on_the_others() -> None:
    torch.manual_seed(0)
    made = Int8Linear(nn.Linear(96, 64, bias=False))
    x = torch.randn(40, 96) * torch.logspace(-3, 3, 40)[:, None]
    assert torch.equal(torch.cat([made(row[None]) for row in x]), made(x))


@torch.no_grad()
def test_a_quantized_decoder_keeps_its_predictions(decoder: Decoder) -> None:
    small = copy.deepcopy(decoder)
    quantize_int8(small)
    kinds = {name.split(".")[-1] for name, m in small.named_modules() if isinstance(m, Int8Linear)}
    assert kinds == {"query", "key", "value", "output", "gate", "up", "down"}
    assert isinstance(small.head, nn.Linear)
    ids = torch.randint(40, 300, (1, 30))
    expected, found = decoder(ids).log_softmax(-1), small(ids).log_softmax(-1)
    divergence = (expected.exp() * (expected - found)).sum(-1).mean()
    flat = (expected.exp() * (expected + torch.tensor(expected.shape[-1]).log())).sum(-1).mean()
    assert 0 < divergence < 0.01 * flat


@pytest.fixture
def fp8_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disable the hardware checks, ours and torchao's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchao's own, as it is imported
        from torchao.quantization import quant_api
    monkeypatch.setattr(quant_api, "_check_hardware_support", lambda granularity: None)
    monkeypatch.setattr(quantization, "require_fp8", lambda decoder: None)


def nbytes(module: nn.Module) -> int:
    """Return the bytes of a module's tensors, those inside torchao's tensors included."""
    total = 0
    for tensor in [*module.parameters(), *module.buffers()]:
        inside = getattr(tensor, "qdata", None)
        total += tensor.nbytes if inside is None else inside.nbytes + tensor.scale.nbytes
    return total


def wide(dtype: torch.dtype) -> Decoder:
    """Return a decoder of one layer of width 256."""
    shape = DecoderConfig(
        vocabulary_size=64, model_dim=256, num_layers=1, num_heads=4, num_kv_heads=4, feed_forward_dim=768
    )
    made = Decoder(shape)
    made.init_weights(0)
    return made.to(dtype).eval().requires_grad_(False)


@pytest.mark.parametrize("method", ["int8", "fp8"])
def test_the_blocks_take_a_quarter_of_float32(fp8_anywhere: None, method: Any) -> None:
    plain, small = wide(torch.float32), wide(torch.bfloat16)
    quantize(small, method)
    assert 0.25 < nbytes(small.blocks) / nbytes(plain.blocks) < 0.26
    assert nbytes(small.head) == nbytes(plain.head) / 2
    assert nbytes(small.embedding) == nbytes(plain.embedding) / 2


@torch.no_grad()
def test_a_float8_product_is_as_near_as_its_rounding(fp8_anywhere: None) -> None:
    decoder, small = wide(torch.bfloat16), wide(torch.bfloat16)
    quantize(small, "fp8")
    linear, made = (one.blocks[0].get_submodule("feed_forward.gate") for one in (decoder, small))
    assert isinstance(linear, nn.Linear)
    x = torch.randn(9, 256, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected, found = x.float() @ linear.weight.float().t(), made(x).float()
    off_x, off_weight = (max_float8_error(one.float()) for one in (x, linear.weight))
    size, weight = x.float().abs(), linear.weight.float().abs()
    farthest = off_x @ weight.t() + size @ off_weight.t() + off_x @ off_weight.t()
    assert bool(((found - expected).abs() <= farthest + 2**-8 * (expected.abs() + farthest)).all())
    assert 0.01 < (found - expected).norm() / expected.norm() < 0.05
    loud = torch.cat([x, 1000 * x])
    assert torch.allclose(made(loud)[:9].float(), found, rtol=2**-6, atol=1e-3)


def max_float8_error(rows: torch.Tensor) -> torch.Tensor:
    """Return the largest rounding error of float8 with a scale of max / 448 per row.

    Three bits of mantissa: a sixteenth of the value, plus half of the smallest number, 2 ** -9.
    """
    scale = rows.abs().amax(dim=1, keepdim=True) / 448
    # torchao keeps scales as bfloat16 here, and so their rounding counts.
    return (2**-4 + 2**-8) * rows.abs() + scale * 2**-10


@pytest.mark.parametrize(("method", "max_divergence"), [("int8", 0.01), ("fp8", 0.1)])
def test_predictions_stay_close(
    fp8_anywhere: None, model_parts: ModelComponents, method: Any, max_divergence: float
) -> None:
    parts = [replace(model_parts, decoder=copy.deepcopy(model_parts.decoder)) for _ in range(2)]
    plain = Model(parts[0], dtype="bfloat16")
    small = Model(parts[1], dtype="bfloat16", quantization=method)
    ids = list(range(40, 70))
    expected, found = (one.logits(ids).log_softmax(-1) for one in (plain, small))
    divergence = (expected.exp() * (expected - found)).sum(-1).mean()
    flat = (expected.exp() * (expected + math.log(expected.shape[-1]))).sum(-1).mean()
    assert 0 < divergence < max_divergence * flat


def generate(model: Model, prompts: list[list[Any]], **options: Any) -> list[Sample]:
    """Generate greedy outputs that begin with an image."""
    rules = {"text": TextSampling(temperature=0), "image": ImageSampling(temperature=0)}
    return model.generate_batch(prompts, image_first=True, **rules, **options)


def test_int8_draws_and_writes_alone_as_in_a_batch(model_parts: ModelComponents) -> None:
    parts = replace(model_parts, decoder=copy.deepcopy(model_parts.decoder))
    small = Model(parts, quantization="int8")
    prompts: list[list[Any]] = [["a red"], [noise(1), "what?"], ["draw"]]
    for prompt, sample in zip(prompts, generate(small, prompts, max_new_tokens=12), strict=True):
        assert sample.token_ids.count(small.vocabulary.begin_image) >= 1
        assert sample.token_ids == generate(small, [prompt], max_new_tokens=12)[0].token_ids


def test_fp8_draws_and_writes(fp8_anywhere: None, model_parts: ModelComponents) -> None:
    parts = replace(model_parts, decoder=copy.deepcopy(model_parts.decoder))
    small = Model(parts, dtype="bfloat16", quantization="fp8")
    for sample in generate(small, [["a red"], [noise(1), "what?"]], max_new_tokens=9):
        assert sample.token_ids.count(small.vocabulary.begin_image) >= 1
        assert sample.token_ids.count(small.vocabulary.end_image) >= 1
        assert all(math.isfinite(logprob) for logprob in sample.logprobs)


def test_float8_on_a_cpu_is_refused(model_parts: ModelComponents) -> None:
    parts = replace(model_parts, decoder=copy.deepcopy(model_parts.decoder))
    with pytest.raises(GenerationError) as caught:
        Model(parts, quantization="fp8")
    assert str(caught.value) == ("quantization='fp8' on a cpu; expected a GPU that multiplies float8. Use int8.")


class OnGpu:
    """The attributes of a decoder on a GPU that are checked."""

    class embedding:
        """The embedding."""

        class weight:
            """The embedding weight."""

            device = torch.device("cuda")
            dtype = torch.bfloat16

    config = DecoderConfig(
        vocabulary_size=64, model_dim=32, num_layers=1, num_heads=4, num_kv_heads=2, feed_forward_dim=40
    )


@pytest.mark.parametrize(
    ("capability", "dtype", "message"),
    [
        (
            (8, 0),
            torch.bfloat16,
            "quantization='fp8' on a GPU of compute capability 8.0; expected 8.9 or more (L4, "
            "H100, H200, B200). Use int8.",
        ),
        (
            (9, 0),
            torch.float32,
            "quantization='fp8' with dtype='float32'; expected bfloat16, to which products of "
            "float8 are rounded. Ask for dtype='bfloat16'.",
        ),
        (
            (9, 0),
            torch.bfloat16,
            "quantization='fp8' of matrices with sides 32, 16, 40; expected multiples of 16. Use int8.",
        ),
    ],
)
def test_float8_that_cannot_run_is_refused(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: torch.dtype, message: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(OnGpu.embedding.weight, "dtype", dtype)
    with pytest.raises(GenerationError) as caught:
        require_fp8(OnGpu())  # type: ignore[arg-type]
    assert str(caught.value) == message


def test_without_torchao_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "require_fp8", lambda decoder: None)
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(GenerationError) as caught:
        quantize(wide(torch.bfloat16), "fp8")
    assert str(caught.value) == (
        "quantization='fp8' needs torchao, which is not installed. Install it with `pip install "
        "'calumma[float8]'`, or use int8."
    )


def test_int4_takes_at_most_35_percent_of_a_7b_in_bfloat16() -> None:
    with torch.device("meta"):
        decoder = Decoder(PRESETS["7B"]).bfloat16()
    expected = sum(parameter.nbytes for parameter in decoder.parameters())
    quantize_int4(decoder)
    # The CPU's kernel has a zero point for each scale.
    for_cpu = sum(module.scale.nbytes for module in decoder.modules() if isinstance(module, Int4Linear))
    assert 0.33 < (sum(tensor.nbytes for tensor in decoder.state_dict().values()) + for_cpu) / expected <= 0.35
