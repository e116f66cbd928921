"""A faster encoder for large images on CPUs, with Winograd convolutions.

An image is processed in strips of rows that fit the processor's cache: norm, SiLU, convolution and
shortcut of a strip are computed before the next strip. Along a row, four outputs of a 3 x 3
convolution take six products instead of twelve.

Shapes: H and W pixels of a level, C channels in and O out; one image at a time, as [H, W, C].
R rows of a strip, and T = W / 4 quads of pixels in a row.

Source: Winograd's F(4, 3) (Lavin and Gray, arXiv:1509.09308), along rows only: along columns too
it would save more and lose more of float32's precision.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calumma.tokens.vq.layers import Downsample, GroupNorm, ResnetBlock
from calumma.tokens.vq.network import DownBlock, VQEncoder

_STRIP = 1 << 18
"""Approximate number of values of a strip per thread: a megabyte of float32. Four times as many do
not fit a core's cache and take a sixth longer (dev/log.md, 2026-11-22)."""

_FILTER_TRANSFORM = torch.tensor(
    [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6],
     [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]],
    dtype=torch.float64,
)  # fmt: skip
"""Filter transform: a row of three weights -> the factors of the six products."""


class _Activations:
    """Activations of a level, [H, W, C], with each channel's sums for the next norm."""

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self._sums = torch.zeros(2, values.shape[2], dtype=torch.float64)

    @classmethod
    def of(cls, values: Tensor) -> "_Activations":
        """Create from [1, C, H, W] values in the channels-last format."""
        plane = cls(values[0].permute(1, 2, 0).contiguous())
        for rows in _strips(plane.values):
            plane.accumulate_sums(rows)
        return plane

    @property
    def pixels(self) -> Tensor:
        """The values as [1, C, H, W]."""
        return self.values.permute(2, 0, 1)[None]

    def accumulate_sums(self, rows: slice) -> None:
        """Add finished rows to the sums while they are in the cache."""
        strip = self.values[rows].flatten(0, 1)
        ones = strip.new_ones(1, len(strip))
        self._sums[0] += (ones @ strip)[0]
        self._sums[1] += (ones @ strip.square())[0]

    def scale_and_shift(self, norm: GroupNorm) -> tuple[Tensor, Tensor]:
        """Return the norm as a linear function per channel: slope and shift, both [C]."""
        size = self.values.numel() // norm.num_groups
        groups = self._sums.view(2, norm.num_groups, -1).sum(2) / size
        mean, square = groups.repeat_interleave(norm.num_channels // norm.num_groups, dim=1)
        slope = norm.weight.double() / (square - mean.square() + norm.eps).sqrt()
        return slope.float(), (norm.bias - mean * slope).float()


def _strips(values: Tensor) -> Iterator[slice]:
    """Return the rows of each strip of [H, W, C]."""
    height = len(values)
    rows = max(2, _STRIP * torch.get_num_threads() // values[0].numel())
    return (slice(start, min(start + rows, height)) for start in range(0, height, rows))


class _NormConv:
    """Norm, SiLU, 3 x 3 Winograd convolution, and the addition of the shortcut."""

    def __init__(self, norm: GroupNorm, conv: nn.Conv2d) -> None:
        assert conv.bias is not None
        self.norm, self.bias = norm, conv.bias
        products = conv.weight.double() @ _FILTER_TRANSFORM.t()  # [O, C, 3, 6]
        self.weights = products.float().permute(2, 3, 1, 0).contiguous()  # [3, 6, C, O]

    def __call__(
        self, plane: _Activations, into: Tensor, shortcut: Callable[[slice], Tensor] | None = None
    ) -> _Activations:
        """Write the output [H, W, O] of `plane` [H, W, C], plus the shortcut's rows, to `into`.

        `into` may be the tensor that `shortcut` reads, row for row, but not the plane's.
        """
        slope, shift = plane.scale_and_shift(self.norm)
        output = _Activations(into)
        for rows in _strips(into):
            strip = torch.empty_like(into[rows]) if shortcut else into[rows]
            self._convolve(_norm_silu(plane.values, rows, slope, shift), strip)
            if shortcut:
                torch.add(strip, shortcut(rows), out=into[rows])
            output.accumulate_sums(rows)
        return output

    def _convolve(self, x: Tensor, out: Tensor) -> None:
        """Convolve [R + 2, W + 2, C], with its borders, into `out`, [R, W, O]."""
        rows, width, channels = out.shape
        v = _input_transform(x, width // 4)  # [6, R + 2, T, C]
        m = torch.bmm(v[:, :rows].flatten(1, 2), self.weights[0])  # [6, R * T, O]
        m.baddbmm_(v[:, 1 : rows + 1].flatten(1, 2), self.weights[1])
        m.baddbmm_(v[:, 2:].flatten(1, 2), self.weights[2])
        m = m.view(6, rows, width // 4, channels)
        four = out.view(rows, width // 4, 4, channels)
        even, odd = m[1] + m[2], m[1] - m[2]
        even.add_(self.bias)
        odd.add_(self.bias)
        even_two, odd_two = m[3] + m[4], m[3] - m[4]
        torch.add(even, even_two, out=four[:, :, 0]).add_(m[0])
        torch.add(odd, odd_two, alpha=2, out=four[:, :, 1])
        torch.add(even, even_two, alpha=4, out=four[:, :, 2])
        torch.add(odd, odd_two, alpha=8, out=four[:, :, 3]).add_(m[5])


def _norm_silu(x: Tensor, rows: slice, slope: Tensor, shift: Tensor) -> Tensor:
    """Apply norm and SiLU to rows of [H, W, C] and one above and below: [R + 2, W + 2, C].

    The borders of the image are zero.
    """
    height, width, channels = x.shape
    padded = x.new_empty(rows.stop - rows.start + 2, width + 2, channels)
    padded[:, 0], padded[:, -1] = 0.0, 0.0
    first, last = max(0, rows.start - 1), min(height, rows.stop + 1)
    if first == rows.start:
        padded[0] = 0.0
    if last == rows.stop:
        padded[-1] = 0.0
    inside = padded[first - rows.start + 1 : last - rows.start + 1, 1:-1]
    torch.addcmul(shift, x[first:last], slope, out=inside)
    F.silu(inside, inplace=True)
    return padded


def _input_transform(x: Tensor, quads: int) -> Tensor:
    """Compute the Winograd input transform of each quad: [R, W + 2, C] -> [6, R, T, C]."""
    d = [x[:, n : n + 4 * quads - 3 : 4] for n in range(6)]
    v = x.new_empty(6, len(x), quads, x.shape[2])
    torch.sub(d[4], d[2], alpha=5, out=v[0]).add_(d[0], alpha=4)
    even, odd = torch.sub(d[4], d[2], alpha=4), torch.sub(d[3], d[1], alpha=4)
    torch.add(even, odd, out=v[1])
    torch.sub(even, odd, out=v[2])
    torch.sub(d[4], d[2], out=even)
    torch.sub(d[3], d[1], out=odd)
    torch.add(even, odd, alpha=2, out=v[3])
    torch.sub(even, odd, alpha=2, out=v[4])
    torch.sub(d[5], d[3], alpha=5, out=v[5]).add_(d[1], alpha=4)
    return v


class WinogradEncoder:
    """A frozen encoder in float32 on a CPU; later changes of the weights have no effect."""

    def __init__(self, encoder: VQEncoder) -> None:
        self._encoder = encoder
        self._blocks = {
            block: (_NormConv(block.norm1, block.conv1), _NormConv(block.norm2, block.conv2))
            for block in encoder.modules()
            if isinstance(block, ResnetBlock)
        }
        self._end = _NormConv(encoder.norm_out, encoder.conv_out)

    @staticmethod
    def supports(encoder: VQEncoder, pixels: Tensor) -> bool:
        """Return whether it is faster: on a CPU, from 128 pixels per side, with rows that divide into
        quads at every level. Cells of their own are too small.
        """
        if encoder.config.encoder_context == "cell":
            return False
        halvings = sum(isinstance(module, Downsample) for module in encoder.modules())
        height, width = pixels.shape[2:]
        divides = height % (1 << halvings) == 0 and width % (4 << halvings) == 0
        return divides and min(height, width) >= 128 and pixels.device.type == "cpu" and pixels.dtype == torch.float32

    def __call__(self, pixels: Tensor) -> Tensor:
        """Encode [B, 3, H, W] in [-1, 1] to [B, latent_channels, H / f, W / f].

        Each thread encodes one image: threads that share a strip would synchronize at each of its
        many small operations.
        """
        images = pixels.split(1)
        threads = torch.get_num_threads()
        if min(threads, len(images)) == 1:
            return torch.cat([self._encode(image) for image in images])
        single_thread = partial(torch.set_num_threads, 1)
        try:
            with ThreadPoolExecutor(min(threads, len(images)), initializer=single_thread) as pool:
                return torch.cat(list(pool.map(self._encode, images)))
        finally:
            torch.set_num_threads(threads)  # part of it is set for the process, not the thread

    @torch.inference_mode()
    def _encode(self, pixels: Tensor) -> Tensor:
        """Encode one image: [1, 3, H, W] -> [1, latent_channels, H / f, W / f]."""
        plane = _Activations.of(self._encoder.conv_in(pixels))
        for level in self._encoder.levels:
            assert isinstance(level, DownBlock)
            for number, block in enumerate(level.blocks):
                assert isinstance(block, ResnetBlock)
                plane = self._block(block, plane)
                if level.attentions:
                    plane = _Activations.of(level.attentions[number](plane.pixels))
            plane = _downsample(level.downsample, plane)
        middle = self._encoder.middle
        plane = self._block(middle.block1, plane)
        plane = self._block(middle.block2, _Activations.of(middle.attention(plane.pixels)))
        into = plane.values.new_empty(*plane.values.shape[:2], self._end.weights.shape[-1])
        return self._end(plane, into).pixels

    def _block(self, block: ResnetBlock, plane: _Activations) -> _Activations:
        first, second = self._blocks[block]
        x = plane.values
        inner = first(plane, x.new_empty(*x.shape[:2], first.weights.shape[-1]))
        shortcut = block.shortcut
        if isinstance(shortcut, nn.Conv2d):
            weight, bias = shortcut.weight[:, :, 0, 0], shortcut.bias
            into = torch.empty_like(inner.values)
            return second(inner, into, lambda rows: F.linear(x[rows], weight, bias))
        return second(inner, x, lambda rows: x[rows])


def _downsample(module: nn.Module, plane: _Activations) -> _Activations:
    if not isinstance(module, Downsample):
        return plane
    x, conv = plane.values, module.conv
    height, width, channels = x.shape
    output = _Activations(x.new_empty(height // 2, width // 2, channels))
    for rows in _strips(output.values):
        # Zero padding below and to the right only.
        padded = x.new_zeros(2 * (rows.stop - rows.start) + 1, width + 1, channels)
        inside = x[2 * rows.start : 2 * rows.stop + 1]
        padded[: len(inside), :-1] = inside
        strip = F.conv2d(padded.permute(2, 0, 1)[None], conv.weight, conv.bias, stride=2)
        output.values[rows] = strip[0].permute(1, 2, 0)
        output.accumulate_sums(rows)
    return output
