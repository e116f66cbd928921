"""How latents meet the codebook while both learn, and the plain network that is kept.

Shapes: B images, h and w cells, N vectors, K codes, D code_dim.

Whichever way a codebook was taught, the network that is kept finds the nearest row by Euclidean
distance, as the release does: `plain_network` folds the other ways into that one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from calumma.tokens.vq.codebook import (
    CodebookConfig,
    VectorQuantizer,
    flatten_latents,
    l2_normalize,
    nearest_codes,
    straight_through,
)
from calumma.tokens.vq.losses import quantization_losses
from calumma.tokens.vq.network import VQModel

MeanOverRanks = Callable[[Tensor], Tensor]
"""The mean of a tensor over all ranks; its gradient flows as if each rank held the mean."""


@dataclass(frozen=True)
class QuantizerOutput:
    """What quantisation made of a batch."""

    codes: Tensor
    """[B, h, w] int64."""

    quantized: Tensor
    """[B, D, h, w], what the decoder is given: the codes' rows, with a gradient."""

    loss: Tensor
    """All that the quantiser asks of encoder and codebook, weighted."""

    commitment: Tensor
    """How far the latents lie from their codes, unweighted."""


def normalize_latents(latents: Tensor, config: CodebookConfig) -> Tensor:
    """Latents [B, D, h, w] as they are compared: on their sphere, but for "nearest"."""
    return latents if config.quantizer == "nearest" else l2_normalize(latents, 1)


def quantize(
    quantizer: VectorQuantizer, latents: Tensor, config: CodebookConfig, mean: MeanOverRanks
) -> QuantizerOutput:
    """Quantise `latents` [B, D, h, w], which have been through `spread`."""
    if config.quantizer == "ibq":
        return _quantize_ibq(quantizer, latents, config, mean)
    rows: Tensor = quantizer.codebook
    if config.quantizer == "cosine":
        rows = l2_normalize(rows, 1)
    codes = _cells(nearest_codes(flatten_latents(latents.detach()), rows), latents)
    quantized = _rows(codes, rows)
    commitment, codebook = quantization_losses(latents, quantized)
    commitment_weight, codebook_weight = config.loss_weights
    return QuantizerOutput(
        codes=codes,
        quantized=straight_through(latents, quantized),
        loss=commitment_weight * commitment + codebook_weight * codebook,
        commitment=commitment,
    )


def _quantize_ibq(
    quantizer: VectorQuantizer, latents: Tensor, config: CodebookConfig, mean: MeanOverRanks
) -> QuantizerOutput:
    """By the largest inner product; the gradient goes through the choice to every row.

    Source: index backpropagation quantisation, IBQ (arXiv:2412.02692), section 3.2: the chosen
    one-hot index in value, the softmax over all rows in gradient; and its "double" loss, which
    pulls latents and codes together once through the index and once as ever.
    """
    logits = flatten_latents(latents) @ quantizer.codebook.t()
    shares = logits.softmax(1)
    codes = _cells(logits.argmax(1), latents)
    chosen = _rows(codes, quantizer.codebook)
    # One-hot times codebook is the row itself; only the softmax's part needs the product.
    passed = (shares - shares.detach()) @ quantizer.codebook
    quantized = chosen + passed.view(*codes.shape, -1).permute(0, 3, 1, 2)
    commitment, codebook = quantization_losses(latents, chosen)
    commitment_weight, codebook_weight = config.loss_weights
    loss = commitment_weight * commitment + codebook_weight * codebook
    loss = loss + (quantized - latents).square().mean()
    if config.entropy_weight:
        loss = loss + config.entropy_weight * entropy_loss(logits, config, mean)
    return QuantizerOutput(codes=codes, quantized=quantized, loss=loss, commitment=commitment)


def entropy_loss(logits: Tensor, config: CodebookConfig, mean: MeanOverRanks) -> Tensor:
    """Low when each vector is sure of its code, and the vectors of their codes' variety.

    Args:
        logits: [N, K] inner products.
        config: gives the temperature.
        mean: over ranks.

    Returns:
        The mean entropy of the vectors' shares less the entropy of their mean share, in nats.

    Source: MAGVIT-v2 (arXiv:2310.05737), equation 6, which IBQ takes over.
    """
    logs = (logits / config.entropy_temperature).log_softmax(1)
    shares = logs.exp()
    each = -(shares * logs).sum(1).mean()
    average = mean(shares.mean(0))
    return each - torch.special.entr(average).sum()


def export_network(network: VQModel, config: CodebookConfig) -> VQModel:
    """The network whose nearest rows are the codes that `config.lookup` chooses; a copy.

    - "nearest": the same.
    - "cosine": all rows have one length, so the row of the nearest direction is the nearest
      row, however long the latent is; the rows are stored on their sphere.
    - "ibq": one more coordinate, 0 in every latent, gives all rows one length; then the largest
      inner product is the smallest distance. `code_dim` grows by one.
    """
    shape = network.config
    tensors = dict(network.state_dict())
    rows = tensors["quantizer.codebook"]
    if config.quantizer == "cosine":
        tensors["quantizer.codebook"] = l2_normalize(rows, 1)
    elif config.quantizer == "ibq":
        shape = replace(shape, code_dim=shape.code_dim + 1)
        squares = rows.square().sum(1, keepdim=True)
        missing = (squares.max() - squares).clamp(min=0.0).sqrt()
        tensors["quantizer.codebook"] = torch.cat([rows, missing], 1)
        for name in ("quant_conv.weight", "quant_conv.bias"):
            tensors[name] = torch.cat([tensors[name], torch.zeros_like(tensors[name][:1])])
        after = tensors["post_quant_conv.weight"]
        tensors["post_quant_conv.weight"] = torch.cat([after, torch.zeros_like(after[:, :1])], 1)
    plain = VQModel(shape).to(rows.device)
    plain.load_state_dict(tensors)
    return plain


def _cells(codes: Tensor, latents: Tensor) -> Tensor:
    """[B * h * w] -> [B, h, w]."""
    return codes.view(len(latents), *latents.shape[2:])


def _rows(codes: Tensor, rows: Tensor) -> Tensor:
    """[B, h, w], [K, D] -> [B, D, h, w]."""
    return F.embedding(codes, rows).permute(0, 3, 1, 2)
