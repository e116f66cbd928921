"""The image tokenizer: images <-> codes.

A folder of it holds `image_tokenizer.json` (the config) and `image_tokenizer.safetensors`. Without
the decoder's tensors it can only encode.
"""

import json
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
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
from calumma.hub import find_model_folder
from calumma.tokens.image_prefetch import ImageInput, PreparedImage, default_decode_threads, prefetch_images
from calumma.tokens.image_preprocessing import ResizeMode, image_to_array, image_to_grid_array, to_rgb, to_square
from calumma.tokens.sequence import CodeGrid, grid_of
from calumma.tokens.text import raise_if_model_folder
from calumma.tokens.vq.config import VQConfig
from calumma.tokens.vq.inference import InferenceEncoder, Precision
from calumma.tokens.vq.network import VQModel, missing_modules
from calumma.vocabulary import Grid, ImageSizeTokens

IMAGE_TOKENIZER_CONFIG_NAME = "image_tokenizer.json"
IMAGE_TOKENIZER_WEIGHTS_NAME = "image_tokenizer.safetensors"
ENCODE_BATCH_SIZE = 32
"""Images per batch of the encoder; more is no faster on a CPU and costs memory."""


class ImageTokenizer:
    """A frozen VQ autoencoder; nearest codes are always searched in float32.

    Shapes: B images, H and W pixels, f pixels to a cell's side (`config.downsampling`).
    """

    def __init__(self, network: VQModel, *, precision: Precision = "float32", compiled: bool = False) -> None:
        """Freeze `network`, which is not copied: it must not be trained on.

        Args:
            network: encoder, codebook and decoder.
            precision: of the encoder; see `InferenceEncoder`.
            compiled: compile the encoder, which takes a minute and pays off on a GPU.
        """
        self.network = network.eval().requires_grad_(False).to(torch.float32)
        self.precision, self._compiled = precision, compiled
        self._stream: torch.cuda.Stream | None = None
        self._encoder = InferenceEncoder(self.network, precision, compiled=compiled)

    @property
    def config(self) -> VQConfig:
        """The config of the network."""
        return self.network.config

    @property
    def has_decoder(self) -> bool:
        """Whether the network has its decoder, so that codes can become images."""
        return self.network.has_decoder

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return self.network.quantizer.codebook.device

    @cached_property
    def fingerprint(self) -> str:
        """Twelve hex digits of everything that decides the codes."""
        return fingerprint(self._fingerprint_parts())

    def _fingerprint_parts(self) -> Iterator[bytes]:
        yield json.dumps(self.config.to_json(), sort_keys=True).encode()
        for name, tensor in sorted(self.network.state_dict().items()):
            yield name.encode()
            yield tensor.contiguous().cpu().numpy().tobytes()
        if self.precision != "float32":
            yield self.precision.encode()
        if self._compiled:
            yield b"compiled"

    @torch.inference_mode()
    def encode(self, pixels: Tensor) -> Tensor:
        """Encode each cell of images as the code of its nearest codebook row.

        Args:
            pixels: [B, 3, H, W] float32, RGB, from -1 (black) to 1 (white); H and W are multiples
                of f.

        Returns:
            [B, H/f, W/f] int64 codes in [0, num_codes), *not* token ids.
            Cells run left to right, then top to bottom. Ties go to the lower code.

        Raises:
            ImageError: the shape is wrong, or a pixel is outside [-1, 1].

        Source: VQGAN (arXiv:2012.09841), section 3.1.
        """
        self._require_pixels(pixels)
        return self._encoder.encode(pixels.to(self.device, torch.float32))

    @torch.inference_mode()
    def decode(self, codes: Tensor) -> Tensor:
        """Decode [B, h, w] int64 codes to [B, 3, h * f, w * f] float32 pixels, about [-1, 1].

        Raises:
            ImageError: a code is outside [0, num_codes), or the shape is wrong.
            TokenizerError: the network has no decoder.
        """
        if not self.has_decoder:
            raise TokenizerError(
                "this image tokenizer has no decoder, so it cannot decode images; expected one "
                "with a decoder. Use the tokenizers of a model folder with vq_decoder.safetensors "
                "(`calumma convert MODEL DIR --to tokenizers`)."
            )
        if codes.ndim != 3 or codes.dtype != torch.int64:
            raise ImageError(
                f"codes of shape {list(codes.shape)}, {codes.dtype}; expected [images, rows, "
                "columns] of int64. For the codes of one image, call decode_image."
            )
        self._require_codes(codes)
        return self.network.decode(codes.to(self.device))

    def encode_image(self, image: PIL.Image.Image, resize_mode: ResizeMode = "crop") -> list[int]:
        """Encode an image of any mode and size to its codes, row by row.

        Args:
            image: is turned upright, composited on white, and resized.
            resize_mode: "crop" cuts the longer side, "pad" adds white borders.

        Raises:
            ImageError: the aspect ratio is too large, or `resize_mode` is unknown.
        """
        return self.encode_images([image], resize_mode)[0]

    def encode_images(self, images: Sequence[PIL.Image.Image], resize_mode: ResizeMode = "crop") -> list[list[int]]:
        """Encode several images as `encode_image` does, but faster."""
        rows: list[list[int]] = []
        for start in range(0, len(images), ENCODE_BATCH_SIZE):
            batch = images[start : start + ENCODE_BATCH_SIZE]
            arrays = [image_to_array(p, self.config.resolution, resize_mode) for p in batch]
            with self._own_stream():
                rows.extend(self._encode_arrays(arrays).flatten(1).tolist())
        return rows

    def encode_in_layout(
        self, images: Sequence[PIL.Image.Image], modes: Sequence[ResizeMode], sizes: ImageSizeTokens | None
    ) -> Sequence[Sequence[int]]:
        """Encode images as squares, each by its mode, or in their own aspect ratios if there are sizes."""
        if sizes is not None:
            return self.encode_grids(images, sizes.grids)
        side = self.config.resolution
        return self.encode_images([to_square(to_rgb(p), side, mode) for p, mode in zip(images, modes, strict=True)])

    def encode_grids(self, images: Sequence[PIL.Image.Image], grids: Sequence[Grid]) -> list[CodeGrid]:
        """Encode images, each in the most similar of some grids of rows and columns of cells."""
        made = []
        for image in images:
            array = image_to_grid_array(image, grids, self.config.downsampling)
            with self._own_stream():
                made.append(_code_grid(self._encode_arrays([array])[0]))
        return made

    def encode_stream(
        self,
        images: Iterable[ImageInput],
        *,
        grids: Sequence[Grid] = (),
        num_threads: int | None = None,
        batch_size: int = ENCODE_BATCH_SIZE,
    ) -> Iterator[list[int] | ImageError]:
        """Encode images and yield the codes of each, or its error, in order.

        Threads decode and resize the next images while the network encodes; an image that cannot
        be decoded stops nothing. On a GPU one batch is encoded while the next is sent.

        Args:
            images: each with how it becomes square; read as the queue empties.
            grids: each image is encoded in the most similar one, as a `CodeGrid`; empty for squares.
            num_threads: threads that decode images (default: one per processor, at most 16).
            batch_size: images of one size per batch, always: the last batch of a size is filled up
                with copies, so an image's codes do not depend on the number of images.
        """

        def to_array(image: PIL.Image.Image, resize_mode: ResizeMode) -> np.ndarray:
            if grids:
                return image_to_grid_array(image, grids, self.config.downsampling)
            return image_to_array(image, self.config.resolution, resize_mode)

        prepared = prefetch_images(
            images, to_array, num_threads=num_threads or default_decode_threads(), prefetch=3 * batch_size
        )
        to_codes = _code_grid if grids else _code_list
        done: dict[int, list[int] | ImageError] = {}
        num_yielded = 0
        batches = self._encode_batches(prepared, batch_size, done)
        for indices, codes in batches:
            done.update(zip(indices, map(to_codes, codes), strict=False))
            while num_yielded in done:
                yield done.pop(num_yielded)
                num_yielded += 1

    def _encode_batches(
        self, images: Iterable[PreparedImage], batch_size: int, done: dict[int, list[int] | ImageError]
    ) -> Iterator[tuple[list[int], Tensor]]:
        """Yield indices and [B, h, w] codes of batches of images of one size; errors go to `done`."""
        waiting: dict[tuple[int, ...], dict[int, np.ndarray]] = {}
        running: deque[tuple[list[int], Tensor]] = deque()
        for index, image in enumerate(images):
            if isinstance(image, ImageError):
                done[index] = image
                continue
            batch = waiting.setdefault(image.shape, {})
            batch[index] = image
            if len(batch) == batch_size:
                del waiting[image.shape]
                running.append((list(batch), self._encode_arrays(list(batch.values()), batch_size)))
            if len(running) > 1:
                yield running.popleft()
        for batch in waiting.values():
            running.append((list(batch), self._encode_arrays(list(batch.values()), batch_size)))
        yield from running
        yield [], torch.empty(0, 1, 1, dtype=torch.int64)  # errors after the last batch

    @torch.inference_mode()
    def _encode_arrays(self, arrays: Sequence[np.ndarray], batch_size: int = 0) -> Tensor:
        """Encode arrays, and copies of the last up to `batch_size`: [B, h, w] int64 codes."""
        filled = [*arrays, *[arrays[-1]] * (batch_size - len(arrays))]
        values = torch.from_numpy(np.stack(filled))
        if self.device.type == "cuda":
            values = values.pin_memory().to(self.device, non_blocking=True)
        return self._encoder.encode(normalize_pixels(values.to(self.device)))

    def decode_image(self, codes: Sequence[int]) -> PIL.Image.Image:
        """Decode the codes of one image.

        The image is a square of `codes_per_image`, or has the rows and columns of a `CodeGrid`.
        Fewer codes, of an image still being generated, are filled up with the first code, as in the
        release.

        Raises:
            ImageError: there is no code, too many, or one outside [0, num_codes).
            TokenizerError: the network has no decoder.
        """
        side = self.config.codes_per_side
        rows, columns = grid_of(codes) if isinstance(codes, CodeGrid) else (side, side)
        expected = rows * columns
        if not 1 <= len(codes) <= expected:
            raise ImageError(
                f"{len(codes)} codes; expected {expected}, or at least 1 of an incomplete image. "
                "Pass the codes of exactly one image."
            )
        filled = [*codes, *[codes[0]] * (expected - len(codes))]
        with self._own_stream():
            return pixels_to_image(self.decode(torch.tensor(filled).view(1, rows, columns))[0])

    def _own_stream(self) -> AbstractContextManager[object]:
        """Return a context on a stream of its own on a GPU, so that no decoder's step waits.

        Results must reach the host inside.
        """
        if self.device.type != "cuda":
            return nullcontext()
        self._stream = self._stream or torch.cuda.Stream(self.device)
        return torch.cuda.stream(self._stream)

    def save(self, folder: Path) -> None:
        """Write the two files into `folder`, which is created if it does not exist.

        Raises:
            OutputError: the folder cannot be written.
        """
        make_folder(folder)
        tensors = {k: v.contiguous().cpu() for k, v in self.network.state_dict().items()}
        with atomic_write(folder / IMAGE_TOKENIZER_WEIGHTS_NAME) as temporary:
            # Not save_file, which ignores the umask and makes files readable by one user only.
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
    ) -> "ImageTokenizer":
        """Read the files of `save`; the other arguments are those of the constructor.

        Raises:
            TokenizerError: a file is missing or broken, the files do not match, or the folder is
                a model's.
        """
        folder = find_model_folder(folder)
        if not (folder / IMAGE_TOKENIZER_CONFIG_NAME).is_file():
            raise_if_model_folder(folder)
        config = _read_config(folder / IMAGE_TOKENIZER_CONFIG_NAME)
        path = folder / IMAGE_TOKENIZER_WEIGHTS_NAME
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise TokenizerError(
                f"{path}: the weights cannot be read ({error}); expected the safetensors file that belongs to "
                f"{IMAGE_TOKENIZER_CONFIG_NAME}. Copy the folder again, or train with `calumma train-image-tokenizer`."
            ) from error
        network = VQModel(config, missing_modules(tensors.keys()))
        own = network.state_dict()
        for name in sorted(own.keys() | tensors.keys()):
            found = list(tensors[name].shape) if name in tensors else "nothing"
            expected = list(own[name].shape) if name in own else "nothing"
            if found != expected:
                raise TokenizerError(
                    f"{path}: tensor {name} is {found}; expected {expected} by "
                    f"{IMAGE_TOKENIZER_CONFIG_NAME}. Copy both files of the same tokenizer again."
                )
        network.load_state_dict(tensors)
        return cls(network.to(device), precision=precision, compiled=compiled)

    def _require_pixels(self, pixels: Tensor) -> None:
        f = self.config.downsampling
        if pixels.ndim != 4 or pixels.shape[1] != 3:
            raise ImageError(f"pixels of shape {list(pixels.shape)}; expected [images, 3, height, width].")
        height, width = pixels.shape[2:]
        if height % f or width % f or 0 in pixels.shape:
            raise ImageError(
                f"{len(pixels)} images of {height} x {width} pixels; expected at least one, with "
                f"sides that are multiples of {f}. Resize them, or call encode_image."
            )
        low, high = (float(end) for end in pixels.aminmax())
        # Allow for the rounding error of resizing in floating point.
        if not (low >= -1.001 and high <= 1.001):
            raise ImageError(
                f"pixels from {low:g} to {high:g}; expected them from -1 (black) to 1 (white). "
                "Convert values from 0 to 255 with x / 255 * 2 - 1."
            )

    def _require_codes(self, codes: Tensor) -> None:
        if codes.numel() == 0:
            raise ImageError(f"no codes: shape {list(codes.shape)}; expected at least one image.")
        low, high = int(codes.min()), int(codes.max())
        if low < 0 or high >= self.config.num_codes:
            invalid = low if low < 0 else high
            raise ImageError(
                f"code {invalid} is not in the codebook; expected codes from 0 to "
                f"{self.config.num_codes - 1}. Convert token ids to codes first."
            )


