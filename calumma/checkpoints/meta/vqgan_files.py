"""The image tokenizer of Meta's releases: `vqgan.yaml` and `vqgan.ckpt`.

The names are those of taming-transformers, whose network it is: `encoder.down.0.block.1...`,
`quantize.embedding.weight`, `decoder.up.4...`, under `state_dict`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from calumma.checkpoints.hf_config import parse_vq_config
from calumma.checkpoints.lazy_tensor import LazyModel, LazyTensor, require_tensors, vq_tensor_shapes
from calumma.checkpoints.meta.torch_pickle import open_torch_file, write_torch_file
from calumma.checkpoints.plain_yaml import parse_yaml, write_yaml
from calumma.checkpoints.safetensors_io import WriteCallback
from calumma.errors import CheckpointError
from calumma.files import write_text
from calumma.tokens.vq.config import VQConfig
from calumma.tokens.vq.tensor_names import match_tensor_names, transformers_names, vq_decoder_names

VQGAN_CONFIG_FILE, VQGAN_WEIGHTS_FILE = "vqgan.yaml", "vqgan.ckpt"
_TRAINING_ONLY = "loss."
"""Discriminator and perceptual loss, which VQ-GAN checkpoints keep with the network."""


def open_vqgan(folder: Path) -> tuple[VQConfig, dict[str, LazyTensor]]:
    """The shape and the tensors of a VQ-GAN, by our names; its decoder may be lacking.

    Raises:
        CheckpointError: a file or a tensor is missing, unknown, broken or of the wrong shape.
    """
    for name in (VQGAN_CONFIG_FILE, VQGAN_WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{folder} lacks {name}; expected the release's image tokenizer, vqgan.yaml and "
                "vqgan.ckpt. Give --tokenizers DIR if they lie elsewhere."
            )
    config = _read_vqgan_yaml(folder / VQGAN_CONFIG_FILE)
    path = folder / VQGAN_WEIGHTS_FILE
    tensors = {
        name: tensor
        for name, tensor in open_torch_file(path, "state_dict").items()
        if not name.startswith(_TRAINING_ONLY)
    }
    names, shapes = match_tensor_names(config, tensors), vq_tensor_shapes(config)
    wanted = {theirs: shapes[ours] for ours, theirs in names.items()}
    require_tensors(path, tensors, wanted, "a VQ-GAN")
    return config, {ours: tensors[theirs] for ours, theirs in names.items()}


def _read_vqgan_yaml(path: Path) -> VQConfig:
    record = parse_yaml(path.read_text(encoding="utf-8"), path)
    try:
        params = record["model"]["params"]
        shape = params["ddconfig"]
        described = {
            "resolution": shape["resolution"],
            "base_channels": shape["ch"],
            "channel_multiplier": shape["ch_mult"],
            "num_res_blocks": shape["num_res_blocks"],
            "latent_channels": shape["z_channels"],
            "embed_dim": params["embed_dim"],
            "num_embeddings": params["n_embed"],
            "attn_resolutions": shape.get("attn_resolutions"),
            "dropout": shape.get("dropout", 0.0),
            "double_latent": shape.get("double_z", False),
            "in_channels": shape.get("in_channels", 3),
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: lacks {error}; expected model.params with embed_dim, n_embed and ddconfig, as "
            "taming-transformers writes it."
        ) from error
    return parse_vq_config(described, path)


def write_vqgan(folder: Path, model: LazyModel, on_write: WriteCallback) -> None:
    """Write both files, holding one tensor at a time."""
    names = transformers_names(model.vq_config)
    if model.has_image_decoder:
        names |= vq_decoder_names(model.vq_config)
    tensors = {
        theirs: model.vq_tensors[ours] for ours, theirs in names.items() if ours in model.vq_tensors
    }
    write_torch_file(folder / VQGAN_WEIGHTS_FILE, tensors, "state_dict", on_write)
    write_text(folder / VQGAN_CONFIG_FILE, write_yaml(vqgan_config(model.vq_config)))


def vqgan_config(config: VQConfig) -> dict[str, Any]:
    """`vqgan.yaml`; loaders of the release take `ckpt_path` and `lossconfig` out of it."""
    shape = {
        "double_z": False,
        "z_channels": config.latent_channels,
        "resolution": config.resolution,
        "in_channels": 3,
        "out_ch": 3,
        "ch": config.base_channels,
        "ch_mult": list(config.channel_multipliers),
        "num_res_blocks": config.num_res_blocks,
        "attn_resolutions": list(config.attention_resolutions),
        "dropout": config.dropout,
    }
    own = {"embed_dim": config.code_dim, "n_embed": config.num_codes, "ddconfig": shape}
    return {"model": {"params": {**own, "lossconfig": None, "ckpt_path": None}}}
