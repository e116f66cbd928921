"""The cache: slots written, rows moved, room added."""

from __future__ import annotations

import torch

from calumma.model.cache import Cache
from calumma.model.config import DecoderConfig

CONFIG = DecoderConfig(
    vocabulary_size=4, model_dim=4, num_layers=2, num_heads=2, num_kv_heads=1, feed_forward_dim=4
)
LIKE = torch.zeros(())


def test_keys_go_to_their_slots() -> None:
    cache = Cache(CONFIG, num_rows=2, num_slots=4, like=LIKE)
    keys = torch.arange(8.0).reshape(2, 1, 2, 2)
    cache.write(1, keys, -keys, torch.tensor([[0, 1], [2, 3]]))
    assert cache.keys.shape == (2, 2, 1, 4, 2)
    assert cache.keys[0].abs().sum() == 0
    assert cache.keys[1, 0, 0].tolist() == [[0, 1], [2, 3], [0, 0], [0, 0]]
    assert cache.values[1, 1, 0].tolist() == [[0, 0], [0, 0], [-4, -5], [-6, -7]]


def test_a_token_sees_itself_and_what_is_before() -> None:
    cache = Cache(CONFIG, num_rows=2, num_slots=4, like=LIKE)
    mask = cache.mask(torch.tensor([[1, 2], [0, 1]]))
    assert mask.shape == (2, 1, 2, 4)
    assert mask[0, 0].int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 0]]
    assert mask[1, 0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0]]


def test_rows_are_moved_dropped_and_begun() -> None:
    cache = Cache(CONFIG, num_rows=3, num_slots=1, like=LIKE)
    cache.keys += torch.tensor([1.0, 2.0, 3.0])[None, :, None, None, None]
    cache.arrange(torch.tensor([2, -1, 0]))
    assert cache.keys[0, :, 0, 0, 0].tolist() == [3, 0, 1]


def test_rows_are_begun_in_an_empty_cache() -> None:
    cache = Cache(CONFIG, num_rows=0, num_slots=2, like=LIKE)
    cache.arrange(torch.tensor([-1, -1]))
    assert cache.keys.shape == cache.values.shape == (2, 2, 1, 2, 2)


def test_growing_keeps_what_is_there() -> None:
    cache = Cache(CONFIG, num_rows=1, num_slots=2, like=LIKE)
    cache.keys += 1
    cache.grow(1)
    assert cache.num_slots == 2
    cache.grow(5)
    assert cache.num_slots == 5
    assert cache.keys[0, 0, 0, :, 0].tolist() == [1, 1, 0, 0, 0]
    assert cache.values.shape == cache.keys.shape
