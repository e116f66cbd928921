"""The model folder: what transformers loads as it stands, and what it has no place for.

config.json               shape of the decoder and of the image tokenizer, table of names
model*.safetensors        decoder, image encoder and codebook, under transformers' names
vq_decoder.safetensors    the image tokenizer's decoder, which transformers lacks
tokenizer.json            text tokenizer, with tokenizer_config.json
preprocessor_config.json, processor_config.json, generation_config.json

Decoders with qk_norm = "rms" or "none" have another kind of folder: see `qwen3_folder`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from calumma.checkpoints.hf_chameleon import (
    VQ_DECODER_NAME,
    chameleon_tensors,
    open_chameleon,
)
from calumma.checkpoints.hf_config import (
    model_config,
    preprocessor_config,
    processor_config,
    special_ids,
    text_model_tokenizer_config,
    tokenizer_config,
)
from calumma.checkpoints.hf_qwen3 import (
    IMAGE_FOLDER,
    OWN,
    QWEN3,
    open_qwen3,
    qwen3_config,
    qwen3_tensors,
)
from calumma.checkpoints.hf_weights import MOST_BYTES, write_weights
from calumma.checkpoints.lazy_tensor import LazyModel, LazyTensor
from calumma.checkpoints.safetensors_io import Tell, silent, write_tensors
from calumma.errors import CheckpointError
from calumma.files import make_folder, read_json, write_json, write_text
from calumma.model.config import DecoderConfig
from calumma.model.decoder import Decoder
from calumma.tokens.folder import Tokenizers
from calumma.tokens.image import CONFIG_FILE, WEIGHTS_FILE, ImageTokenizer
from calumma.tokens.text import FILE_NAME as TOKENIZER_NAME
from calumma.tokens.vq.network import VQNetwork, missing_modules

CONFIG_NAME = "config.json"


@dataclass(frozen=True)
class ModelParts:
    """A decoder and its tokenizers."""

    decoder: Decoder
    tokenizers: Tokenizers


def in_memory_model(
    tokenizers: Tokenizers, shape: DecoderConfig, decoder: Mapping[str, LazyTensor]
) -> LazyModel:
    """Combine tokenizers with a decoder's shape and its tensors, by our names."""
    return LazyModel(
        layout="in memory",
        decoder_config=shape,
        decoder_tensors=decoder,
        vq_config=tokenizers.image.config,
        vq_tensors=_stored(tokenizers.image.network),
        text_tokenizer=tokenizers.text,
        tokenizer_json=tokenizers.text.tokenizer.to_str(pretty=False),
    )


def save_model(folder: Path, parts: ModelParts) -> None:
    """Write a model folder; every file is whole or not there, and `config.json` comes last."""
    tensors = _stored(parts.decoder)
    write_model(folder, in_memory_model(parts.tokenizers, parts.decoder.config, tensors))


def _stored(module: torch.nn.Module) -> dict[str, LazyTensor]:
    return {name: LazyTensor.from_tensor(tensor) for name, tensor in module.state_dict().items()}


def write_model(
    folder: Path, model: LazyModel, *, most_bytes: int = MOST_BYTES, tell: Tell = silent
) -> None:
    """Write a model folder, holding one tensor at a time.

    Args:
        folder: may hold an older model, which is replaced.
        model: what to write.
        most_bytes: of one file of weights.
        tell: is called with the bytes of each tensor written.
    """
    make_folder(folder)
    # Without its config the folder is no model: a half-replaced one cannot be loaded as a whole.
    (folder / CONFIG_NAME).unlink(missing_ok=True)
    (folder / VQ_DECODER_NAME).unlink(missing_ok=True)
    if model.decoder_config.qk_norm != "layer":
        config = qwen3_config(model)
        write_weights(folder, qwen3_tensors(model), most_bytes=most_bytes, tell=tell)
        write_tensors(folder / IMAGE_FOLDER / WEIGHTS_FILE, model.vq_tensors, tell)
        write_json(folder / IMAGE_FOLDER / CONFIG_FILE, model.vq_config.to_json())
        tokens = text_model_tokenizer_config(model.decoder_config.max_seq_len)
    else:
        image = model.vq_config
        config = model_config(model.decoder_config, image, model.text_tokenizer, model.dtype)
        weights, vq_decoder = chameleon_tensors(model)
        write_weights(folder, weights, most_bytes=most_bytes, tell=tell)
        if vq_decoder:
            write_tensors(folder / VQ_DECODER_NAME, vq_decoder, tell)
        write_json(folder / "preprocessor_config.json", preprocessor_config(image))
        write_json(folder / "processor_config.json", processor_config(image))
        tokens = tokenizer_config(model.decoder_config.max_seq_len)
    write_text(folder / TOKENIZER_NAME, model.tokenizer_json)
    write_json(folder / "tokenizer_config.json", tokens)
    write_json(folder / "generation_config.json", special_ids(model.text_tokenizer.vocabulary))
    write_json(folder / CONFIG_NAME, config)


def open_model_folder(folder: Path) -> LazyModel:
    """Look at a model folder that calumma, transformers or a fine-tune in its layout wrote.

    Headers are read, and no tensors but head norms; yet every tensor is known to be there in its
    shape, and every file to be as long as it should.

    Raises:
        CheckpointError: a file or a tensor is missing, or the folder holds another kind of model.
        VocabularyError: the tokenizers are not those of the decoder.
    """
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise CheckpointError(
            f"{folder} holds no config.json; expected a model folder, such as `calumma demo` or "
            "`calumma pretrain` writes, or one of the Chameleon family in Hugging Face's layout."
        )
    config = read_json(path)
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind == "chameleon":
        model = open_chameleon(folder, config)
    elif kind in (QWEN3, OWN):
        model = open_qwen3(folder, config)
    else:
        raise CheckpointError(
            f"{path} describes a model of type {kind!r}; expected 'chameleon', or 'qwen3' with an "
            "image tokenizer beside it. Other models are not read."
        )
    model.require_matching_vocabulary(folder)
    return model


def load_model(folder: Path) -> ModelParts:
    """Read a model folder that calumma, transformers or a fine-tune in its layout wrote.

    Raises:
        CheckpointError: a file or a tensor is missing, or the folder holds another kind of model.
        VocabularyError: the tokenizers are not those of the decoder.
    """
    model = open_model_folder(folder)
    with torch.device("meta"):
        decoder = Decoder(model.decoder_config)
    tensors = {name: stored.read() for name, stored in model.decoder_tensors.items()}
    decoder.load_state_dict(tensors, assign=True)
    return ModelParts(decoder.eval(), Tokenizers(model.text_tokenizer, read_image_tokenizer(model)))


@torch.no_grad()
def read_image_tokenizer(model: LazyModel) -> ImageTokenizer:
    """The image tokenizer of a model on disk, read whole; without a decoder where it has none."""
    network = VQNetwork(model.vq_config, missing_modules(model.vq_tensors.keys()))
    own: Mapping[str, torch.Tensor] = network.state_dict()
    for name, stored in model.vq_tensors.items():
        own[name].copy_(stored.read())
    return ImageTokenizer(network.eval())
