"""The image tokenizer of Meta's releases: `vqgan.yaml` and `vqgan.ckpt`.

The weights have taming-transformers' names under `state_dict`: `encoder.down.0.block.1...`,
`quantize.embedding.weight`, `decoder.up.4...`.
"""

from pathlib import Path
from typing import Any

from calumma.checkpoints.hf_config import parse_vq_config
from calumma.checkpoints.lazy_tensor import LazyModel, LazyTensor, require_tensors, vq_tensor_shapes
from calumma.checkpoints.meta.torch_pickle import open_torch_file, write_torch_file
from calumma.checkpoints.safetensors_io import WriteCallback
from calumma.errors import CheckpointError
from calumma.files import write_text
from calumma.tokens.text import raise_if_model_folder
from calumma.tokens.vq.config import VQConfig
from calumma.tokens.vq.tensor_names import match_tensor_names, transformers_names, vq_decoder_names

VQGAN_CONFIG_FILE, VQGAN_WEIGHTS_FILE = "vqgan.yaml", "vqgan.ckpt"
_TRAINING_ONLY = "loss."
"""Prefix of the discriminator and the perceptual loss, which VQGAN checkpoints contain."""


def open_vqgan(folder: Path) -> tuple[VQConfig, dict[str, LazyTensor]]:
    """Return the config of a VQGAN and its tensors by our names; its decoder may be missing.

    Raises:
        CheckpointError: a file or a tensor is missing, unknown, broken or of the wrong shape.
    """
    if not (folder / VQGAN_CONFIG_FILE).is_file():
        raise_if_model_folder(folder)
    for name in (VQGAN_CONFIG_FILE, VQGAN_WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{folder} lacks {name}; expected the release's image tokenizer, vqgan.yaml and "
                "vqgan.ckpt. Use --tokenizers DIR if they are elsewhere."
            )
    config = _read_vqgan_yaml(folder / VQGAN_CONFIG_FILE)
    path = folder / VQGAN_WEIGHTS_FILE
    tensors = {
        name: tensor
        for name, tensor in open_torch_file(path, "state_dict").items()
        if not name.startswith(_TRAINING_ONLY)
    }
    names, shapes = match_tensor_names(config, tensors), vq_tensor_shapes(config)
    expected = {theirs: shapes[ours] for ours, theirs in names.items()}
    require_tensors(path, tensors, expected, "a VQGAN")
    return config, {ours: tensors[theirs] for ours, theirs in names.items()}


def _read_vqgan_yaml(path: Path) -> VQConfig:
    import yaml

    try:
        record = yaml.safe_load(path.read_text(encoding="utf-8"))
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
            # YAML 1.1 reads 1e-5 as a string.
            "dropout": float(shape.get("dropout", 0.0)),
            "double_latent": shape.get("double_z", False),
            "in_channels": shape.get("in_channels", 3),
        }
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise CheckpointError(
            f"{path}: is not YAML ({problem}); expected the file that taming-transformers writes. "
            "Copy or download it again."
        ) from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: lacks {error}; expected model.params with embed_dim, n_embed and ddconfig, "
            "as in taming-transformers. Copy or download it again."
        ) from error
    return parse_vq_config(described, path)


def write_vqgan(folder: Path, model: LazyModel, on_write: WriteCallback | None) -> None:
    """Write both files, one tensor in memory at a time."""
    import yaml

    names = transformers_names(model.vq_config)
    if model.has_image_decoder:
        names |= vq_decoder_names(model.vq_config)
    tensors = {theirs: model.vq_tensors[ours] for ours, theirs in names.items() if ours in model.vq_tensors}
    write_torch_file(folder / VQGAN_WEIGHTS_FILE, tensors, "state_dict", on_write)
    config = vqgan_config(model.vq_config)
    write_text(folder / VQGAN_CONFIG_FILE, yaml.safe_dump(config, sort_keys=False, default_flow_style=None))


def vqgan_config(config: VQConfig) -> dict[str, Any]:
    """Return the content of `vqgan.yaml`; the release's loader needs `ckpt_path`, `lossconfig`."""
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
