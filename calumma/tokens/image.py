"""The image tokenizer: pictures <-> codes.

A folder of it holds `image_tokenizer.json` (the shape) and `image_tokenizer.safetensors`, in which
the decoder's tensors may be lacking: then it encodes all the same.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from calumma.errors import ConfigError, FileError, ImageError, TokenizerError
from calumma.files import atomic_write, fingerprint, make_folder, read_json, write_json
from calumma.tokens.image_prefetch import ImageInput, default_decode_threads, prefetch_images
from calumma.tokens.image_preprocessing import ResizeMode
from calumma.tokens.mistaken import refuse_model
from calumma.tokens.pixels import image_to_array, normalize_pixels, pixels_to_image
from calumma.tokens.vq.config import VQConfig
from calumma.tokens.vq.inference import InferenceEncoder, Precision
from calumma.tokens.vq.network import VQModel, missing_modules

IMAGE_TOKENIZER_CONFIG_NAME = "image_tokenizer.json"
IMAGE_TOKENIZER_WEIGHTS_NAME = "image_tokenizer.safetensors"
_BATCH = 32
"""Images encoded at a time; more gain nothing on a CPU and cost memory."""


class ImageTokenizer:
    """A frozen VQ autoencoder; the search for the nearest codes is in float32 always.

    Shapes: B images, H and W pixels, f pixels to a cell's side (`config.downsampling`).
    """

    def __init__(
        self, network: VQModel, *, precision: Precision = "float32", compiled: bool = False
    ) -> None:
        """Freeze `network`, which is not copied: it must not be trained on.

        Args:
            network: encoder, codebook and decoder.
            precision: of the encoder; see `Trunk`.
            compiled: compile the encoder, which takes a minute and pays on a GPU.
        """
        self.network = network.eval().requires_grad_(False).to(torch.float32)
        self.precision = precision
        self._encoder = InferenceEncoder(self.network, precision, compiled=compiled)

    @property
    def config(self) -> VQConfig:
        """The network's shape."""
        return self.network.config

    @property
    def has_decoder(self) -> bool:
        """Whether the network has its decoder; without it, codes cannot become pictures."""
        return self.network.has_decoder

    @property
    def device(self) -> torch.device:
        """Where the network lives."""
        return self.network.quantizer.codebook.device

    @cached_property
    def fingerprint(self) -> str:
        """Twelve hex digits that two tokenizers share only when they give the same codes."""
        return fingerprint(self._fingerprint_parts())

    def _fingerprint_parts(self) -> Iterator[bytes]:
        """All that decides the codes."""
        yield json.dumps(self.config.to_json(), sort_keys=True).encode()
        for name, tensor in sorted(self.network.state_dict().items()):
            yield name.encode()
            yield tensor.contiguous().cpu().numpy().tobytes()
        if self.precision != "float32":
            yield self.precision.encode()

    @torch.inference_mode()
    def encode(self, pixels: Tensor) -> Tensor:
        """Name each cell of an image by its nearest codebook row.

        Args:
            pixels: [B, 3, H, W] float32, RGB, from -1 (black) to 1 (white); H and W are multiples
                of f.

        Returns:
            [B, H/f, W/f] int64 codes in [0, num_codes), *not* ids of the vocabulary.
            Cells run left to right, then top to bottom. Ties go to the lower code.

        Raises:
            ImageError: the shape is another, or a pixel lies outside [-1, 1].

        Source: VQGAN (arXiv:2012.09841), section 3.1.
        """
        self._require_pixels(pixels)
        return self._encoder.encode(pixels.to(self.device, torch.float32))

    @torch.inference_mode()
    def decode(self, codes: Tensor) -> Tensor:
        """[B, h, w] int64 codes -> [B, 3, h * f, w * f] float32 pixels, about [-1, 1].

        Raises:
            ImageError: a code lies outside [0, num_codes), or the shape is another.
            TokenizerError: the network has no decoder.
        """
        if not self.has_decoder:
            raise TokenizerError(
                "this image tokenizer has no decoder, so codes cannot become pictures; expected one "
                "that has. Take the tokenizers of a model folder with vq_decoder.safetensors "
                "(`calumma convert MODEL DIR --to tokenizers`)."
            )
        if codes.ndim != 3 or codes.dtype != torch.int64:
            raise ImageError(
                f"codes of shape {list(codes.shape)}, {codes.dtype}; expected [images, rows, "
                "columns] of int64. For the list of one image call decode_image."
            )
        self._require_codes(codes)
        return self.network.decode(codes.to(self.device))

    def encode_image(self, image: PIL.Image.Image, resize_mode: ResizeMode = "crop") -> list[int]:
        """The codes of a picture of any mode and size, row by row.

        Args:
            picture: is turned upright, put on white, and resized.
            mode: "crop" cuts a picture that is not square, "pad" gives it white borders.

        Raises:
            ImageError: the picture is a mere line, or `mode` is neither.
        """
        return self.encode_images([image], resize_mode)[0]

    def encode_images(
        self, images: Sequence[PIL.Image.Image], resize_mode: ResizeMode = "crop"
    ) -> list[list[int]]:
        """The codes of several pictures, as `encode_image` gives them, but quicker."""
        rows: list[list[int]] = []
        for start in range(0, len(images), _BATCH):
            batch = images[start : start + _BATCH]
            arrays = [image_to_array(p, self.config.resolution, resize_mode) for p in batch]
            rows.extend(self._encode_arrays(arrays).flatten(1).tolist())
        return rows

    def encode_stream(
        self,
        images: Iterable[ImageInput],
        *,
        num_threads: int | None = None,
        batch_size: int = _BATCH,
    ) -> Iterator[list[int] | ImageError]:
        """The codes of each picture, or why it has none, in the order given.

        Threads open and fit the next pictures while the network works on these; a picture that
        cannot be read stops nothing. On a GPU one batch is encoded while the next is sent.

        Args:
            pictures: each with how it is fitted, "crop" or "pad"; taken as room is made.
            workers: threads that open pictures (default: the processors, at most 16).
            batch: pictures encoded at a time, always: the last batch is filled up with copies, so
                that a picture's codes do not depend on how many came with it.
        """
        prepared = prefetch_images(
            images,
            self.config.resolution,
            num_threads=num_threads or default_decode_threads(),
            prefetch=3 * batch_size,
        )
        waiting: list[np.ndarray | ImageError] = []
        arrays = 0  # of those that wait
        running: deque[tuple[list[np.ndarray | ImageError], Tensor]] = deque()
        for one in prepared:
            waiting.append(one)
            arrays += not isinstance(one, ImageError)
            if arrays == batch_size:
                running.append((waiting, self._encode_full(waiting, batch_size)))
                waiting, arrays = [], 0
            if len(running) > 1:
                yield from _in_order(*running.popleft())
        if waiting:
            running.append((waiting, self._encode_full(waiting, batch_size)))
        for items, codes in running:
            yield from _in_order(items, codes)

    def _encode_full(self, items: Sequence[np.ndarray | ImageError], batch: int) -> Tensor:
        arrays = [item for item in items if not isinstance(item, ImageError)]
        return self._encode_arrays(arrays + arrays[-1:] * (batch - len(arrays)))

    @torch.inference_mode()
    def _encode_arrays(self, arrays: Sequence[np.ndarray]) -> Tensor:
        """[3, R, R] uint8 each -> [B, h, w] int64 codes; sent as bytes, a quarter of the way."""
        if not arrays:
            return torch.empty(0, 1, 1, dtype=torch.int64)
        values = torch.from_numpy(np.stack(arrays))
        if self.device.type == "cuda":
            values = values.pin_memory().to(self.device, non_blocking=True)
        return self._encoder.encode(normalize_pixels(values.to(self.device)))

    def decode_image(self, codes: Sequence[int]) -> PIL.Image.Image:
        """The picture of one image's codes.

        An image that is still growing may be shown too: what is missing of `codes_per_image`
        is filled with the first code, as in the release.

        Raises:
            ImageError: no code, too many, or one outside [0, num_codes).
            TokenizerError: the network has no decoder.
        """
        wanted, side = self.config.codes_per_image, self.config.codes_per_side
        if not 1 <= len(codes) <= wanted:
            raise ImageError(
                f"{len(codes)} codes; expected {wanted}, or at least 1 of an image still growing. "
                "Pass the codes of exactly one image."
            )
        whole = [*codes, *[codes[0]] * (wanted - len(codes))]
        return pixels_to_image(self.decode(torch.tensor(whole).view(1, side, side))[0])

    def save(self, folder: Path) -> None:
        """Write the two files into `folder`, which is made if need be.

        Raises:
            OutputError: the folder cannot be written.
        """
        make_folder(folder)
        tensors = {k: v.contiguous().cpu() for k, v in self.network.state_dict().items()}
        with atomic_write(folder / IMAGE_TOKENIZER_WEIGHTS_NAME) as temporary:
            # Not save_file, whose files only their owner can read, whatever the umask.
            temporary.write_bytes(save(tensors))
        write_json(folder / IMAGE_TOKENIZER_CONFIG_NAME, self.config.to_json())

    @classmethod
    def load(
        cls,
        folder: Path,
        device: str | torch.device = "cpu",
        *,
        precision: Precision = "float32",
        compiled: bool = False,
    ) -> ImageTokenizer:
        """Read what `save` wrote; the rest is as when one is made.

        Raises:
            TokenizerError: a file is missing or broken, the two do not fit each other, or the
                folder is a model's.
        """
        if not (folder / IMAGE_TOKENIZER_CONFIG_NAME).is_file():
            refuse_model(folder)
        config = _read_config(folder / IMAGE_TOKENIZER_CONFIG_NAME)
        path = folder / IMAGE_TOKENIZER_WEIGHTS_NAME
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise TokenizerError(
                f"{path}: no weights can be read there ({error}); expected the file beside "
                f"{IMAGE_TOKENIZER_CONFIG_NAME}. Copy the folder again, or train with "
                "`calumma train-image-tokenizer`."
            ) from error
        network = VQModel(config, missing_modules(tensors.keys()))
        own = network.state_dict()
        for name in sorted(own.keys() | tensors.keys()):
            found = list(tensors[name].shape) if name in tensors else "nothing"
            wanted = list(own[name].shape) if name in own else "nothing"
            if found != wanted:
                raise TokenizerError(
                    f"{path}: tensor {name} is {found}, but {IMAGE_TOKENIZER_CONFIG_NAME} wants {wanted}; "
                    "the two files are not of one tokenizer. Copy the folder again."
                )
        network.load_state_dict(tensors)
        return cls(network.to(device), precision=precision, compiled=compiled)

    def _require_pixels(self, pixels: Tensor) -> None:
        f = self.config.downsampling
        if pixels.ndim != 4 or pixels.shape[1] != 3:
            raise ImageError(
                f"pixels of shape {list(pixels.shape)}; expected [images, 3, height, width]."
            )
        height, width = pixels.shape[2:]
        if height % f or width % f or 0 in pixels.shape:
            raise ImageError(
                f"{len(pixels)} images of {height} x {width} pixels; expected at least one, with "
                f"sides that are multiples of {f}. Resize them, or call encode_image."
            )
        low, high = (float(end) for end in pixels.aminmax())
        # A whisker more than 1 is what resizing in floating point leaves.
        if not (low >= -1.001 and high <= 1.001):
            raise ImageError(
                f"pixels from {low:g} to {high:g}; expected them from -1 (black) to 1 (white). "
                "For 0 to 255, take x / 255 * 2 - 1."
            )

    def _require_codes(self, codes: Tensor) -> None:
        if codes.numel() == 0:
            raise ImageError(f"no codes: shape {list(codes.shape)}; expected at least one image.")
        low, high = int(codes.min()), int(codes.max())
        if low < 0 or high >= self.config.num_codes:
            wrong = low if low < 0 else high
            raise ImageError(
                f"code {wrong} is not in the codebook; expected codes from 0 to "
                f"{self.config.num_codes - 1}. Turn vocabulary ids into codes first."
            )


def _in_order(
    items: Sequence[np.ndarray | ImageError], codes: Tensor
) -> Iterator[list[int] | ImageError]:
    rows = iter(codes.flatten(1).tolist())
    for item in items:
        yield item if isinstance(item, ImageError) else next(rows)


def _read_config(path: Path) -> VQConfig:
    try:
        return VQConfig(**read_json(path))
    except (OSError, FileError, TypeError, ConfigError) as error:
        found = error.strerror if isinstance(error, OSError) else error
        raise TokenizerError(
            f"{path}: no image tokenizer's config can be read there ({found}); expected the file "
            "that `calumma train-image-tokenizer` writes. Name the folder that holds it."
        ) from error
