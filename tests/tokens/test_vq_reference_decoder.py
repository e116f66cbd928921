"""The decoder against a plain restatement of the paper's layout, and codes at full resolution.

The restatement takes the tensors by the release's names and shares no code with the package: norms,
SiLU and attention are written out, in float64.
"""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from calumma.tokens.vq.config import VQConfig
from calumma.tokens.vq.network import VQModel
from calumma.tokens.vq.tensor_names import transformers_names, vq_decoder_names

RELEASE = VQConfig()


class PlainDecoder:
    """Latents to pixels, as paper and release describe it, layer by layer."""

    def __init__(self, tensors: dict[str, Tensor], widths: tuple[int, ...]) -> None:
        self.tensors = tensors
        self.widths = widths

    def conv(self, x: Tensor, name: str) -> Tensor:
        weight = self.tensors[f"{name}.weight"]
        return F.conv2d(x, weight, self.tensors[f"{name}.bias"], padding=weight.shape[-1] // 2)

    def norm(self, x: Tensor, name: str) -> Tensor:
        """GroupNorm of 32 groups, epsilon 1e-6."""
        groups = x.reshape(len(x), 32, -1)
        mean = groups.mean(2, keepdim=True)
        variance = (groups - mean).pow(2).mean(2, keepdim=True)
        y = ((groups - mean) / (variance + 1e-6).sqrt()).reshape(x.shape)
        scale, shift = self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]
        return y * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)

    def swish(self, x: Tensor) -> Tensor:
        return x / (1 + torch.exp(-x))

    def res_block(self, x: Tensor, name: str) -> Tensor:
        y = self.conv(self.swish(self.norm(x, f"{name}.norm1")), f"{name}.conv1")
        y = self.conv(self.swish(self.norm(y, f"{name}.norm2")), f"{name}.conv2")
        if f"{name}.nin_shortcut.weight" in self.tensors:
            x = self.conv(x, f"{name}.nin_shortcut")
        return x + y

    def attention(self, x: Tensor, name: str) -> Tensor:
        """One head over all cells; scores are scaled by channels ** -0.5."""
        b, c, h, w = x.shape
        y = self.norm(x, f"{name}.norm")
        q, k, v = (self.conv(y, f"{name}.{part}").reshape(b, c, h * w) for part in "qkv")
        scores = torch.einsum("bci,bcj->bij", q, k) * c**-0.5
        weights = torch.exp(scores - scores.amax(2, keepdim=True))
        weights = weights / weights.sum(2, keepdim=True)
        mixed = torch.einsum("bij,bcj->bci", weights, v).reshape(b, c, h, w)
        return x + self.conv(mixed, f"{name}.proj_out")

    def decode(self, latents: Tensor) -> Tensor:
        x = self.conv(self.conv(latents, "post_quant_conv"), "decoder.conv_in")
        x = self.res_block(x, "decoder.mid.block_1")
        x = self.attention(x, "decoder.mid.attn_1")
        x = self.res_block(x, "decoder.mid.block_2")
        for level in reversed(range(len(self.widths))):
            for number in range(3):  # one more than the encoder's two
                x = self.res_block(x, f"decoder.up.{level}.block.{number}")
            if level:
                x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
                x = self.conv(x, f"decoder.up.{level}.upsample.conv")
        return self.conv(self.swish(self.norm(x, "decoder.norm_out")), "decoder.conv_out")


def lively(network: VQModel) -> VQModel:
    """Random weights with nothing at zero: what a fresh network leaves out must count too."""
    for number, (name, tensor) in enumerate(network.named_parameters()):
        fan_in = tensor[0].numel() if tensor.ndim == 4 else 1
        drawn = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(number))
        tensor.data.copy_(drawn * 0.7 * fan_in**-0.5 + ("norm" in name and "weight" in name))
    return network.eval().requires_grad_(False)


def test_the_decoder_at_full_width_is_the_papers_layout() -> None:
    network = lively(VQModel(replace(RELEASE, resolution=64)))
    ours = network.state_dict()
    tensors = {theirs: ours[name].double() for name, theirs in vq_decoder_names(network.config).items()}
    count = sum(t.numel() for name, t in tensors.items() if name.startswith("decoder."))
    assert round(count / 1e6, 2) == 39.29
    latents = torch.randn(1, 256, 4, 4, generator=torch.Generator().manual_seed(1))
    expected = PlainDecoder(tensors, RELEASE.widths).decode(latents.double())
    found = network.decode_latents(latents)
    assert found.shape == (1, 3, 64, 64)
    assert float(expected.std()) > 0.01
    assert float((found - expected).abs().max()) < 1e-4 * max(1.0, float(expected.abs().max()))


def test_transformers_gives_the_same_code_in_every_cell_at_full_resolution() -> None:
    """The release's levels and its 8,192 codes, at a quarter of its width for speed.

    With the first weights that transformers itself draws.
    """
    modeling = pytest.importorskip("transformers.models.chameleon.modeling_chameleon")
    shape = pytest.importorskip("transformers").ChameleonVQVAEConfig(base_channels=32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = modeling.ChameleonVQVAE(shape).eval()
    ours = VQModel(replace(RELEASE, base_channels=32)).eval()
    names, tensors = transformers_names(ours.config), theirs.state_dict()
    ours.load_state_dict({name: tensors[names[name]] for name in names}, strict=False)
    pixels = torch.rand(1, 3, 512, 512, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        expected = theirs.encode(pixels).image_tokens.flatten()
        found = ours.encode(pixels).flatten()
    assert found.numel() == 1024 and found.unique().numel() > 500
    assert torch.equal(found, expected)
