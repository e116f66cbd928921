"""The `reconstruction` task: PSNR of the image tokenizer, and its codebook usage."""

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
from calumma.evaluate.metric import Metric, bootstrap_interval
from calumma.evaluate.reconstruction_details import ReconstructionMetrics, psnr_db
from calumma.text_format import pluralize
from calumma.tokens.image import ImageTokenizer, image_to_pixels


def reconstruction(context: EvalContext, config: EvalConfig) -> list[Metric]:
    """Measure the PSNR of encoded and decoded images, and codebook usage.

    With `config.reconstruction_details`, other similarity measures and image grids too.

    Raises:
        EvaluationError: there are no images, or the model cannot decode codes.
        ConfigError: `config.feature_network` cannot be loaded.
    """
    images = [image for document in context.documents for image in document.images]
    require_images("reconstruction", context, len(images))
    codes = [row for rows in context.codes for row in rows]
    if context.model.vocabulary.image_sizes is not None:
        codes = encode_in_batches(context.model.image, images)  # compared as squares
    metrics, image_grids, skipped = _measure(context.model.image, images, codes, config)
    context.image_grids += image_grids
    context.skipped += skipped
    return metrics


def evaluate_reconstruction(
    tokenizer: ImageTokenizer, images: Sequence[Image], config: EvalConfig
) -> tuple[list[Metric], list[ImageGrid], list[str]]:
    """Measure an image tokenizer alone.

    Returns:
        Metrics, image grids, and the measurements that were skipped.

    Raises:
        EvaluationError: there are no images.
        ConfigError: `config.feature_network` cannot be loaded.
        ImageError: an image cannot be read.
    """
    if not images:
        raise EvaluationError(
            "reconstruction: found no image in the documents; expected at least one. Give "
            "documents with images (--documents)."
        )
    return _measure(tokenizer, images, encode_in_batches(tokenizer, images), config)


def require_images(task: str, context: EvalContext, num_images: int) -> None:
    """Check that there are images and that the model has an image decoder.

    Raises:
        EvaluationError: it is not so.
    """
    if not num_images:
        raise EvaluationError(
            f"{task}: found no image in {pluralize(len(context.documents), 'document')}; expected "
            "at least one. Give documents with images (--documents), or leave this task out."
        )
    if not context.model.components.tokenizers.has_image_decoder:
        raise EvaluationError(
            f"{task}: the model folder has no vq_decoder.safetensors, so codes cannot be decoded to images; expected "
            "the decoder of its image tokenizer. Put that file into the folder, or leave this task out."
        )


def _measure(
    tokenizer: ImageTokenizer, images: Sequence[Image], codes: Sequence[Sequence[int]], config: EvalConfig
) -> tuple[list[Metric], list[ImageGrid], list[str]]:
    """Decode the codes of all images once and measure; returns as `evaluate_reconstruction`."""
    details = ReconstructionMetrics(config) if config.reconstruction_details else None
    psnr, flat_psnr = np.zeros(len(images)), np.zeros(len(images))
    for start in range(0, len(images), BATCH_SIZE):
        batch = slice(start, start + BATCH_SIZE)
        originals = [image.open() for image in images[batch]]
        pixels, decoded = _reconstruct(tokenizer, originals, codes[batch])
        flat = mean_color_images(pixels)
        psnr[batch], flat_psnr[batch] = psnr_db(pixels, decoded), psnr_db(pixels, flat)
        if details:
            details.add(originals, pixels, decoded)
        config.on_progress(min(start + BATCH_SIZE, len(images)), len(images))
    metric = Metric(
        name="reconstruction_psnr_db",
        value=float(psnr.mean()),
        baseline=float(flat_psnr.mean()),
        n=len(images),
        interval=bootstrap_interval(psnr, seed=config.seed),
        unit="dB",
        note="mean over images; the baseline is each image's mean color",
    )
    metrics = [metric, *codebook_metrics(np.array(codes), tokenizer.config.num_codes)]
    if not details:
        return metrics, [], []
    metrics += details.metrics(psnr, flat_psnr)

    def reconstruct(indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        originals = [images[index].open() for index in indices]
        return _reconstruct(tokenizer, originals, [codes[index] for index in indices])

    return metrics, details.image_grids(psnr, reconstruct), details.skipped


def _reconstruct(
    tokenizer: ImageTokenizer, images: Sequence[PIL.Image.Image], codes: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor]:
    """Return originals and reconstructions, [B, 3, R, R], about in [-1, 1] each."""
    resolution, side = tokenizer.config.resolution, tokenizer.config.codes_per_side
    pixels = torch.stack([image_to_pixels(image, resolution) for image in images])
    return pixels, tokenizer.decode(torch.tensor(codes).view(-1, side, side)).cpu()


def mean_color_images(pixels: Tensor) -> Tensor:
    """Replace each image by its mean color: [B, 3, H, W]."""
    return pixels.mean(dim=(2, 3), keepdim=True).expand_as(pixels)


def codebook_metrics(codes: NDArray[np.int64], num_codes: int) -> list[Metric]:
    """Return codebook usage and perplexity.

    Args:
        codes: [images, cells] int64 codes.
        num_codes: codebook size.
    """
    counts = np.bincount(codes.ravel(), minlength=num_codes)
    probs = counts[counts > 0] / counts.sum()
    used = len(probs)
    perplexity = float(np.exp(-(probs * np.log(probs)).sum()))
    note = f"{used} of {num_codes} codes occur in {codes.size:,} cells"
    return [
        Metric("codebook_used", used / num_codes, None, len(codes), None, "share", note),
        Metric(
            "codebook_perplexity", perplexity, None, len(codes), None, "codes",
            f"the number of equally likely codes with the same entropy; at most {num_codes}",
        ),
    ]  # fmt: skip
