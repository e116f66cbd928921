"""Folders of Chameleon's own kind: what is where in them, by our names.

transformers spells a head norm out for every head, where ours has one row for all heads of a
group; and it has no place for the image tokenizer's decoder, which stands in a file of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from calumma.checkpoints.hf_config import read_decoder_config, read_vq_config
from calumma.checkpoints.hf_weight_names import VQ_PREFIX, decoder_names, heads_of_norm
from calumma.checkpoints.hf_weights import read_weights, weight_files
from calumma.checkpoints.lazy_tensor import (
    LazyModel,
    LazyTensor,
    decoder_tensor_shapes,
    require_tensors,
    vq_tensor_shapes,
)
from calumma.checkpoints.safetensors_io import read_tensors
from calumma.errors import CheckpointError
from calumma.tokens.text import FILE_NAME as TOKENIZER_NAME
from calumma.tokens.text import TextTokenizer
from calumma.tokens.vq.config import VQConfig
from calumma.tokens.vq.names import decoder_names as vq_decoder_names
from calumma.tokens.vq.names import names_among, transformers_names

VQ_DECODER_NAME = "vq_decoder.safetensors"
FAMILY = "a Chameleon-family model"

_REMADE = ".rotary_emb.inv_freq"
"""Old releases of transformers saved the wavelengths, which follow from the config."""


def open_chameleon(folder: Path, config: Mapping[str, Any]) -> LazyModel:
    """Look at a folder; of its tensors only the head norms are read, which tell the groups.

    Raises:
        CheckpointError: a file or a tensor is missing, unknown, broken or of the wrong shape.
    """
    where = folder / "config.json"
    shape = read_decoder_config(config, where)
    image_shape = read_vq_config(config.get("vq_config") or {}, where)
    weights = {n: t for n, t in read_weights(folder).items() if not n.endswith(_REMADE)}
    names = decoder_names(shape)
    # Some fine-tunes keep the image tokenizer's decoder beside its encoder.
    image_names = names_among(image_shape, weights, VQ_PREFIX)
    shapes, vq_shapes = decoder_tensor_shapes(shape), vq_tensor_shapes(image_shape)
    wanted = {theirs: shapes[ours] for ours, theirs in names.items()}
    for ours, theirs in names.items():
        heads = heads_of_norm(ours, shape)
        if heads is not None:
            wanted[theirs] = (heads, shape.head_dim)
    wanted |= {theirs: vq_shapes[ours] for ours, theirs in image_names.items()}
    require_tensors(folder, weights, wanted, FAMILY)

    image = {ours: weights[theirs] for ours, theirs in image_names.items()}
    decoder = {ours: weights[theirs] for ours, theirs in names.items()}
    norms = {ours: t.read() for ours, t in decoder.items() if heads_of_norm(ours, shape)}
    groups = norm_groups(norms.values(), math.gcd(shape.num_heads, shape.num_kv_heads))
    if groups is None:
        raise CheckpointError(
            f"{folder}: the query norms differ between heads that share a key head "
            f"({shape.num_heads} query, {shape.num_kv_heads} key heads); expected norms tied within "
            "groups of heads. A fine-tune that untied them cannot be loaded."
        )
    for name, tensor in norms.items():
        decoder[name] = LazyTensor.from_tensor(
            tensor.reshape(groups, -1, shape.head_dim)[:, 0].clone()
        )
    return LazyModel(
        layout="a model folder",
        decoder_config=replace(shape, qk_norm_groups=groups),
        decoder_tensors=decoder,
        vq_config=image_shape,
        vq_tensors=image | _vq_decoder(folder, image_shape),
        text_tokenizer=TextTokenizer.load(folder),
        tokenizer_json=(folder / TOKENIZER_NAME).read_text(encoding="utf-8"),
        num_weight_files=len(weight_files(folder)),
    )


def _vq_decoder(folder: Path, config: VQConfig) -> dict[str, LazyTensor]:
    path = folder / VQ_DECODER_NAME
    if not path.is_file():
        return {}
    found, shapes = read_tensors(path), vq_tensor_shapes(config)
    names = vq_decoder_names(config)
    wanted = {theirs: shapes[ours] for ours, theirs in names.items()}
    require_tensors(path, found, wanted, "the decoder of an image tokenizer")
    return {ours: found[theirs] for ours, theirs in names.items()}


def norm_groups(norms: Iterable[Tensor], most: int) -> int | None:
    """The fewest groups of heads such that the heads of each group share every norm, or None.

    Args:
        norms: each [heads, head_dim].
        most: divides the heads of all; so do the groups.
    """
    for groups in (g for g in range(1, most + 1) if most % g == 0):
        grouped = (norm.reshape(groups, -1, norm.shape[-1]) for norm in norms)
        if all(bool((norm == norm[:, :1]).all()) for norm in grouped):
            return groups
    return None


def chameleon_tensors(model: LazyModel) -> tuple[dict[str, LazyTensor], dict[str, LazyTensor]]:
    """What goes into the folder's weights, and into the file of the image tokenizer's decoder."""
    config, weights = model.decoder_config, {}
    for name, theirs in decoder_names(config).items():
        tensor, heads = model.decoder_tensors[name], heads_of_norm(name, config)
        if heads is not None:
            spell_out = partial(_spell_out, heads=heads)
            tensor = tensor.map((heads, config.head_dim), spell_out)
        weights[theirs] = tensor
    for name, theirs in transformers_names(model.vq_config).items():
        if name in model.vq_tensors:
            weights[VQ_PREFIX + theirs] = model.vq_tensors[name]
    vq_decoder = {}
    if model.has_image_decoder:
        names = vq_decoder_names(model.vq_config)
        vq_decoder = {theirs: model.vq_tensors[name] for name, theirs in names.items()}
    return weights, vq_decoder


def _spell_out(norm: Tensor, *, heads: int) -> Tensor:
    """[groups, D] -> [heads, D]."""
    return norm.repeat_interleave(heads // len(norm), dim=0)
