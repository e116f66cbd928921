"""What the image tokenizer keeps of a picture, and how much of its codebook it uses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray
from torch import Tensor

from calumma.documents.document import Image
from calumma.errors import EvaluationError
from calumma.evaluate.context import BATCH_SIZE, EvalConfig, EvalContext, encode_in_batches
from calumma.evaluate.image_grid import ImageGrid
from calumma.evaluate.image_similarity import psnr_db
from calumma.evaluate.metric import Metric, bootstrap_interval
from calumma.evaluate.reconstruction_details import Health
from calumma.text_format import counted
from calumma.tokens.image import ImageTokenizer
from calumma.tokens.pixels import to_pixels


def reconstruction(held_out: EvalContext, options: EvalConfig) -> list[Metric]:
    """The peak signal-to-noise ratio of pictures that went through codes, and codebook use.

    Where `options.health` holds, likeness in other ways too, and sheets.

    Raises:
        EvaluationError: there are no pictures, or the model cannot decode codes.
        ConfigError: `options.features` names no network.
    """
    images = [image for document in held_out.documents for image in document.images]
    require_pictures("reconstruction", held_out, len(images))
    codes = [row for rows in held_out.codes for row in rows]
    measured = Reconstruction(held_out.model.image, options)
    figures = measured.figures(images, codes)
    held_out.image_grids += measured.sheets
    held_out.skipped += measured.skipped
    return figures


def reconstruct(
    tokenizer: ImageTokenizer, images: Sequence[Image], options: EvalConfig
) -> tuple[list[Metric], list[ImageGrid], list[str]]:
    """The same of an image tokenizer alone: figures, sheets, and what was skipped.

    Raises:
        EvaluationError: there are no pictures.
        ConfigError: `options.features` names no network.
        ImageError: a picture cannot be read.
    """
    if not images:
        raise EvaluationError(
            "reconstruction: found no picture in the documents; expected at least one. Give "
            "documents with pictures (--documents)."
        )
    measured = Reconstruction(tokenizer, options)
    figures = measured.figures(images, encode_in_batches(tokenizer, images))
    return figures, measured.sheets, measured.skipped


def require_pictures(task: str, held_out: EvalContext, num_pictures: int) -> None:
    """See that there are pictures, and that the model can make some.

    Raises:
        EvaluationError: one of the two is not so.
    """
    if not num_pictures:
        raise EvaluationError(
            f"{task}: found no picture in "
            f"{counted(len(held_out.documents), 'document')}; expected at least "
            "one. Give documents with pictures (--documents), or leave this task out."
        )
    if not held_out.model.parts.tokenizers.has_image_decoder:
        raise EvaluationError(
            f"{task}: the model folder has no vq_decoder.safetensors, so codes cannot become "
            "pictures; expected the decoder of its image tokenizer. Put that file into the folder, "
            "or leave this task out."
        )


class Reconstruction:
    """One measurement of an image tokenizer."""

    def __init__(self, tokenizer: ImageTokenizer, options: EvalConfig) -> None:
        self.tokenizer = tokenizer
        self.options = options
        self.sheets: list[ImageGrid] = []
        self.skipped: list[str] = []

    def figures(self, images: Sequence[Image], codes: Sequence[Sequence[int]]) -> list[Metric]:
        """Decode everything once, and tell of it; pictures and their codes, in the same order."""
        health = Health(self.options) if self.options.reconstruction_details else None
        ours, flat = np.zeros(len(images)), np.zeros(len(images))
        for start in range(0, len(images), BATCH_SIZE):
            piece = slice(start, start + BATCH_SIZE)
            pictures = [image.open() for image in images[piece]]
            pixels, decoded = self._pixels(pictures), self._decoded(codes[piece])
            mean = mean_colours(pixels)
            ours[piece], flat[piece] = psnr_db(pixels, decoded), psnr_db(pixels, mean)
            if health:
                health.add(pictures, pixels, decoded)
            self.options.on_progress(min(start + BATCH_SIZE, len(images)), len(images))
        psnr = Metric(
            name="reconstruction_psnr_db",
            value=float(ours.mean()),
            baseline=float(flat.mean()),
            n=len(images),
            interval=bootstrap_interval(ours, seed=self.options.seed),
            unit="dB",
            note="mean over pictures; the baseline is each picture's mean colour",
        )
        figures = [psnr, *codebook_figures(np.array(codes), self.tokenizer.config.num_codes)]
        if health:
            figures += health.figures(ours, flat)
            self.skipped += health.skipped
            self.sheets += health.sheets(
                ours, lambda places: self._pairs([images[n] for n in places],
                                                 [codes[n] for n in places])
            )  # fmt: skip
        return figures

    def _pairs(
        self, images: Sequence[Image], codes: Sequence[Sequence[int]]
    ) -> tuple[Tensor, Tensor]:
        """Originals and what their codes look like, [B, 3, R, R] in [-1, 1] each."""
        return self._pixels([image.open() for image in images]), self._decoded(codes)

    def _pixels(self, pictures: Sequence[PIL.Image.Image]) -> Tensor:
        """[B, 3, R, R] in [-1, 1]."""
        side = self.tokenizer.config.resolution
        return torch.stack([to_pixels(picture, side) for picture in pictures])

    def _decoded(self, codes: Sequence[Sequence[int]]) -> Tensor:
        """[B, 3, R, R] in [-1, 1], about."""
        side = self.tokenizer.config.codes_per_side
        return self.tokenizer.decode(torch.tensor(codes).view(-1, side, side)).cpu()


def mean_colours(pixels: Tensor) -> Tensor:
    """Each picture as nothing but its mean colour: [B, 3, H, W]."""
    return pixels.mean(dim=(2, 3), keepdim=True).expand_as(pixels)


def codebook_figures(codes: NDArray[np.int64], num_codes: int) -> list[Metric]:
    """How many of the codes occur, and as how many equally likely ones they count.

    Args:
        codes: [images, cells] int64 codes.
        num_codes: rows of the codebook.
    """
    counts = np.bincount(codes.ravel(), minlength=num_codes)
    shares = counts[counts > 0] / counts.sum()
    used = len(shares)
    perplexity = float(np.exp(-(shares * np.log(shares)).sum()))
    note = f"{used} of {num_codes} codes occur in {codes.size:,} cells"
    return [
        Metric("codebook_used", used / num_codes, None, len(codes), None, "share", note),
        Metric(
            "codebook_perplexity", perplexity, None, len(codes), None, "codes",
            f"as many equally likely codes as these; at most {num_codes}",
        ),
    ]  # fmt: skip
