"""The encoder once more, for CPUs and large pictures: the same numbers in less time.

A picture goes through it in strips of rows, small enough for the processor's cache: norm, swish,
convolution and shortcut of a strip are done before the next is touched. Along a row, four
results of a 3 x 3 convolution are made with six products instead of twelve.

Shapes: H and W pixels of a level, C channels in and O out; one picture at a time, as [H, W, C].
R rows of a strip, and T = W / 4 quads of pixels in a row.

Source: Winograd's F(4, 3) (Lavin and Gray, arXiv:1509.09308), along rows only: down the columns
as well it would save more and lose more of float32's digits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calumma.tokens.vq.layers import Downsample, GroupNorm, ResnetBlock
from calumma.tokens.vq.network import DownBlock, VQEncoder

_STRIP = 1 << 18
"""Numbers of a strip for each thread, about: a megabyte of float32. With four times as many, what
is worked on leaves a core's cache, and all takes a sixth longer (dev/log.md, 2026-11-22)."""

_FILTER_TRANSFORM = torch.tensor(
    [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6],
     [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]],
    dtype=torch.float64,
)  # fmt: skip
"""A row of three weights -> what the six products are multiplied by."""


class _Activations:
    """A level's activations, [H, W, C], and each channel's sums, which the next norm needs."""

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self._sums = torch.zeros(2, values.shape[2], dtype=torch.float64)

    @classmethod
    def of(cls, values: Tensor) -> _Activations:
        """A plane of [1, C, H, W] values in the channels-last format."""
        plane = cls(values[0].permute(1, 2, 0).contiguous())
        for rows in _strips(plane.values):
            plane.accumulate_sums(rows)
        return plane

    @property
    def pixels(self) -> Tensor:
        """The values as [1, C, H, W]."""
        return self.values.permute(2, 0, 1)[None]

    def accumulate_sums(self, rows: slice) -> None:
        """Take rows that are done into the sums, while they are still in the cache."""
        strip = self.values[rows].flatten(0, 1)
        ones = strip.new_ones(1, len(strip))
        self._sums[0] += (ones @ strip)[0]
        self._sums[1] += (ones @ strip.square())[0]

    def scale_and_shift(self, norm: GroupNorm) -> tuple[Tensor, Tensor]:
        """The norm as a line for each channel: two of [C]."""
        size = self.values.numel() // norm.num_groups
        groups = self._sums.view(2, norm.num_groups, -1).sum(2) / size
        mean, square = groups.repeat_interleave(norm.num_channels // norm.num_groups, dim=1)
        slope = norm.weight.double() / (square - mean.square() + norm.eps).sqrt()
        return slope.float(), (norm.bias - mean * slope).float()


def _strips(values: Tensor) -> Iterator[slice]:
    """The rows of each strip of [H, W, C]."""
    height = len(values)
    rows = max(2, _STRIP * torch.get_num_threads() // values[0].numel())
    return (slice(start, min(start + rows, height)) for start in range(0, height, rows))


class _NormConv:
    """Norm, swish and a 3 x 3 convolution, and a shortcut beside them."""

    def __init__(self, norm: GroupNorm, conv: nn.Conv2d) -> None:
        assert conv.bias is not None
        self.norm, self.bias = norm, conv.bias
        products = conv.weight.double() @ _FILTER_TRANSFORM.t()  # [O, C, 3, 6]
        self.weights = products.float().permute(2, 3, 1, 0).contiguous()  # [3, 6, C, O]

    def __call__(
        self, plane: _Activations, into: Tensor, beside: Callable[[slice], Tensor] | None = None
    ) -> _Activations:
        """[H, W, C] -> `into`, [H, W, O], to which `beside` adds rows of its own.

        `into` may be what `beside` reads, row for row, but never what the plane holds.
        """
        slope, shift = plane.scale_and_shift(self.norm)
        made = _Activations(into)
        for rows in _strips(into):
            strip = torch.empty_like(into[rows]) if beside else into[rows]
            self._convolve(_norm_silu(plane.values, rows, slope, shift), strip)
            if beside:
                torch.add(strip, beside(rows), out=into[rows])
            made.accumulate_sums(rows)
        return made

    def _convolve(self, x: Tensor, out: Tensor) -> None:
        """[R + 2, W + 2, C], with its borders -> `out`, [R, W, O]."""
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
    """Rows of [H, W, C] and one more above and below, normalised and bent: [R + 2, W + 2, C].

    Zeros stand around the picture.
    """
    height, width, channels = x.shape
    bent = x.new_empty(rows.stop - rows.start + 2, width + 2, channels)
    bent[:, 0], bent[:, -1] = 0.0, 0.0
    first, last = max(0, rows.start - 1), min(height, rows.stop + 1)
    if first == rows.start:
        bent[0] = 0.0
    if last == rows.stop:
        bent[-1] = 0.0
    inside = bent[first - rows.start + 1 : last - rows.start + 1, 1:-1]
    torch.addcmul(shift, x[first:last], slope, out=inside)
    F.silu(inside, inplace=True)
    return bent


def _input_transform(x: Tensor, quads: int) -> Tensor:
    """[R, W + 2, C] -> [6, R, T, C]: of each quad and its neighbours, what is multiplied."""
    d = [x[:, place : place + 4 * quads - 3 : 4] for place in range(6)]
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
    """An encoder in float32 on a CPU, frozen: what becomes of its weights later it does not see."""

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
        """Whether there is anything to win: on a CPU, with at least 128 pixels to a side, and
        quads of pixels at every level.
        """
        halvings = sum(isinstance(module, Downsample) for module in encoder.modules())
        sides = pixels.shape[2:]
        whole = all(side >= 128 and side % (4 << halvings) == 0 for side in sides)
        return whole and pixels.device.type == "cpu" and pixels.dtype == torch.float32

    def __call__(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> [B, latent_channels, H / f, W / f].

        As many pictures at a time as there are threads, one for each: threads that share a strip
        would wait for one another at each of its many small operations.
        """
        pictures = pixels.split(1)
        threads = torch.get_num_threads()
        if min(threads, len(pictures)) == 1:
            return torch.cat([self._encode(picture) for picture in pictures])
        alone = partial(torch.set_num_threads, 1)
        try:
            with ThreadPoolExecutor(min(threads, len(pictures)), initializer=alone) as pool:
                return torch.cat(list(pool.map(self._encode, pictures)))
        finally:
            torch.set_num_threads(threads)  # part of what a thread sets is the whole process's

    @torch.inference_mode()
    def _encode(self, pixels: Tensor) -> Tensor:
        """[1, 3, H, W] -> [1, latent_channels, H / f, W / f]."""
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
    made = _Activations(x.new_empty(height // 2, width // 2, channels))
    for rows in _strips(made.values):
        # A row and a column of nothing stand below and to the right only.
        padded = x.new_zeros(2 * (rows.stop - rows.start) + 1, width + 1, channels)
        inside = x[2 * rows.start : 2 * rows.stop + 1]
        padded[: len(inside), :-1] = inside
        strip = F.conv2d(padded.permute(2, 0, 1)[None], conv.weight, conv.bias, stride=2)
        made.values[rows] = strip[0].permute(1, 2, 0)
        made.accumulate_sums(rows)
    return made
