"""What is done to a sequence on its way into a row: order turned round, condition dropped.

Every choice is a function of the seed, the sequence's number and the epoch, not of who asks.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from calumma.batches.packing import TokenArray
from calumma.vocabulary import Vocabulary


def split_pair(ids: TokenArray, vocabulary: Vocabulary) -> tuple[TokenArray, TokenArray] | None:
    """The text and the image of an image-text pair, or None where the sequence is no pair.

    A pair is <s>, one run of text, one image (in either order), </s>.
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


def set_pair_order(
    ids: TokenArray, parts: tuple[TokenArray, TokenArray], *, image_first: bool
) -> TokenArray:
    """A pair, whose parts these are, in the order asked for."""
    text, image = parts
    inside = (image, text) if image_first else (text, image)
    return np.concatenate([ids[:1], *inside, ids[-1:]])


def drop_condition(
    ids: TokenArray, counted: NDArray[np.bool_], vocabulary: Vocabulary
) -> TokenArray | None:
    """The sequence with an image but without the text before it, for guidance to lean on.

    Pairs lose their text; a prompt answered by an image alone loses the prompt. None where the
    sequence is neither.
    """
    begins = np.flatnonzero(ids == vocabulary.begin_image)
    if len(begins) != 1:
        return None
    begin = int(begins[0])
    end = int(np.flatnonzero(ids == vocabulary.end_image)[0]) + 1
    if begin == 1 or not counted[begin] or end != len(ids) - 1:
        return None
    return np.concatenate([ids[:1], ids[begin:]])
