"""The model folder: what transformers loads as it stands, and what it has no place for.

config.json               shape of the decoder and of the image tokenizer, table of names
model.safetensors         decoder, image encoder and codebook, under transformers' names
vq_decoder.safetensors    the image tokenizer's decoder, which transformers lacks
tokenizer.json            text tokenizer, with tokenizer_config.json
preprocessor_config.json, processor_config.json, generation_config.json
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from calumma.checkpoints.names import VQ_PREFIX, decoder_names, heads_of_norm
from calumma.errors import CheckpointError, VocabularyError
from calumma.files import make_folder, read_json, replacing, write_json
from calumma.model.config import DecoderConfig
from calumma.model.decoder import Decoder
from calumma.tokens.image import ImageTokenizer
from calumma.tokens.text import TextTokenizer
from calumma.tokens.vq.config import VQConfig
from calumma.tokens.vq.names import decoder_names as vq_decoder_names
from calumma.tokens.vq.names import transformers_names
from calumma.tokens.vq.network import VQNetwork
from calumma.vocabulary import (
    BEGIN_IMAGE_NAME,
    BOS_NAME,
    END_IMAGE_NAME,
    END_TURN_NAME,
    EOS_NAME,
    IMAGE_PLACEHOLDER_NAME,
    PAD_NAME,
    UNK_NAME,
)

WEIGHTS_NAME = "model.safetensors"
VQ_DECODER_NAME = "vq_decoder.safetensors"
LANCZOS = 1


@dataclass(frozen=True)
class ModelParts:
    """A model in its three parts."""

    decoder: Decoder
    text: TextTokenizer
    image: ImageTokenizer

    draws: bool = True
    """Whether the image tokenizer has its decoder; without it, codes cannot become pictures."""


def save_model(folder: Path, parts: ModelParts) -> None:
    """Write a model folder; every file is whole or not there, and `config.json` comes last."""
    make_folder(folder)
    weights, vq_decoder = _tensors(parts)
    with replacing(folder / WEIGHTS_NAME) as temporary:
        save_file(weights, temporary, metadata={"format": "pt"})
    if parts.draws:
        with replacing(folder / VQ_DECODER_NAME) as temporary:
            save_file(vq_decoder, temporary, metadata={"format": "pt"})
    parts.text.save(folder)
    codes = parts.image.config.codes_per_image
    write_json(folder / "tokenizer_config.json", _tokenizer_config(parts))
    write_json(folder / "preprocessor_config.json", _preprocessor_config(parts.image.config))
    write_json(
        folder / "processor_config.json",
        {
            "processor_class": "ChameleonProcessor",
            "image_seq_length": codes,
            "image_token": IMAGE_PLACEHOLDER_NAME,
        },
    )
    vocabulary = parts.text.vocabulary
    special = {
        "bos_token_id": vocabulary.bos,
        "pad_token_id": vocabulary.pad,
        "eos_token_id": vocabulary.eos,
    }
    write_json(folder / "generation_config.json", special)
    write_json(folder / "config.json", _config(parts) | special)


def _tensors(parts: ModelParts) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    config = parts.decoder.config
    ours = parts.decoder.state_dict()
    weights: dict[str, Tensor] = {}
    for name, theirs in decoder_names(config).items():
        tensor = ours[name].cpu()
        heads = heads_of_norm(name, config)
        if heads is not None:
            tensor = tensor.repeat_interleave(heads // config.qk_norm_groups, dim=0)
        weights[theirs] = tensor.contiguous()
    vq = parts.image.network.state_dict()
    for name, theirs in transformers_names(parts.image.config).items():
        weights[VQ_PREFIX + theirs] = vq[name].cpu().contiguous()
    vq_decoder = {
        theirs: vq[name].cpu().contiguous()
        for name, theirs in vq_decoder_names(parts.image.config).items()
    }
    return weights, vq_decoder


def _config(parts: ModelParts) -> dict[str, Any]:
    decoder, image = parts.decoder.config, parts.image.config
    return {
        "architectures": ["ChameleonForConditionalGeneration"],
        "model_type": "chameleon",
        "vocab_size": decoder.vocabulary_size,
        "hidden_size": decoder.model_dim,
        "intermediate_size": decoder.feed_forward_dim,
        "num_hidden_layers": decoder.num_layers,
        "num_attention_heads": decoder.num_heads,
        "num_key_value_heads": decoder.num_kv_heads,
        "max_position_embeddings": decoder.max_tokens,
        "hidden_act": "silu",
        "rms_norm_eps": decoder.norm_epsilon,
        "rope_theta": decoder.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": decoder.rope_theta},
        "swin_norm": decoder.norm_order == "reordered",
        "model_parallel_size": decoder.qk_norm_groups,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "dtype": str(parts.decoder.embedding.weight.dtype).removeprefix("torch."),
        "vq_config": {
            "model_type": "chameleon_vqgan",
            "resolution": image.resolution,
            "in_channels": 3,
            "base_channels": image.base_channels,
            "channel_multiplier": list(image.channel_multipliers),
            "num_res_blocks": image.num_res_blocks,
            "latent_channels": image.latent_channels,
            "embed_dim": image.code_dim,
            "num_embeddings": image.num_codes,
            "attn_resolutions": list(image.attention_resolutions) or None,
            "attn_type": "vanilla",
            "double_latent": False,
            "dropout": image.dropout,
        },
        "vocabulary_map": dict(
            sorted(
                parts.text.tokenizer.get_vocab(with_added_tokens=True).items(),
                key=lambda item: item[1],
            )
        ),
    }


def _tokenizer_config(parts: ModelParts) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS_NAME,
        "pad_token": PAD_NAME,
        "eos_token": EOS_NAME,
        "unk_token": UNK_NAME,
        "sep_token": END_TURN_NAME,
        "image_token": IMAGE_PLACEHOLDER_NAME,
        "boi_token": BEGIN_IMAGE_NAME,
        "eoi_token": END_IMAGE_NAME,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "model_max_length": parts.decoder.config.max_tokens,
        "processor_class": "ChameleonProcessor",
    }


def _preprocessor_config(image: VQConfig) -> dict[str, Any]:
    side = image.resolution
    return {
        "image_processor_type": "ChameleonImageProcessor",
        "processor_class": "ChameleonProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": side},
        "resample": LANCZOS,
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        # transformers' own default, 0.0078, darkens bright pixels by up to 0.011.
        "rescale_factor": 2 / 255,
        "do_normalize": True,
        "image_mean": [1.0, 1.0, 1.0],
        "image_std": [1.0, 1.0, 1.0],
    }


class _Weights:
    """The tensors of a folder's safetensors files, read one by one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        files = sorted(folder.glob("model*.safetensors"))
        if not files:
            raise CheckpointError(
                f"{folder} holds no model*.safetensors; wanted the weights of a Chameleon-family "
                "model. Pickled weights (.bin, .pth) are not read: save them as safetensors."
            )
        self.files = {}
        for path in files:
            try:
                handle = safe_open(path, framework="pt")
            except Exception as error:  # the library raises its own SafetensorError
                raise CheckpointError(
                    f"{path}: is no whole safetensors file ({error}). Copy or download it again."
                ) from error
            self.files |= {name: handle for name in handle.keys()}  # noqa: SIM118 (not a dict)

    def read(self, name: str) -> Tensor:
        if name not in self.files:
            raise CheckpointError(
                f"{self.folder} lacks the tensor {name}; wanted every tensor of a Chameleon-family "
                "model. Copy or download the missing shard."
            )
        tensor: Tensor = self.files[name].get_tensor(name)
        return tensor


