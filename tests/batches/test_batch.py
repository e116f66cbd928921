"""Batches: counts, rows, modalities, dtypes and devices."""

from dataclasses import replace

import numpy as np
import torch

from calumma.batches.batch import PADDING, Batch, TokenModality
from calumma.vocabulary import Vocabulary

BATCH = Batch(
    input_ids=np.array([[0, 5, 1], [0, 6, 7]]),
    labels=np.array([[5, 2, 1], [6, 7, 2]]),
    loss_mask=np.array([[False, True, False], [True, True, True]]),
    document_ids=np.array([[0, 0, PADDING], [0, 0, 0]]),
    position_ids=np.array([[0, 1, 0], [0, 1, 2]]),
)


def test_counts_by_hand() -> None:
    assert BATCH.num_loss_tokens == 4
    assert BATCH.non_padding_fraction == 5 / 6


def test_some_of_the_rows() -> None:
    swapped = BATCH.rows(np.array([1, 0]))
    assert swapped.input_ids.tolist() == [[0, 6, 7], [0, 5, 1]]
    last = BATCH.rows(slice(1, 2))
    assert (last.labels.tolist(), last.document_ids.tolist()) == ([[6, 7, 2]], [[0, 0, 0]])
    assert (last.loss_mask.tolist(), last.position_ids.tolist()) == ([[True] * 3], [[0, 1, 2]])


def test_the_modality_of_each_label() -> None:
    vocabulary = Vocabulary(num_codes=3, num_text=256)
    text = vocabulary.text.start
    labels = np.array([[text, vocabulary.begin_image, 4, 6, vocabulary.end_image, 2, 1]])
    document_ids = np.array([[0, 0, 0, 0, 0, 0, PADDING]])
    zeros = np.zeros_like(labels)
    batch = Batch(zeros, labels, zeros.astype(bool), document_ids, zeros)
    names = ["TEXT", "CONTROL", "IMAGE", "IMAGE", "CONTROL", "CONTROL", "NONE"]
    assert [TokenModality(n).name for n in batch.modalities(vocabulary)[0]] == names


def test_a_batch_is_sent_narrow_and_widened_on_the_device() -> None:
    wide = replace(BATCH, input_ids=BATCH.input_ids + 60_000)
    narrow = wide.downcast()
    assert [array.dtype.name for array in narrow._arrays()] == [*("uint16", "uint8", "bool", "int16", "uint8")]
    for name, tensor in narrow.to("cpu")._asdict().items():
        name = name.removeprefix("host_")
        assert tensor.dtype == (torch.bool if name == "loss_mask" else torch.int64)
        assert tensor.tolist() == getattr(wide, name).tolist()
