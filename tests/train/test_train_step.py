"""One optimizer step: micro-batches add up as if they were one batch."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from calumma.batches.batch import PADDING, Batch
from calumma.batches.loader import DataConfig, PackedLoader
from calumma.model.config import DecoderConfig
from calumma.model.decoder import Decoder
from calumma.shards.reader import ShardReader
from calumma.train.loss import cross_entropy_and_z_loss
from calumma.train.step_metrics import StepMetrics
from calumma.train.train_step import optimizer_step


@pytest.fixture
def model(decoder_config: DecoderConfig) -> Decoder:
    made = Decoder(decoder_config)
    made.init_weights(0)
    return made


@pytest.fixture
def batch(reader: ShardReader) -> Batch:
    """Four rows with very different numbers of loss tokens."""
    loader = PackedLoader(reader, DataConfig(seq_len=32, global_batch_size=4, pack_window=2))
    loader.set_mixture({"pairs": 1.0, "chat": 1.0, "text": 1.0})
    made = loader.next()
    mask = made.loss_mask.copy()
    mask[0, 3:] = False
    return Batch(made.input_ids, made.labels, mask, made.document_ids, made.position_ids)


def step(
    model: Decoder, batches: list[Batch], reader: ShardReader, max_grad_norm: float = 1.0
) -> StepMetrics:
    return optimizer_step(
        model,
        [torch.optim.SGD(model.parameters(), lr=0.5)],
        [batch.to("cpu") for batch in batches],
        vocabulary=reader.manifest.vocabulary,
        z_loss_weight=1e-2,
        max_grad_norm=max_grad_norm,
    )


@pytest.mark.parametrize("norm", [1.0, 1e9])
def test_one_batch_of_four_is_two_of_one_and_three(
    model: Decoder, batch: Batch, reader: ShardReader, norm: float
) -> None:
    other = copy.deepcopy(model)
    full = step(model, [batch], reader, norm)
    parts = [batch.rows(slice(0, 1)), batch.rows(slice(1, 4))]
    parted = step(other, parts, reader, norm)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.allclose(one, two, atol=1e-5)
    for name in ("loss", "loss_text", "loss_image", "log_z", "grad_norm"):
        assert getattr(full, name) == pytest.approx(getattr(parted, name), rel=1e-4)
    assert full.num_tokens == parted.num_tokens == (batch.document_ids != PADDING).sum()


def test_metrics_are_means_of_the_loss(model: Decoder, batch: Batch, reader: ShardReader) -> None:
    with torch.no_grad():
        stream = model(
            torch.from_numpy(batch.input_ids),
            head_fn=lambda hidden: hidden,
            document_ids=torch.from_numpy(batch.document_ids),
            position_ids=torch.from_numpy(batch.position_ids),
        )
        sums = cross_entropy_and_z_loss(
            model.norm(stream),
            model.head,
            torch.from_numpy(batch.labels),
            torch.from_numpy(batch.loss_mask),
            reader.manifest.vocabulary,
            z_loss_weight=0.0,
        )
    metrics = step(model, [batch], reader)
    assert metrics.loss == pytest.approx(float(sums.total) / batch.num_loss_tokens, rel=1e-5)
    assert metrics.loss_text == pytest.approx(float(sums.text / sums.num_text_tokens), rel=1e-5)
    assert metrics.loss_image == pytest.approx(float(sums.image / sums.num_image_tokens), rel=1e-5)
    inside = torch.from_numpy(batch.document_ids >= 0)
    assert metrics.output_norm == pytest.approx(float(stream[inside].norm(dim=-1).mean()), rel=1e-5)


def test_a_long_gradient_is_clipped(model: Decoder, batch: Batch, reader: ShardReader) -> None:
    before = [parameter.detach().clone() for parameter in model.parameters()]
    step(model, [batch], reader, max_grad_norm=1e-3)
    moved = [
        (p.detach() - b).square().sum() for p, b in zip(model.parameters(), before, strict=True)
    ]
    assert float(torch.stack(moved).sum().sqrt()) == pytest.approx(0.5 * 1e-3, rel=1e-2)


def test_a_batch_of_padding_changes_nothing(model: Decoder, reader: ShardReader) -> None:
    before = copy.deepcopy(model.state_dict())
    pad = np.full((2, 8), 1)
    nothing = Batch(pad, pad, pad == 0, np.full((2, 8), PADDING), pad * 0)
    metrics = step(model, [nothing], reader)
    assert (metrics.loss, metrics.output_norm, metrics.num_tokens) == (0.0, 0.0, 0)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def test_the_gradient_norm_of_each_group_is_reported(
    model: Decoder, batch: Batch, reader: ShardReader
) -> None:
    metrics = step(model, [batch], reader)
    groups = metrics.grad_norms
    assert set(groups) == {"embedding", "attention", "feed_forward", "norms", "head"}
    assert sum(norm**2 for norm in groups.values()) ** 0.5 == pytest.approx(metrics.grad_norm)
    assert metrics.max_logit > 0
