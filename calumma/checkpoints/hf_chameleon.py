"""Chameleon model folders of transformers: read and write their tensors.

transformers repeats the QK-norm of a group for each of its heads, and its image tokenizer has no
decoder: that one is in a file of its own.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from calumma.checkpoints.hf_config import config_table, parse_chameleon_config, parse_vq_config
from calumma.checkpoints.hf_weights import (
    VQ_PREFIX,
    hf_decoder_names,
    hf_weight_files,
    num_norm_heads,
    open_hf_tokenizer,
    open_hf_weights,
)
from calumma.checkpoints.int4_weights import split_int4
from calumma.checkpoints.lazy_tensor import (
    LazyModel,
    LazyTensor,
    LazyTokenizers,
    decoder_tensor_shapes,
    require_tensors,
    vq_tensor_shapes,
)
from calumma.checkpoints.safetensors_io import open_safetensors
from calumma.errors import CheckpointError
from calumma.model.config import DecoderConfig
from calumma.tokens.vq.config import VQConfig
from calumma.tokens.vq.tensor_names import match_tensor_names, transformers_names, vq_decoder_names

VQ_DECODER_FILE = "vq_decoder.safetensors"
_MODEL_KIND = "a Chameleon-family model"

_INV_FREQ_SUFFIX = ".rotary_emb.inv_freq"
"""Suffix of rotary frequencies, which old transformers saved and which follow from the config."""


def open_chameleon(
    folder: Path,
    config: Mapping[str, Any],
    *,
    norm_groups: int | None = None,
    tokenizers: LazyTokenizers | None = None,
) -> LazyModel:
    """Open a folder without reading its tensors, except the QK-norms, which show their groups.

    Args:
        folder: the model folder.
        config: its `config.json`.
        norm_groups: rows of the QK-norms; None if each head has one.
        tokenizers: in place of the folder's.

    Raises:
        CheckpointError: a file or a tensor is missing, unknown, broken or of the wrong shape.
    """
    where = folder / "config.json"
    decoder_config = parse_chameleon_config(config, where)
    if tokenizers is None:
        vq_config = parse_vq_config(config_table(config, "vq_config", where), where)
    else:
        vq_config = tokenizers.vq_config
    weights = {n: t for n, t in open_hf_weights(folder).items() if not n.endswith(_INV_FREQ_SUFFIX)}
    weights, int4_matrices = split_int4(weights, config, folder)
    names = hf_decoder_names(decoder_config)
    # Some fine-tunes have the image tokenizer's decoder in the same files.
    if tokenizers is not None:
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith(VQ_PREFIX)}
    image_names = match_tensor_names(vq_config, weights, VQ_PREFIX) if tokenizers is None else {}
    shapes, vq_shapes = decoder_tensor_shapes(decoder_config), vq_tensor_shapes(vq_config)
    expected = {theirs: shapes[ours] for ours, theirs in names.items()}
    for ours, theirs in names.items():
        heads = num_norm_heads(ours, decoder_config)
        if heads is not None:
            expected[theirs] = (norm_groups or heads, decoder_config.head_dim)
    expected |= {theirs: vq_shapes[ours] for ours, theirs in image_names.items()}
    require_tensors(folder, weights, expected, _MODEL_KIND)

    decoder = {ours: weights[theirs] for ours, theirs in names.items()}
    groups = _group_norms(decoder, decoder_config, norm_groups, folder)
    if tokenizers is None:
        vq_tensors = {ours: weights[theirs] for ours, theirs in image_names.items()} | _vq_decoder(folder, vq_config)
        tokenizers = LazyTokenizers(vq_config, vq_tensors, *open_hf_tokenizer(folder))
    return LazyModel(
        layout="a model folder",
        decoder_config=replace(decoder_config, qk_norm_groups=groups),
        decoder_tensors=decoder,
        int4_matrices={ours: int4_matrices[theirs] for ours, theirs in names.items() if theirs in int4_matrices},
        vq_config=tokenizers.vq_config,
        vq_tensors=tokenizers.vq_tensors,
        text_tokenizer=tokenizers.text_tokenizer,
        tokenizer_json=tokenizers.tokenizer_json,
        num_weight_files=len(hf_weight_files(folder)),
    )


def _group_norms(decoder: dict[str, LazyTensor], config: DecoderConfig, num_groups: int | None, folder: Path) -> int:
    """Replace the QK-norms of heads by those of their groups, and return the number of groups."""
    norms = {ours: t.read() for ours, t in decoder.items() if num_norm_heads(ours, config)}
    groups = num_groups or find_norm_groups(norms.values(), math.gcd(config.num_heads, config.num_kv_heads))
    if groups is None:
        raise CheckpointError(
            f"{folder}: the query norms differ between heads that share a key head ({config.num_heads} query, "
            f"{config.num_kv_heads} key heads); expected norms tied within groups of heads. Use a model that "
            "was fine-tuned with tied norms."
        )
    for name, tensor in norms.items():
        decoder[name] = LazyTensor.from_tensor(tensor.reshape(groups, -1, config.head_dim)[:, 0].clone())
    return groups


def _vq_decoder(folder: Path, config: VQConfig) -> dict[str, LazyTensor]:
    path = folder / VQ_DECODER_FILE
    if not path.is_file():
        return {}
    found, shapes = open_safetensors(path), vq_tensor_shapes(config)
    names = vq_decoder_names(config)
    expected = {theirs: shapes[ours] for ours, theirs in names.items()}
    require_tensors(path, found, expected, "the decoder of an image tokenizer")
    return {ours: found[theirs] for ours, theirs in names.items()}


def find_norm_groups(norms: Iterable[Tensor], max_groups: int) -> int | None:
    """Return the smallest number of groups whose heads share every norm, or None.

    Args:
        norms: each [heads, head_dim].
        max_groups: divides the number of heads; so does the result.
    """
    for groups in (g for g in range(1, max_groups + 1) if max_groups % g == 0):
        grouped = (norm.reshape(groups, -1, norm.shape[-1]) for norm in norms)
        if all(bool((norm == norm[:, :1]).all()) for norm in grouped):
            return groups
    return None


def chameleon_tensors(
    model: LazyModel, *, repeats_norms: bool = True
) -> tuple[dict[str, LazyTensor], dict[str, LazyTensor]]:
    """Return the tensors of the folder's weights and of the image tokenizer's decoder file.

    `repeats_norms` is whether each head has a copy of the QK-norm of its group.
    """
    config, weights = model.decoder_config, {}
    for name, theirs in hf_decoder_names(config).items():
        tensor, heads = model.decoder_tensors[name], num_norm_heads(name, config)
        if heads is not None and repeats_norms:
            repeat = partial(_repeat_norm, heads=heads)
            tensor = tensor.map((heads, config.head_dim), repeat)
        weights[theirs] = tensor
    for name, theirs in transformers_names(model.vq_config).items():
        if name in model.vq_tensors:
            weights[VQ_PREFIX + theirs] = model.vq_tensors[name]
    vq_decoder = {}
    if model.has_image_decoder:
        names = vq_decoder_names(model.vq_config)
        vq_decoder = {theirs: model.vq_tensors[name] for name, theirs in names.items()}
    return weights, vq_decoder


def _repeat_norm(norm: Tensor, *, heads: int) -> Tensor:
    """Repeat each group's norm for its heads: [groups, D] -> [heads, D]."""
    return norm.repeat_interleave(heads // len(norm), dim=0)
