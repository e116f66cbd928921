"""Image targets teach our decoder, and give transformers' port of Chameleon an infinite loss."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from benches.port import trained_port
from benches.train_step import SHAPES, BenchSetting, build_vocabulary
from calumma.model.decoder import Decoder
from calumma.train.config import ComputeConfig
from calumma.train.loss import LossSums, cross_entropy_and_z_loss

# The port's image codes are the ids 4 and 5; see `port_config`.
SETTING = BenchSetting(
    shape=replace(SHAPES["tiny"], vocabulary_size=200, dropout=0.0),
    batch_size=1,
    seq_len=6,
    documents_per_row=1,
    device=torch.device("cpu"),
    compute=ComputeConfig(),
)
IDS = torch.tensor([[0, 150, 4, 5, 5, 4, 151]])


def initial_decoder() -> Decoder:
    decoder = Decoder(SETTING.shape)
    decoder.init_weights(0)
    return decoder


def our_loss(dtype: torch.dtype) -> tuple[LossSums, list[Tensor]]:
    decoder = initial_decoder()
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        sums = cross_entropy_and_z_loss(
            decoder(IDS[:, :-1], head_fn=decoder.norm),
            decoder.head,
            IDS[:, 1:],
            torch.ones(1, 6, dtype=torch.bool),
            build_vocabulary(SETTING.shape),
            z_loss_weight=0.0,
        )
    sums.total.backward()
    return sums, [p.grad for p in decoder.parameters() if p.grad is not None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_image_targets_have_a_finite_loss_here_and_an_infinite_one_there(dtype: torch.dtype) -> None:
    sums, gradients = our_loss(dtype)
    port = trained_port(SETTING.shape, initial_decoder().state_dict()).to(dtype)
    with torch.no_grad():
        theirs = port(input_ids=IDS, labels=IDS).loss
        logits = port.lm_head(port.model(input_ids=IDS[:, :-1]).last_hidden_state)
    unmasked = F.cross_entropy(logits.float()[0], IDS[0, 1:], reduction="sum")
    assert theirs == torch.inf
    assert sums.total.item() == pytest.approx(unmasked.item(), rel=2e-2 if dtype != torch.float32 else 1e-5)
    assert sums.num_image_tokens == 4
    assert len(gradients) == len(list(initial_decoder().parameters()))
    assert all(gradient.isfinite().all() for gradient in gradients)
