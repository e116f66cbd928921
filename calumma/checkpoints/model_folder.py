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

from calumma.checkpoints.hugging_face import (
    model_config,
    preprocessor_config,
    processor_config,
    read_decoder_config,
    read_vq_config,
    special_ids,
    tokenizer_config,
)
from calumma.checkpoints.names import VQ_PREFIX, decoder_names, heads_of_norm
from calumma.errors import CheckpointError, VocabularyError
from calumma.files import make_folder, read_json, replacing, write_json
from calumma.model.config import DecoderConfig
from calumma.model.decoder import Decoder
from calumma.tokens.image import ImageTokenizer
from calumma.tokens.text import TextTokenizer
from calumma.tokens.vq.names import decoder_names as vq_decoder_names
from calumma.tokens.vq.names import transformers_names
from calumma.tokens.vq.network import VQNetwork

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
VQ_DECODER_NAME = "vq_decoder.safetensors"


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
    # Without its config the folder is no model: a half-replaced one cannot be loaded as a whole.
    (folder / CONFIG_NAME).unlink(missing_ok=True)
    (folder / VQ_DECODER_NAME).unlink(missing_ok=True)
    weights, vq_decoder = _tensors(parts)
    with replacing(folder / WEIGHTS_NAME) as temporary:
        save_file(weights, temporary, metadata={"format": "pt"})
    if parts.draws:
        with replacing(folder / VQ_DECODER_NAME) as temporary:
            save_file(vq_decoder, temporary, metadata={"format": "pt"})
    decoder, image = parts.decoder.config, parts.image.config
    parts.text.save(folder)
    write_json(folder / "tokenizer_config.json", tokenizer_config(decoder.max_tokens))
    write_json(folder / "preprocessor_config.json", preprocessor_config(image))
    write_json(folder / "processor_config.json", processor_config(image))
    write_json(folder / "generation_config.json", special_ids(parts.text.vocabulary))
    dtype = parts.decoder.embedding.weight.dtype
    write_json(folder / CONFIG_NAME, model_config(decoder, image, parts.text, dtype))


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
        self.files: dict[str, Any] = {}
        for path in files:
            try:
                handle = safe_open(path, framework="pt")
            except Exception as error:  # the library raises its own SafetensorError
                raise CheckpointError(
                    f"{path}: is no whole safetensors file ({error}). Copy or download it again."
                ) from error
            self.files |= dict.fromkeys(handle.keys(), handle)

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
    path = folder / CONFIG_NAME
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
    shape = read_decoder_config(config)
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
    config = read_vq_config(vq)
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
