"""GGUF, the file format of llama.cpp: the text side of a decoder with Qwen3's layers.

    magic, version 3, number of tensors, number of metadata values
    metadata     key, type, value
    tensors      name, shape (the last dimension first), type, offset
    data         each tensor aligned to 32 bytes

Source: the specification of GGUF, ggml/docs/gguf.md.
"""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from calumma.checkpoints.chat_template import CHAT_TEMPLATE
from calumma.checkpoints.hf_qwen3 import qwen3_tensors
from calumma.checkpoints.lazy_tensor import LazyModel
from calumma.checkpoints.safetensors_io import WriteCallback
from calumma.errors import CheckpointError
from calumma.files import atomic_write

GGUF_FILE = "model.gguf"
_ALIGNMENT = 32
_UINT32, _FLOAT32, _BOOL, _STRING, _ARRAY, _INT32 = 4, 6, 7, 8, 9, 5
_DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 30}
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5
"""Types of tokens."""

_PRE_TOKENIZER = "chameleon"
"""llama.cpp's name of the way in which `TextTokenizer` and the release split texts."""

_PRE_TOKENIZERS = ("Split", "Digits", "Punctuation", "ByteLevel")
"""Its steps in a `tokenizer.json`; the release has others before them, for image and control tokens."""

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers": "blk",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""Parts of transformers' names -> llama.cpp's."""


def write_gguf(path: Path, model: LazyModel, on_write: WriteCallback | None = None) -> None:
    """Write a decoder and its text tokenizer, one tensor in memory at a time.

    Matrices keep their dtype, norms are float32. Images can be neither read nor drawn with it.

    Raises:
        CheckpointError: its text tokenizer splits texts in another way.
        OutputError: the disk is full or not writable.
    """
    # llama.cpp multiplies by norms in float32 only.
    tensors = {
        _tensor_name(name): tensor if len(tensor.shape) > 1 else tensor.map(tensor.shape, torch.Tensor.float)
        for name, tensor in qwen3_tensors(model).items()
    }
    dtypes = {name: tensor.dtype if len(tensor.shape) > 1 else torch.float32 for name, tensor in tensors.items()}
    metadata = _metadata(model)
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    header += b"".join(_string(key) + _value(value) for key, value in metadata.items())
    offset = 0
    for name, tensor in tensors.items():
        header += _string(name) + struct.pack("<I", len(tensor.shape))
        header += struct.pack(f"<{len(tensor.shape)}Q", *reversed(tensor.shape))
        header += struct.pack("<IQ", _DTYPES[dtypes[name]], offset)
        size = torch.Size(tensor.shape).numel() * dtypes[name].itemsize
        offset += size + -size % _ALIGNMENT
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        file.write(header + b"\0" * (-len(header) % _ALIGNMENT))
        for name, tensor in tensors.items():
            data = tensor.read().to(dtypes[name]).contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            file.write(data + b"\0" * (-len(data) % _ALIGNMENT))
            if on_write is not None:
                on_write(tensor.num_bytes)


def _tensor_name(name: str) -> str:
    for theirs, ours in _NAMES.items():
        name = name.replace(theirs, ours)
    return name


def _metadata(model: LazyModel) -> dict[str, Any]:
    config, vocabulary = model.decoder_config, model.text_tokenizer.vocabulary
    tokenizer = json.loads(model.tokenizer_json)
    steps = (tokenizer["pre_tokenizer"] or {}).get("pretokenizers") or ()
    if tuple(step["type"] for step in steps[-len(_PRE_TOKENIZERS) :]) != _PRE_TOKENIZERS:
        found = ", ".join(step["type"] for step in steps) or "of no sequence"
        raise CheckpointError(
            f"a text tokenizer with the steps {found}; expected {', '.join(_PRE_TOKENIZERS)}, which llama.cpp has. "
            "Use --to qwen3."
        )
    tokens, types, merges = _tokenizer_tables(tokenizer, config.vocabulary_size)
    return {
        "general.architecture": "qwen3",
        "general.alignment": _ALIGNMENT,
        "qwen3.context_length": config.max_seq_len,
        "qwen3.embedding_length": config.model_dim,
        "qwen3.block_count": config.num_layers,
        "qwen3.feed_forward_length": config.feed_forward_dim,
        "qwen3.attention.head_count": config.num_heads,
        "qwen3.attention.head_count_kv": config.num_kv_heads,
        "qwen3.attention.key_length": config.head_dim,
        "qwen3.attention.value_length": config.head_dim,
        "qwen3.attention.layer_norm_rms_epsilon": config.norm_epsilon,
        "qwen3.rope.freq_base": config.rope_theta,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": _PRE_TOKENIZER,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": vocabulary.bos,
        "tokenizer.ggml.eos_token_id": vocabulary.eos,
        "tokenizer.ggml.padding_token_id": vocabulary.pad,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }


def _tokenizer_tables(tokenizer: Mapping[str, Any], num_rows: int) -> tuple[list[str], list[int], list[str]]:
    """Return texts and types of all token ids, and the merges, of a `tokenizer.json`."""
    tokens, types = [f"[unused {id_}]" for id_ in range(num_rows)], [_UNUSED] * num_rows
    for text, id_ in tokenizer["model"]["vocab"].items():
        tokens[id_], types[id_] = text, _NORMAL
    for added in tokenizer["added_tokens"]:
        tokens[added["id"]] = added["content"]
        types[added["id"]] = _CONTROL if added["special"] else _USER_DEFINED
    merges = [each if isinstance(each, str) else " ".join(each) for each in tokenizer["model"]["merges"]]
    return tokens, types, merges


def _value(value: Any) -> bytes:
    if isinstance(value, list):
        kind = _STRING if not value or isinstance(value[0], str) else _INT32
        items = b"".join(_string(each) if kind == _STRING else struct.pack("<i", each) for each in value)
        return struct.pack("<IIQ", _ARRAY, kind, len(value)) + items
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _string(value)
    if isinstance(value, bool):
        return struct.pack("<I?", _BOOL, value)
    if isinstance(value, float):
        return struct.pack("<If", _FLOAT32, value)
    return struct.pack("<II", _UINT32, value)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data
