"""Fast inference of the encoder: selects the implementation and the precision.

Shapes: B images, H and W pixels, f pixels to a cell's side, h = H / f, w = W / f.
"""

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from calumma.errors import ConfigError
from calumma.tokens.vq.layers import ResnetBlock
from calumma.tokens.vq.network import VQEncoder, VQModel, split_cells
from calumma.tokens.vq.winograd_encoder import WinogradEncoder

Precision = Literal["float32", "float16", "bfloat16"]

_CELLS = 1 << 14
"""Cells whose distances to all codes are computed at a time: with 8,192 codes, 0.5 GB."""

_CELL_BATCH = 256
"""Cells that are encoded at a time, with `encoder_context="cell"`."""

_MAX_CACHED_CELLS = 1 << 16
"""Cells whose codes are kept: with cells of 8 x 8 pixels, 50 MB."""


class _ExactConvs:
    """Turns TF32 off for convolutions while any thread encodes in float32.

    A GPU rounds their inputs to 10 bits by default, which changes codes. The setting is one for
    all threads, so it returns to what it was when the last of them is done.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_users = 0
        self._was_tf32 = False

    @contextmanager
    def use(self) -> Iterator[None]:
        """Compute convolutions as IEEE float32 inside."""
        with self._lock:
            if not self._num_users:
                self._was_tf32 = torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]
                if self._was_tf32:
                    # Not the newer name: after it torch's compiler cannot read this one.
                    torch.backends.cudnn.allow_tf32 = False
            self._num_users += 1
        try:
            yield
        finally:
            with self._lock:
                self._num_users -= 1
                if not self._num_users and self._was_tf32:
                    torch.backends.cudnn.allow_tf32 = True


_EXACT_CONVS = _ExactConvs()


class InferenceEncoder:
    """The encoder of a frozen network with the search for the nearest codes, always in float32.

    - "float32" gives the same codes as transformers, and on a GPU those of a CPU: TF32 is off.
    - "bfloat16" and "float16" run the convolutions of residual blocks, 90 % of the work, in 16 bits
      and the rest in float32: 99.9 and 99.99 % of cells have the same code. With everything in
      bfloat16 it would be 98.9 % (docs/image-tokenizer.md).
    """

    def __init__(self, network: VQModel, precision: Precision, *, compiled: bool) -> None:
        """Wrap a network that is not trained any more.

        Raises:
            ConfigError: the precision is unknown.
        """
        if precision not in get_args(Precision):
            raise ConfigError(f"precision={precision!r} is unknown; expected one of {', '.join(get_args(Precision))}.")
        self._network = network
        self._precision = precision
        self._quick: WinogradEncoder | None = None
        self._cell_codes: dict[bytes, int] = {}
        """Codes by the pixels of cells, of an encoder that encodes every cell on its own."""

        run: Callable[[Tensor], Tensor] = network.encoder
        # A copy: the network itself stays in float32.
        if precision != "float32":
            run = _use_low_precision_convs(copy.deepcopy(network.encoder), getattr(torch, precision))
        self._compiled = compiled
        self._encoder = torch.compile(run) if compiled else run

    @torch.inference_mode()
    def encode(self, pixels: Tensor) -> Tensor:
        """Encode [B, 3, H, W] float32 in [-1, 1] to [B, h, w] int64 codes."""
        if self._network.config.encoder_context == "cell":
            return self._encode_cells(pixels)
        return self._encode_images(pixels)

    def _encode_cells(self, pixels: Tensor) -> Tensor:
        """Encode every different cell once; drawings have many equal cells, photographs have none."""
        side = self._network.config.downsampling
        cells = split_cells(pixels, side).contiguous()  # [B, h, w, 3, f, f]
        shape, flat = cells.shape[:3], cells.flatten(0, 2)
        keys = [row.tobytes() for row in flat.cpu().numpy()]
        missing = {key: number for number, key in enumerate(keys) if key not in self._cell_codes}
        if len(self._cell_codes) + len(missing) > _MAX_CACHED_CELLS:
            self._cell_codes.clear()
            missing = {key: number for number, key in enumerate(keys)}
        numbers = list(missing.values())
        for start in range(0, len(numbers), _CELL_BATCH):
            chunk = numbers[start : start + _CELL_BATCH]
            # Always the same batch size, so that a code does not depend on the other cells.
            filled = chunk + chunk[:1] * (_CELL_BATCH - len(chunk))
            codes = self._encode_images(flat[filled])[: len(chunk)].flatten().tolist()
            self._cell_codes.update(zip((keys[number] for number in chunk), codes, strict=True))
        return torch.tensor([self._cell_codes[key] for key in keys], device=pixels.device).view(shape)

    def _encode_images(self, pixels: Tensor) -> Tensor:
        with _EXACT_CONVS.use() if self._precision == "float32" else nullcontext():
            return self._encode_batch(pixels)

    def _encode_batch(self, pixels: Tensor) -> Tensor:
        latents = self._network.quant_conv(self._hidden(pixels).to(torch.float32))
        per_image = latents.shape[2] * latents.shape[3]
        chunks = latents.split(max(1, _CELLS // per_image))
        return torch.cat([self._network.quantizer.quantize(chunk) for chunk in chunks])

    def _hidden(self, pixels: Tensor) -> Tensor:
        """Run the encoder: [B, 3, H, W] -> [B, latent_channels, h, w]."""
        encoder = self._network.encoder
        plain = self._precision == "float32" and not self._compiled
        if plain and WinogradEncoder.supports(encoder, pixels):
            # Created on first use: it holds transformed weights of twice the size.
            self._quick = self._quick or WinogradEncoder(encoder)
            return self._quick(pixels)
        return self._encoder(pixels.contiguous(memory_format=torch.channels_last))


class _LowPrecisionConv(nn.Module):
    """A convolution in 16 bits with float32 input and output."""

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype) -> None:
        super().__init__()
        self.conv = conv.to(dtype)
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        """Apply the convolution: [B, C, H, W] -> [B, C', H, W], both float32."""
        return self.conv(x.to(self.dtype)).to(torch.float32)


def _use_low_precision_convs(encoder: VQEncoder, dtype: torch.dtype) -> VQEncoder:
    """Convert the convolutions after norms to 16 bits, as their inputs have a small range.

    The residual stream may be large, and errors add up in it: it stays in float32.
    """
    for block in encoder.modules():
        if isinstance(block, ResnetBlock):
            block.conv1 = _LowPrecisionConv(block.conv1, dtype)  # type: ignore[assignment]
            block.conv2 = _LowPrecisionConv(block.conv2, dtype)  # type: ignore[assignment]
    return encoder
