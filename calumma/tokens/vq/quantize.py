"""Quantization in training, and the export to nearest-row quantization.

Shapes: B images, h and w cells, N vectors, K codes, D code_dim.

However a codebook was trained, the exported model finds the nearest row by Euclidean distance, as
in the release: `export_network` converts the other quantizers to that one.
"""

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
"""Returns the mean of a tensor over ranks; the gradient is that of the mean on every rank."""


@dataclass(frozen=True)
class QuantizerOutput:
    """The quantized latents of a batch and their losses."""

    codes: Tensor
    """[B, h, w] int64."""

    quantized: Tensor
    """[B, D, h, w] input of the decoder: the rows of the codes, with a gradient."""

    loss: Tensor
    """The weighted sum of the losses of encoder and codebook."""

    commitment: Tensor
    """The commitment loss, unweighted."""


def normalize_latents(latents: Tensor, config: CodebookConfig) -> Tensor:
    """L2-normalize latents [B, D, h, w], unless the quantizer is "nearest"."""
    return latents if config.quantizer == "nearest" else l2_normalize(latents, 1)


def quantize_latents(
    quantizer: VectorQuantizer, latents: Tensor, config: CodebookConfig, mean: MeanOverRanks
) -> QuantizerOutput:
    """Quantize `latents` [B, D, h, w], the output of `normalize_latents`."""
    if config.quantizer == "ibq":
        return _quantize_ibq(quantizer, latents, config, mean)
    rows: Tensor = quantizer.codebook
    if config.quantizer == "cosine":
        rows = l2_normalize(rows, 1)
    codes = nearest_codes(flatten_latents(latents.detach()), rows)
    codes = codes.view(len(latents), *latents.shape[2:])
    quantized = F.embedding(codes, rows).permute(0, 3, 1, 2)
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
    """Quantize by the largest inner product, with a gradient for every row.

    Source: index backpropagation quantization, IBQ (arXiv:2412.02692), section 3.2: the one-hot
    index in the forward pass, the softmax over all rows in the backward pass; and its "double"
    loss, on the latents and on the quantized latents.
    """
    logits = flatten_latents(latents) @ quantizer.codebook.t()
    probabilities = logits.softmax(1)
    codes = logits.argmax(1).view(len(latents), *latents.shape[2:])
    chosen = quantizer.embed(codes)
    # One-hot times codebook is the row itself; only the softmax term needs the product.
    softmax_term = (probabilities - probabilities.detach()) @ quantizer.codebook
    quantized = chosen + softmax_term.view(*codes.shape, -1).permute(0, 3, 1, 2)
    commitment, codebook = quantization_losses(latents, chosen)
    commitment_weight, codebook_weight = config.loss_weights
    loss = commitment_weight * commitment + codebook_weight * codebook
    loss = loss + (quantized - latents).square().mean()
    if config.entropy_weight:
        loss = loss + config.entropy_weight * entropy_loss(logits, config, mean)
    return QuantizerOutput(codes=codes, quantized=quantized, loss=loss, commitment=commitment)


def entropy_loss(logits: Tensor, config: CodebookConfig, mean: MeanOverRanks) -> Tensor:
    """Return the entropy loss: low if assignments are certain and all codes are used.

    Args:
        logits: [N, K] inner products.
        config: gives the temperature.
        mean: averages over ranks.

    Returns:
        The mean entropy of the assignments minus the entropy of their mean, in nats.

    Source: MAGVIT-v2 (arXiv:2310.05737), equation 6, as used by IBQ.
    """
    logs = (logits / config.entropy_temperature).log_softmax(1)
    probabilities = logs.exp()
    entropy = -(probabilities * logs).sum(1).mean()
    average = mean(probabilities.mean(0))
    return entropy - torch.special.entr(average).sum()


def export_network(network: VQModel, config: CodebookConfig) -> VQModel:
    """Return a copy of the network whose nearest rows are the codes of `config.quantizer`.

    - "nearest": unchanged.
    - "cosine": all rows have the same norm, so the most similar row is the nearest, whatever the
      norm of the latent; the rows are stored normalized.
    - "ibq": one more coordinate, 0 in every latent, gives all rows the same norm; then the largest
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
    exported = VQModel(shape).to(rows.device)
    exported.load_state_dict(tensors)
    return exported
