"""KV cache: slots written and copied, positions and slots of new tokens."""

import torch

from calumma.model.config import DecoderConfig
from calumma.model.kv_cache import KVCache, SequenceChunk, positions_and_slots, to_device_async

CONFIG = DecoderConfig(vocabulary_size=4, model_dim=4, num_layers=2, num_heads=2, num_kv_heads=1, feed_forward_dim=4)


def cache() -> KVCache:
    return KVCache(CONFIG, num_slots=6)


def test_keys_and_values_go_to_their_slots() -> None:
    made = cache()
    keys = torch.arange(6.0).reshape(3, 1, 2)
    all_keys, all_values = made.layer(1).update(keys, -keys, torch.tensor([4, 0, 1]))
    assert made.keys.shape == (2, 1, 6, 2)
    assert made.num_slots == 6
    assert made.keys[0].abs().sum() == 0
    assert all_keys[0].tolist() == [[2, 3], [4, 5], [0, 0], [0, 0], [0, 1], [0, 0]]
    assert torch.equal(all_values, -all_keys)
    assert torch.equal(made.keys[1], all_keys)


def test_a_prefix_is_copied() -> None:
    made = cache()
    made.keys += torch.arange(6.0)[:, None]
    made.copy_prefix(source=0, target=3, count=2)
    assert made.keys[1, 0, :, 0].tolist() == [0, 1, 2, 0, 1, 5]
    assert made.values.abs().sum() == 0


def test_new_tokens_follow_those_of_their_sequence() -> None:
    chunks = [SequenceChunk(10, 2, 1), SequenceChunk(20, 0, 3)]
    positions, slots = positions_and_slots(chunks, torch.device("cpu"))
    assert positions.tolist() == [2, 0, 1, 2]
    assert slots.tolist() == [12, 20, 21, 22]
    assert [chunk.seq_len for chunk in chunks] == [3, 3]


def test_every_position_has_its_angle() -> None:
    made = cache()
    assert made.cos.shape == made.sin.shape == (CONFIG.max_seq_len, 1)
    assert torch.allclose(made.sin[:, 0], torch.arange(CONFIG.max_seq_len).float().sin(), atol=1e-3)


def test_values_arrive_on_the_device() -> None:
    values = torch.tensor([[1, 2], [3, 4]])
    assert to_device_async(values, torch.device("cpu")).tolist() == [[1, 2], [3, 4]]
    assert to_device_async(values, torch.device("meta")).is_meta
