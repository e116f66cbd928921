"""Augmentation of sequences: the order of image-text pairs, and condition dropout."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from calumma.vocabulary import Vocabulary

Ids = NDArray[np.int64]


def split_pair(ids: Ids, vocabulary: Vocabulary) -> tuple[Ids, Ids] | None:
    """Return the text and the image of an image-text pair; None if the sequence is no pair.

    A pair is <s>, one run of text and one image in either order, </s>.
    """
    begins = np.flatnonzero(ids == vocabulary.begin_image)
    ends = np.flatnonzero(ids == vocabulary.end_image)
    if len(begins) != 1 or len(ends) != 1 or vocabulary.end_turn in ids:
        return None
    begin, end = int(begins[0]), int(ends[0]) + 1
    before, after = ids[1:begin], ids[end:-1]
    if (len(before) == 0) == (len(after) == 0):
        return None
    return (before if len(before) else after), ids[begin:end]


def set_pair_order(ids: Ids, parts: tuple[Ids, Ids], *, image_first: bool) -> Ids:
    """Return a pair, whose text and image are `parts`, in the given order."""
    text, image = parts
    ordered = (image, text) if image_first else (text, image)
    return np.concatenate([ids[:1], *ordered, ids[-1:]])


def drop_condition(ids: Ids, loss_mask: NDArray[np.bool_], vocabulary: Vocabulary) -> Ids | None:
    """Drop the text before an image, to train for classifier-free guidance.

    A pair loses its text; a prompt answered by an image alone loses the prompt. Returns None if the
    sequence is neither.
    """
    begins = np.flatnonzero(ids == vocabulary.begin_image)
    if len(begins) != 1:
        return None
    begin = int(begins[0])
    end = int(np.flatnonzero(ids == vocabulary.end_image)[0]) + 1
    if begin == 1 or not loss_mask[begin] or end != len(ids) - 1:
        return None
    return np.concatenate([ids[:1], ids[begin:]])
