"""Training of a downward head: the order of a batch's tokens, and the inputs of the output layer.

Images of a packed batch are put into the order of their diagonals, each token with its position and
document, as the engine computes them. The input of the output layer for a code is then made of the
hidden states of the codes to its left and above, wherever they are in the row.

Shapes: B rows, T tokens, M model_dim.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import isqrt
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from calumma.batches.batch import Batch
from calumma.model.decoder import Decoder
from calumma.model.downward_head import DownwardHead, diagonals
from calumma.train.config_finetune import FinetuneConfig
from calumma.train.parallelize import NamedTensors
from calumma.vocabulary import Vocabulary


def add_downward_head(decoder: Decoder, config: FinetuneConfig) -> None:
    """Add an uninitialized downward head to a decoder if the config asks for one; freeze the rest if it is alone."""
    if config.downward_head == "none":
        return
    if config.downward_head == "head":
        decoder.requires_grad_(False)
    decoder.downward_head = DownwardHead(decoder.config.model_dim)


def initial_downward_head(config: FinetuneConfig, start: Decoder) -> NamedTensors:
    """Yield the initial weights of the head, unless the initial model has one."""
    if config.downward_head != "none" and start.downward_head is None:
        with torch.device("meta"):
            head = DownwardHead(start.config.model_dim)
        for name, weights in head.initial_weights(config.seed):
            yield f"downward_head.{name}", weights


class Neighbors(NamedTuple):
    """For each label of a batch the tokens whose hidden states predict it, [B, T] each."""

    left: Tensor
    """int64, index in the row of the code to the left; of the label's own input if it is no code."""

    above: Tensor
    """int64, index of the code above; 0 where there is none."""

    has_left: Tensor
    has_above: Tensor
    is_code: Tensor
    """bool, whether the label is a code that is generated diagonal by diagonal."""


def diagonal_batches(
    decoder: Decoder, batches: Sequence[Batch], vocabulary: Vocabulary
) -> tuple[Sequence[Batch], Sequence[Neighbors | None]]:
    """Return `diagonal_batch` of micro-batches: of all images, or of every second one unless the decoder is frozen.

    So a decoder that is trained as a whole still generates images in reading order. Without a
    downward head nothing changes.
    """
    if decoder.downward_head is None:
        return batches, [None] * len(batches)
    every = 2 if decoder.embedding.weight.requires_grad else 1
    device = decoder.embedding.weight.device
    pairs = [diagonal_batch(batch, vocabulary, every=every) for batch in batches]
    return [batch for batch, _ in pairs], [Neighbors(*(each.to(device) for each in found)) for _, found in pairs]


def diagonal_batch(batch: Batch, vocabulary: Vocabulary, *, every: int) -> tuple[Batch, Neighbors]:
    """Put every `every`-th complete image of a batch into the order of its diagonals.

    Args:
        batch: packed rows in reading order, on the host; square images.
        vocabulary: begin and end of an image.
        every: 1 for all images.

    Returns:
        The batch, whose label of a token is the code of the next cell in the new order, and the
        neighbors of each label.
    """
    arrays = {name: np.array(getattr(batch, name)) for name in ("input_ids", "labels", "loss_mask", "position_ids")}
    rows, length = arrays["input_ids"].shape
    left, above = np.tile(np.arange(length), (rows, 1)), np.zeros((rows, length), dtype=np.int64)
    has_left, has_above, is_code = np.ones_like(left, bool), np.zeros_like(left, bool), np.zeros_like(left, bool)
    for number, (row, begin, count) in enumerate(_images(batch, vocabulary)):
        if number % every:
            continue
        side = isqrt(count)
        order = np.array([cell for cells in diagonals(side, side) for cell in cells])
        slot = np.empty(count + 1, dtype=np.int64)
        slot[order] = begin + 1 + np.arange(count)  # where the token of each cell goes
        codes, labels = slice(begin + 1, begin + 1 + count), slice(begin, begin + count)
        for name in ("input_ids", "position_ids"):
            arrays[name][row, codes] = arrays[name][row, codes][order]
        for name in ("labels", "loss_mask"):
            arrays[name][row, labels] = arrays[name][row, labels][order]
        column, line = order % side, order // side
        has_left[row, labels], has_above[row, labels], is_code[row, labels] = column > 0, line > 0, True
        has_left[row, begin] = True
        left[row, labels] = np.where(column > 0, slot[order - 1], begin)
        above[row, labels] = np.where(line > 0, slot[order - side], 0)
    tensors = (torch.from_numpy(array) for array in (left, above, has_left, has_above, is_code))
    return replace(batch, **arrays), Neighbors(*tensors)


def _images(batch: Batch, vocabulary: Vocabulary) -> Iterator[tuple[int, int, int]]:
    """Yield row, index of begin-of-image and number of codes of each complete image."""
    for row, ids in enumerate(batch.input_ids):
        begins, ends = (np.flatnonzero(ids == id_) for id_ in (vocabulary.begin_image, vocabulary.end_image))
        for begin in begins.tolist():
            after = ends[ends > begin]
            count = int(after[0]) - begin - 1 if len(after) else 0
            codes = ids[begin + 1 : begin + 1 + count]
            is_square = count > 0 and isqrt(count) ** 2 == count
            if is_square and codes.min() >= vocabulary.codes.start and codes.max() < vocabulary.codes.stop:
                yield row, begin, count


def combine_neighbors(hidden: Tensor, neighbors: Neighbors | None, head: DownwardHead | None) -> Tensor:
    """Return the inputs of the output layer for the labels of a batch.

    Args:
        hidden: [B, T, M] after the last norm.
        neighbors: of the batch, on the same device; None for a batch in reading order.
        head: combines two hidden states.

    Returns:
        [B, T, M]: combined hidden states for codes, the token's own for all other labels.
    """
    if neighbors is None or head is None:
        return hidden
    index = (*hidden.shape[:2], 1)
    left = hidden.take_along_dim(neighbors.left.view(index), dim=1)
    above = hidden.take_along_dim(neighbors.above.view(index), dim=1)
    combined = head(left, above, neighbors.has_left, neighbors.has_above)
    return torch.where(neighbors.is_code.unsqueeze(-1), combined, left)
