"""What the image tokenizer keeps of a picture, and how much of its codebook it uses."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calumma.documents.document import Image
from calumma.errors import EvaluationError
from calumma.evaluate.figure import Figure, bootstrap_interval
from calumma.evaluate.held_out import PIECES, HeldOut, Options
from calumma.tokens.pixels import to_pixels

MOST_DB = 60.0
"""A picture that comes back this well counts as this: rounding to 8 bits alone gives 59 dB."""


def reconstruction(held_out: HeldOut, options: Options) -> list[Figure]:
    """The peak signal-to-noise ratio of pictures that went through codes, and codebook use.

    Raises:
        EvaluationError: there are no pictures, or the model cannot decode codes.
    """
    images = [image for document in held_out.documents for image in document.images]
    require_pictures("reconstruction", held_out, len(images))
    codes = [row for rows in held_out.codes for row in rows]
    ours, flat = np.zeros(len(images)), np.zeros(len(images))
    for start in range(0, len(images), PIECES):
        piece = slice(start, start + PIECES)
        pixels = _pixels(held_out, images[piece])
        side = held_out.model.image.config.codes_per_side
        decoded = held_out.model.image.decode(torch.tensor(codes[piece]).view(-1, side, side))
        ours[piece] = psnr_db(pixels, decoded.cpu())
        flat[piece] = psnr_db(pixels, pixels.mean(dim=(2, 3), keepdim=True).expand_as(pixels))
        options.tick(min(start + PIECES, len(images)), len(images))
    psnr = Figure(
        name="reconstruction_psnr_db",
        value=float(ours.mean()),
        baseline=float(flat.mean()),
        n=len(images),
        interval=bootstrap_interval(ours, seed=options.seed),
        unit="dB",
        note="mean over pictures; the baseline is each picture's mean colour",
    )
    return [psnr, *codebook_figures(np.array(codes), held_out.model.image.config.num_codes)]


def require_pictures(task: str, held_out: HeldOut, num_pictures: int) -> None:
    """See that there are pictures, and that the model can make some.

    Raises:
        EvaluationError: one of the two is not so.
    """
    if not num_pictures:
        raise EvaluationError(
            f"{task}: found no picture in {len(held_out.documents)} documents; wanted at least "
            "one. Give documents with pictures (--documents), or leave this task out."
        )
    if not held_out.model.parts.draws:
        raise EvaluationError(
            f"{task}: the model folder has no vq_decoder.safetensors, so codes cannot become "
            "pictures; wanted the decoder of its image tokenizer. Put that file into the folder, "
            "or leave this task out."
        )


def _pixels(held_out: HeldOut, images: list[Image]) -> Tensor:
    resolution = held_out.model.image.config.resolution
    return torch.stack([to_pixels(image.open(), resolution) for image in images])


def psnr_db(pixels: Tensor, decoded: Tensor) -> NDArray[np.float64]:
    """Peak signal-to-noise ratio of each picture, at most MOST_DB.

    Args:
        pixels: [B, 3, H, W] from -1 to 1.
        decoded: the same; what lies outside is clamped.

    Returns:
        [B] in dB, for pixels from 0 to 1.
    """
    errors = (pixels - decoded.clamp(-1, 1)).double() / 2
    squared = errors.square().mean(dim=(1, 2, 3)).numpy()
    return -10 * np.log10(np.maximum(squared, 10 ** (-MOST_DB / 10)))


def codebook_figures(codes: NDArray[np.int64], num_codes: int) -> list[Figure]:
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
        Figure("codebook_used", used / num_codes, None, len(codes), None, "share", note),
        Figure(
            "codebook_perplexity", perplexity, None, len(codes), None, "codes",
            f"as many equally likely codes as these; at most {num_codes}",
        ),
    ]  # fmt: skip