def load_model(folder: Path) -> ModelParts:
    """Read a model folder that calumma, transformers or a fine-tune in its layout wrote.

    Raises:
        CheckpointError: a file or a tensor is missing, or the folder holds another kind of model.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(
            f"{folder} holds no config.json; wanted a model folder, such as `calumma demo` or "
            "`calumma pretrain` writes, or one of the Chameleon family in Hugging Face's layout."
        )
    config = read_json(path)
    if config.get("model_type") != "chameleon":
        raise CheckpointError(
            f"{path} describes a model of type {config.get('model_type')!r}; wanted 'chameleon'."
        )
    weights = _Weights(folder)
    text = TextTokenizer.load(folder)
    decoder = _load_decoder(config, weights)
    if text.vocabulary.size > decoder.config.vocabulary_size:
        raise VocabularyError(
            f"{folder}: the tokenizer has {text.vocabulary.size} ids, the decoder rows for "
            f"{decoder.config.vocabulary_size}; wanted at least as many rows as ids."
        )
    image, draws = _load_image_tokenizer(folder, config["vq_config"], weights)
    return ModelParts(decoder, text, image, draws)


def _load_decoder(config: Mapping[str, Any], weights: _Weights) -> Decoder:
    rope = config.get("rope_parameters") or {}
    shape = DecoderConfig(
        vocabulary_size=config["vocab_size"],
        model_dim=config["hidden_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        num_kv_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
        feed_forward_dim=config["intermediate_size"],
        max_tokens=config.get("max_position_embeddings", 4096),
        norm_order="reordered" if config.get("swin_norm") else "pre",
        rope_theta=rope.get("rope_theta") or config.get("rope_theta") or 10_000.0,
        norm_epsilon=config.get("rms_norm_eps", 1e-5),
    )
    names = decoder_names(shape)
    tensors = {name: weights.read(theirs) for name, theirs in names.items()}
    norms = {name: t for name, t in tensors.items() if heads_of_norm(name, shape)}
    groups = _norm_groups(norms, shape)
    for name, tensor in norms.items():
        tensors[name] = tensor.reshape(groups, -1, shape.head_dim)[:, 0].clone()

    with torch.device("meta"):
        decoder = Decoder(replace(shape, qk_norm_groups=groups))
    decoder.load_state_dict(tensors, assign=True)
    return decoder.eval()


def _norm_groups(norms: Mapping[str, Tensor], shape: DecoderConfig) -> int:
    """The fewest groups of heads such that the heads of each group share every norm."""
    most = math.gcd(shape.num_heads, shape.num_kv_heads)
    for groups in (g for g in range(1, most + 1) if most % g == 0):
        grouped = [t.reshape(groups, -1, shape.head_dim) for t in norms.values()]
        if all(torch.equal(t, t[:, :1].expand_as(t)) for t in grouped):
            return groups
    raise CheckpointError(
        f"the query norms differ between heads that share a key head ({shape.num_heads} query, "
        f"{shape.num_kv_heads} key heads); wanted norms tied within groups of heads. A fine-tune "
        "that untied them cannot be loaded."
    )


def _load_image_tokenizer(
    folder: Path, vq: Mapping[str, Any], weights: _Weights
) -> tuple[ImageTokenizer, bool]:
    config = VQConfig(
        resolution=vq.get("resolution", 512),
        base_channels=vq.get("base_channels", 128),
        channel_multipliers=tuple(vq.get("channel_multiplier") or (1, 1, 2, 2, 4)),
        num_res_blocks=vq.get("num_res_blocks", 2),
        latent_channels=vq.get("latent_channels", 256),
        code_dim=vq.get("embed_dim", 256),
        num_codes=vq.get("num_embeddings", 8192),
        attention_resolutions=tuple(vq.get("attn_resolutions") or ()),
        dropout=vq.get("dropout", 0.0),
    )
    tensors = {
        name: weights.read(VQ_PREFIX + theirs).float()
        for name, theirs in transformers_names(config).items()
        if not name.startswith("post_quant_conv")
    }
    draws = (folder / VQ_DECODER_NAME).is_file()
    if draws:
        with safe_open(folder / VQ_DECODER_NAME, framework="pt") as file:
            for name, theirs in vq_decoder_names(config).items():
                tensors[name] = file.get_tensor(theirs).float()
    network = VQNetwork(config)
    network.load_state_dict(tensors, strict=draws)
    return ImageTokenizer(network.eval()), draws
