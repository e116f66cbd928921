"""Model folders that transformers loads, and the files that it has no equivalent of.

config.json               configs of the decoder and of the image tokenizer, vocabulary map
model*.safetensors        decoder, image encoder and codebook, under transformers' names
vq_decoder.safetensors    the image tokenizer's decoder, which transformers lacks
tokenizer.json            text tokenizer, with tokenizer_config.json and chat_template.jinja
downward_head.safetensors head for images diagonal by diagonal, if the model has one
image_sizes.json          tokens of images of any size, if they are not squares
preprocessor_config.json, processor_config.json, generation_config.json

Decoders with qk_norm = "rms" or "none" have another kind of folder: see hf_qwen3.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from calumma.checkpoints.chat_template import CHAT_TEMPLATE, CHAT_TEMPLATE_FILE
from calumma.checkpoints.hf_chameleon import VQ_DECODER_FILE, chameleon_tensors, open_chameleon
from calumma.checkpoints.hf_config import (
    chameleon_config,
    chameleon_tokenizer_config,
    fast_tokenizer_config,
    preprocessor_config,
    processor_config,
    special_token_ids,
)
from calumma.checkpoints.hf_qwen3 import (
    CALUMMA_TYPE,
    IMAGE_TOKENIZER_FOLDER,
    QWEN3_TYPE,
    open_qwen3,
    qwen3_config,
    qwen3_tensors,
)
from calumma.checkpoints.hf_weights import MAX_SHARD_BYTES, write_hf_weights
from calumma.checkpoints.int4_weights import int4_config, load_int4, quantize_tensors
from calumma.checkpoints.lazy_tensor import LazyModel, LazyTensor
from calumma.checkpoints.lumina_mgpt import is_lumina_mgpt, lumina_config, open_lumina_mgpt
from calumma.checkpoints.peft_folder import merge_adapter, read_adapter
from calumma.checkpoints.safetensors_io import WriteCallback, open_safetensors, write_safetensors
from calumma.checkpoints.sampling_params import GENERATION_CONFIG_FILE, SamplingOptions, read_sampling_options
from calumma.errors import CheckpointError
from calumma.files import make_folder, read_json, write_json, write_text
from calumma.hub import find_model_folder
from calumma.model.config import DecoderConfig
from calumma.model.decoder import Decoder
from calumma.model.downward_head import DownwardHead
from calumma.model.quantization import int4_group_size
from calumma.tokens.folder import Tokenizers
from calumma.tokens.image import IMAGE_TOKENIZER_CONFIG_NAME, IMAGE_TOKENIZER_WEIGHTS_NAME, ImageTokenizer
from calumma.tokens.text import TEXT_TOKENIZER_NAME, write_image_sizes
from calumma.tokens.vq.network import VQModel, missing_modules

HF_CONFIG_FILE = "config.json"

DOWNWARD_HEAD_FILE = "downward_head.safetensors"
DOWNWARD_HEAD_PREFIX = "downward_head."
"""Prefix of its tensors in a decoder; transformers ignores the file."""


@dataclass(frozen=True)
class ModelComponents:
    """A decoder and its tokenizers."""

    decoder: Decoder
    tokenizers: Tokenizers

    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    """Sampling parameters that requests start from."""


def in_memory_model(
    tokenizers: Tokenizers,
    decoder_config: DecoderConfig,
    decoder_tensors: Mapping[str, LazyTensor],
    sampling: SamplingOptions,
) -> LazyModel:
    """Combine tokenizers with a decoder's config and tensors, by their names in `Decoder`."""
    return LazyModel(
        layout="in memory",
        decoder_config=decoder_config,
        decoder_tensors=decoder_tensors,
        vq_config=tokenizers.image.config,
        vq_tensors=_lazy_state_dict(tokenizers.image.network),
        text_tokenizer=tokenizers.text,
        tokenizer_json=tokenizers.text.tokenizer.to_str(pretty=False),
        sampling=sampling,
    )