def _code_list(codes: Tensor) -> list[int]:
    flat: list[int] = codes.flatten().tolist()
    return flat


def _code_grid(codes: Tensor) -> CodeGrid:
    return CodeGrid(codes.flatten().tolist(), *codes.shape)


def _read_config(path: Path) -> VQConfig:
    try:
        return VQConfig(**read_json(path))
    except (OSError, FileError, TypeError, ConfigError) as error:
        found = error.strerror if isinstance(error, OSError) else error
        raise TokenizerError(
            f"{path}: the config of the image tokenizer cannot be read ({found}); expected the "
            "file that `calumma train-image-tokenizer` writes. Name the folder that holds it."
        ) from error


def image_to_pixels(image: PIL.Image.Image, resolution: int, resize_mode: ResizeMode = "crop") -> Tensor:
    """Convert an image of any mode and size to [3, R, R] float32 in [-1, 1].

    Raises:
        ImageError: as `image_to_array`.
    """
    return normalize_pixels(torch.from_numpy(image_to_array(image, resolution, resize_mode)))


def normalize_pixels(values: Tensor) -> Tensor:
    """Convert uint8 values of any shape to float32 in [-1, 1]: x / 255 * 2 - 1.

    >>> normalize_pixels(torch.tensor([0, 255], dtype=torch.uint8)).tolist()
    [-1.0, 1.0]
    """
    return values.to(torch.float32) / 255.0 * 2.0 - 1.0


def pixels_to_image(pixels: Tensor) -> PIL.Image.Image:
    """Convert [3, H, W] pixels to an image; values are clamped to [-1, 1] and truncated."""
    unit = (pixels.detach().to("cpu", torch.float32).clamp(-1.0, 1.0) + 1.0) / 2.0
    values = (unit * 255.0).to(torch.uint8)
    return PIL.Image.fromarray(values.permute(1, 2, 0).contiguous().numpy())
