"""Products in bfloat16 on a CPU: close to float32, and where they are chosen."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from calumma.model.bfloat16_products import (
    BFloat16Linear,
    has_bfloat16_products,
    prefers_bfloat16_products,
    use_bfloat16_products,
)
from calumma.model.decoder import Decoder
from calumma.model.presets import preset
from calumma.model.quantization import Int8Linear, quantize_int8


def test_a_layer_multiplies_in_bfloat16_and_keeps_the_dtype_of_its_input() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(64, 48, bias=False)
    layer = BFloat16Linear(linear)
    x = torch.randn(2, 5, 64)
    expected = (x.bfloat16() @ linear.weight.bfloat16().t()).float()
    assert layer(x).dtype == torch.float32
    assert torch.allclose(layer(x), expected, atol=1e-2, rtol=1e-2)
    assert not torch.equal(layer(x), linear(x))
    assert layer.weight.dtype == torch.bfloat16 and linear.weight.dtype == torch.float32


@torch.no_grad()
def test_only_the_matrices_of_the_blocks_change(decoder: Decoder) -> None:
    changed = copy.deepcopy(decoder).requires_grad_(False)
    use_bfloat16_products(changed.blocks)
    dtypes = {name: parameter.dtype for name, parameter in changed.named_parameters()}
    assert {name for name, dtype in dtypes.items() if dtype == torch.bfloat16} == {
        f"blocks.{name}.weight" for name, module in decoder.blocks.named_modules() if isinstance(module, nn.Linear)
    }
    ids = torch.randint(0, 300, (2, 17), generator=torch.Generator().manual_seed(0))
    expected = decoder(ids)
    error = (changed(ids) - expected).norm() / expected.norm()
    assert changed(ids).dtype == torch.float32
    assert 0 < error < 0.02


def test_quantized_matrices_stay_quantized(decoder: Decoder) -> None:
    changed = copy.deepcopy(decoder)
    quantize_int8(changed)
    use_bfloat16_products(changed.blocks)
    assert isinstance(changed.blocks[0].feed_forward.up, Int8Linear)


@pytest.mark.parametrize(("avx512", "amx"), [(True, False), (False, True), (False, False)])
def test_wide_decoders_use_them_where_the_cpu_has_them(
    avx512: bool, amx: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    wide = preset("94M", vocabulary_size=1024)
    narrow = replace(wide, model_dim=256)
    assert prefers_bfloat16_products(torch.device("cpu"), wide) == (avx512 or amx)
    assert not prefers_bfloat16_products(torch.device("cpu"), narrow)
    assert not prefers_bfloat16_products(torch.device("cuda"), wide)
    assert has_bfloat16_products(torch.device("cpu")) == (avx512 or amx)
    assert not has_bfloat16_products(torch.device("cuda"))