def save_model(folder: Path, components: ModelComponents) -> None:
    """Write a model folder atomically file by file, `config.json` last."""
    tensors = _lazy_state_dict(components.decoder)
    config = components.decoder.config
    write_model(folder, in_memory_model(components.tokenizers, config, tensors, components.sampling))


def _lazy_state_dict(module: torch.nn.Module) -> dict[str, LazyTensor]:
    return {name: LazyTensor.from_tensor(tensor) for name, tensor in module.state_dict().items()}


def write_model(
    folder: Path,
    model: LazyModel,
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    is_int4: bool = False,
    is_lumina: bool = False,
    on_write: WriteCallback | None = None,
) -> None:
    """Write a model folder, one tensor in memory at a time.

    Args:
        folder: an older model in it is replaced.
        model: what to write.
        max_shard_bytes: maximum size of a file of weights.
        is_int4: whether the matrices of the blocks are written as 4-bit integers.
        is_lumina: whether to write the layout of Lumina-mGPT.
        on_write: called with the number of bytes of each tensor written.
    """
    make_folder(folder)
    # Without its config the folder cannot be loaded while it is half replaced.
    (folder / HF_CONFIG_FILE).unlink(missing_ok=True)
    (folder / VQ_DECODER_FILE).unlink(missing_ok=True)
    (folder / DOWNWARD_HEAD_FILE).unlink(missing_ok=True)
    head = {name: tensor for name, tensor in model.decoder_tensors.items() if name.startswith(DOWNWARD_HEAD_PREFIX)}
    if head:
        write_safetensors(folder / DOWNWARD_HEAD_FILE, head, on_write)
        rest = {name: tensor for name, tensor in model.decoder_tensors.items() if name not in head}
        model = replace(model, decoder_tensors=rest)
    if model.decoder_config.qk_norm != "layer":
        config = qwen3_config(model)
        weights = qwen3_tensors(model)
        write_safetensors(folder / IMAGE_TOKENIZER_FOLDER / IMAGE_TOKENIZER_WEIGHTS_NAME, model.vq_tensors, on_write)
        write_json(folder / IMAGE_TOKENIZER_FOLDER / IMAGE_TOKENIZER_CONFIG_NAME, model.vq_config.to_json())
        tokens = fast_tokenizer_config(model.decoder_config.max_seq_len)
    else:
        image = model.vq_config
        config = chameleon_config(model.decoder_config, image, model.text_tokenizer, model.dtype)
        weights, vq_decoder = chameleon_tensors(model, repeats_norms=not is_lumina)
        config = lumina_config(config) if is_lumina else config
        if vq_decoder:
            write_safetensors(folder / VQ_DECODER_FILE, vq_decoder, on_write)
        write_json(folder / "preprocessor_config.json", preprocessor_config(image))
        write_json(folder / "processor_config.json", processor_config(image))
        tokens = chameleon_tokenizer_config(model.decoder_config.max_seq_len)
    if is_int4:
        group_size = int4_group_size(model.decoder_config)
        weights = quantize_tensors(weights, group_size)
        config["quantization_config"] = int4_config(group_size)
    write_hf_weights(folder, weights, max_shard_bytes=max_shard_bytes, on_write=on_write)
    write_text(folder / TEXT_TOKENIZER_NAME, model.tokenizer_json)
    write_image_sizes(folder, model.text_tokenizer.vocabulary)
    write_json(folder / "tokenizer_config.json", tokens)
    write_text(folder / CHAT_TEMPLATE_FILE, CHAT_TEMPLATE)
    special_tokens = special_token_ids(model.text_tokenizer.vocabulary)
    write_json(folder / GENERATION_CONFIG_FILE, special_tokens | model.sampling.to_json())
    write_json(folder / HF_CONFIG_FILE, config)


