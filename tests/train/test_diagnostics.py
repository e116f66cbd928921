"""Diagnostics: equal to a computation by hand, and without side effects."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from calumma.batches.batch import DeviceBatch
from calumma.batches.loader import DataConfig, PackedLoader
from calumma.model.config import DecoderConfig
from calumma.model.decoder import Decoder
from calumma.model.rope import apply_rotary_emb, rope_angles
from calumma.shards.reader import ShardReader
from calumma.train import diagnostics as module
from calumma.train.compile_and_recompute import apply_recompute_and_compile
from calumma.train.config import ComputeConfig
from calumma.train.diagnostics import max_attention_logits, sample_weights, take_snapshot, update_ratios
from calumma.train.parallelize import SINGLE_RANK


@pytest.fixture
def micro(reader: ShardReader) -> DeviceBatch:
    """Two rows of several documents each."""
    loader = PackedLoader(reader, DataConfig(seq_len=32, global_batch_size=2, pack_window=2))
    loader.set_mixture({"pairs": 1.0, "text": 1.0})
    return loader.next().to(torch.device("cpu"))


def fresh(config: DecoderConfig, **changes: Any) -> Decoder:
    made = Decoder(replace(config, **changes))
    made.init_weights(0)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "query" in name or "key" in name:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator()) / 2)
    return made.train()


def first_layer_by_hand(decoder: Decoder, micro: DeviceBatch) -> float:
    """Compute the maximum logit of the first block, pair by pair."""
    attention = decoder.blocks[0].attention
    x = decoder.blocks[0].attention_norm(decoder.embedding(micro.input_ids))
    angles = rope_angles(micro.position_ids, decoder.config.head_dim, 10_000.0).unsqueeze(-2)
    q, k = (
        apply_rotary_emb(norm(linear(x).unflatten(-1, (-1, decoder.config.head_dim))), *both(angles))
        for norm, linear in ((attention.query_norm, attention.query), (attention.key_norm, attention.key))
    )
    group_size = decoder.config.num_heads // decoder.config.num_kv_heads
    found = [
        float(q[row, i, head] @ k[row, j, head // group_size]) / decoder.config.head_dim**0.5
        for row in range(len(x))
        for i in range(x.shape[1])
        for j in range(i + 1)
        if micro.document_ids[row, i] == micro.document_ids[row, j]
        for head in range(decoder.config.num_heads)
    ]
    return max(found)


def both(angles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return angles.cos(), angles.sin()


@pytest.mark.parametrize("qk_norm", ["layer", "none"])
def test_the_maximum_is_over_all_unmasked_pairs(
    decoder_config: DecoderConfig, micro: DeviceBatch, qk_norm: str
) -> None:
    decoder = fresh(decoder_config, qk_norm=qk_norm, norm_order="pre")
    micro = DeviceBatch(*(one[1:] for one in micro))
    maxima = max_attention_logits(decoder, micro)
    assert maxima.shape == (2,)
    with torch.no_grad():
        assert float(maxima[0]) == pytest.approx(first_layer_by_hand(decoder, micro), rel=1e-5)


def test_qk_norm_bounds_the_logits(decoder_config: DecoderConfig, micro: DeviceBatch) -> None:
    normed, free = fresh(decoder_config), fresh(decoder_config, qk_norm="none")
    maxima = {}
    for name, decoder in (("normed", normed), ("free", free)):
        with torch.no_grad():
            for block in decoder.blocks:
                block.attention.query.weight.mul_(100)
        maxima[name] = float(max_attention_logits(decoder, micro).max())
    # |q| and |k| are at most the root of D, times weights of norms, which are near 1.
    assert maxima["normed"] < 30 < maxima["free"]


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # the compiler looks at it
@pytest.mark.parametrize("recompute", ["none", "full"])
def test_measuring_has_no_side_effects(decoder_config: DecoderConfig, micro: DeviceBatch, recompute: Any) -> None:
    decoder = fresh(decoder_config, dropout=0.5)
    apply_recompute_and_compile(decoder, ComputeConfig(activation_checkpointing=recompute, compile="aot_eager"))
    weights = copy.deepcopy(decoder.state_dict())
    torch.manual_seed(1)
    before = decoder(micro.input_ids)
    state = torch.get_rng_state()
    first = max_attention_logits(decoder, micro)
    second = max_attention_logits(decoder, micro)
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert torch.equal(decoder(micro.input_ids), before)
    assert decoder.training
    assert all(torch.equal(weights[name], one) for name, one in decoder.state_dict().items())


def test_update_ratios_are_by_group(decoder_config: DecoderConfig) -> None:
    decoder = fresh(decoder_config)
    before = sample_weights(decoder)
    with torch.no_grad():
        decoder.head.weight.mul_(1.25)
        for block in decoder.blocks:
            for parameter in block.feed_forward.parameters():
                parameter.mul_(0.5)
        decoder.embedding.weight.zero_()
    ratios = update_ratios(decoder, before, SINGLE_RANK)
    assert {group: float(ratio) for group, ratio in ratios.items()} == {
        "embedding": pytest.approx(1.0),
        "attention": 0.0,
        "feed_forward": pytest.approx(0.5),
        "norms": 0.0,
        "head": pytest.approx(0.25),
    }


def test_large_weights_are_sampled(decoder_config: DecoderConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = fresh(decoder_config)
    monkeypatch.setattr(module, "MAX_SAMPLED_ELEMENTS", 100)
    before = sample_weights(decoder)
    assert all(50 < len(one) <= 100 for n, one in before.items() if "norm" not in n)
    with torch.no_grad():
        decoder.head.weight.mul_(1.25)
    assert float(update_ratios(decoder, before, SINGLE_RANK)["head"]) == pytest.approx(0.25)


def test_a_snapshot_has_metrics_by_layer_and_group(decoder_config: DecoderConfig, micro: DeviceBatch) -> None:
    decoder = fresh(decoder_config)
    metrics = take_snapshot(decoder, micro, 16, SINGLE_RANK).measure()()
    assert metrics["max_attention_logit"] == max(metrics["max_attention_logit_0"], metrics["max_attention_logit_1"])
    assert metrics["update_ratio_head"] == 0.0
    short = DeviceBatch(*(one[:1, :16] for one in micro))
    assert metrics["max_attention_logit_0"] == pytest.approx(float(max_attention_logits(decoder, short)[0]))