def open_model_folder(folder: str | Path) -> LazyModel:
    """Open a model folder of calumma, of transformers, or of a fine-tune in its layout.

    Only headers and QK-norms are read; names and shapes of all tensors and the sizes of all files
    are checked.

    Args:
        folder: the folder, or a name of `find_model_folder`.

    Raises:
        CheckpointError: a file or a tensor is missing, or the folder holds another kind of model.
        VocabularyError: decoder and tokenizers have different vocabularies.
    """
    folder = find_model_folder(folder)
    path = folder / HF_CONFIG_FILE
    if not path.is_file():
        raise CheckpointError(
            f"{folder} holds no config.json; expected a model folder of `calumma demo` or `calumma "
            "pretrain`, or a Chameleon model in Hugging Face's layout. Check the path."
        )
    config = read_json(path)
    kind = config.get("model_type") if isinstance(config, dict) else None
    if is_lumina_mgpt(config):
        model = open_lumina_mgpt(folder, config)
    elif kind == "chameleon":
        model = open_chameleon(folder, config)
    elif kind in (QWEN3_TYPE, CALUMMA_TYPE):
        model = open_qwen3(folder, config)
    else:
        raise CheckpointError(
            f"{path} has model_type {kind!r}; expected 'chameleon', or 'qwen3' with an image "
            "tokenizer. Use such a model."
        )
    model.require_matching_vocabulary(folder)
    return replace(model, sampling=read_sampling_options(folder))


def load_model(folder: str | Path, adapter: str | Path | None = None) -> ModelComponents:
    """Load a model folder of calumma, of transformers, or of a fine-tune in its layout.

    Args:
        folder: the model folder, or a name of `find_model_folder`.
        adapter: an adapter folder, or its name on the Hub, to merge into the weights.

    Raises:
        CheckpointError: a file or a tensor is missing, the folder holds another kind of model, or
            the adapter belongs to another model.
        VocabularyError: decoder and tokenizers have different vocabularies.
    """
    model = open_model_folder(folder)
    if adapter is not None:
        model.require_float(folder)
        model = merge_adapter(model, read_adapter(adapter, model.decoder_config))
    with torch.device("meta"):
        decoder = Decoder(model.decoder_config)
    tensors = {
        name: lazy.read().clone() for name, lazy in model.decoder_tensors.items() if name not in model.int4_matrices
    }
    decoder.load_state_dict(tensors, assign=True, strict=False)
    load_int4(decoder, model.int4_matrices)
    _load_downward_head(decoder, find_model_folder(folder) / DOWNWARD_HEAD_FILE)
    return ModelComponents(
        decoder.eval(), Tokenizers(model.text_tokenizer, load_image_tokenizer(model)), model.sampling
    )


def _load_downward_head(decoder: Decoder, path: Path) -> None:
    """Attach the downward head in a file, if there is one, to a decoder.

    Raises:
        CheckpointError: its tensors do not fit.
    """
    if not path.is_file():
        return
    with torch.device("meta"):
        head = DownwardHead(decoder.config.model_dim)
    tensors = {name.removeprefix(DOWNWARD_HEAD_PREFIX): lazy for name, lazy in open_safetensors(path).items()}
    expected = {name: tuple(tensor.shape) for name, tensor in head.state_dict().items()}
    if {name: tuple(lazy.shape) for name, lazy in tensors.items()} != expected:
        raise CheckpointError(
            f"{path} has other tensors than a downward head of width {decoder.config.model_dim}; expected "
            f"{', '.join(expected)}. Delete it, or train it again."
        )
    head.load_state_dict({name: lazy.read().clone() for name, lazy in tensors.items()}, assign=True)
    decoder.downward_head = head


@torch.no_grad()
def load_image_tokenizer(model: LazyModel) -> ImageTokenizer:
    """Load the image tokenizer of a model, without a decoder if the model has none."""
    network = VQModel(model.vq_config, missing_modules(model.vq_tensors.keys()))
    state: Mapping[str, torch.Tensor] = network.state_dict()
    for name, lazy in model.vq_tensors.items():
        state[name].copy_(lazy.read())
    return ImageTokenizer(network.eval())
