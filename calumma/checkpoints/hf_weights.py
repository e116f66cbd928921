"""The weights of a Hugging Face folder: one safetensors file, or several with an index.

model.safetensors                                      where one file holds all
model-00001-of-00003.safetensors, ...                  else
model.safetensors.index.json                           which tensor is in which file
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from calumma.checkpoints.lazy_tensor import LazyTensor
from calumma.checkpoints.safetensors_io import WriteCallback, open_safetensors, write_safetensors
from calumma.errors import CheckpointError
from calumma.files import read_json, write_json
from calumma.model.config import DecoderConfig
from calumma.tokens.text import TEXT_TOKENIZER_NAME, TextTokenizer

HF_WEIGHTS_FILE = "model.safetensors"
HF_INDEX_FILE = "model.safetensors.index.json"
MAX_SHARD_BYTES = 5_000_000_000
"""Maximum size of a file of weights unless one tensor is larger; transformers' default."""

VQ_PREFIX = "model.vqmodel."
"""Prefix of the image tokenizer's encoder and codebook in transformers' state dict."""

_TOP_LEVEL = {
    "embedding.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}
_PER_BLOCK = {
    "attention.query.weight": "self_attn.q_proj.weight",
    "attention.key.weight": "self_attn.k_proj.weight",
    "attention.value.weight": "self_attn.v_proj.weight",
    "attention.output.weight": "self_attn.o_proj.weight",
    "attention.query_norm.weight": "self_attn.q_norm.weight",
    "attention.query_norm.bias": "self_attn.q_norm.bias",
    "attention.key_norm.weight": "self_attn.k_norm.weight",
    "attention.key_norm.bias": "self_attn.k_norm.bias",
    "feed_forward.gate.weight": "mlp.gate_proj.weight",
    "feed_forward.up.weight": "mlp.up_proj.weight",
    "feed_forward.down.weight": "mlp.down_proj.weight",
    "attention_norm.weight": "input_layernorm.weight",
    "feed_forward_norm.weight": "post_attention_layernorm.weight",
}


def open_hf_weights(folder: Path) -> dict[str, LazyTensor]:
    """Return every tensor of a folder's weights, reading headers only.

    Raises:
        CheckpointError: there are none, a file is broken, or the index lists missing tensors.
    """
    tensors: dict[str, LazyTensor] = {}
    for path in hf_weight_files(folder):
        tensors |= open_safetensors(path)
    missing = sorted(_index(folder).keys() - tensors.keys())
    if missing:
        raise CheckpointError(
            f"{folder / HF_INDEX_FILE} lists {len(missing)} tensors that no file has, such as "
            f"{missing[0]}; expected the files it was written with. Copy or download them again."
        )
    return tensors


def hf_weight_files(folder: Path) -> list[Path]:
    """Return the files of a folder's weights in the order of their names.

    Raises:
        CheckpointError: there are none, or the index lists a missing one.
    """
    if (folder / HF_WEIGHTS_FILE).is_file():
        return [folder / HF_WEIGHTS_FILE]
    names = sorted(set(_index(folder).values()))
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise CheckpointError(
                f"{folder} lacks the file {name}, which its {HF_INDEX_FILE} lists; expected every "
                "file of the weights. Copy or download the missing one."
            )
    files = [folder / name for name in names] or sorted(folder.glob("model*.safetensors"))
    if not files:
        raise CheckpointError(
            f"{folder} holds no model*.safetensors; expected the weights of a Chameleon-family "
            "model. Pickled weights (.bin) are not read: save them as safetensors."
        )
    return files


def _index(folder: Path) -> dict[str, str]:
    """Return tensor name -> file name; empty without an index or with a single file."""
    path = folder / HF_INDEX_FILE
    if (folder / HF_WEIGHTS_FILE).is_file() or not path.is_file():
        return {}
    record = read_json(path)
    files = record.get("weight_map") if isinstance(record, dict) else None
    if not isinstance(files, dict) or not all(isinstance(v, str) for v in files.values()):
        raise CheckpointError(
            f"{path} has no weight_map from tensors to files; expected the index of sharded "
            "safetensors. Copy or download it again."
        )
    return files


def open_hf_tokenizer(folder: Path) -> tuple[TextTokenizer, str]:
    """Return the text tokenizer of a folder, and the text of its file.

    Raises:
        CheckpointError: the file is missing.
        TokenizerError: it is broken.
    """
    path = folder / TEXT_TOKENIZER_NAME
    if not path.is_file():
        raise CheckpointError(
            f"{folder} lacks {TEXT_TOKENIZER_NAME}; expected the text tokenizer that belongs to its weights. Copy the "
            "folder again."
        )
    return TextTokenizer.load(folder), path.read_text(encoding="utf-8")


def write_hf_weights(
    folder: Path,
    tensors: Mapping[str, LazyTensor],
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    on_write: WriteCallback | None = None,
) -> None:
    """Write a folder's weights, one tensor in memory at a time, and delete those it had before."""
    groups = list(_groups(tensors, max_shard_bytes))
    names = [HF_WEIGHTS_FILE]
    if len(groups) > 1:
        names = [f"model-{n:05d}-of-{len(groups):05d}.safetensors" for n, _ in enumerate(groups, 1)]
    for name, group in zip(names, groups, strict=True):
        write_safetensors(folder / name, group, on_write)
    for old in folder.glob("model*.safetensors"):
        if old.name not in names:
            old.unlink()
    (folder / HF_INDEX_FILE).unlink(missing_ok=True)
    if len(groups) > 1:
        weight_map = {n: file for file, group in zip(names, groups, strict=True) for n in group}
        total = sum(tensor.num_bytes for tensor in tensors.values())
        record = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        write_json(folder / HF_INDEX_FILE, record)


def _groups(tensors: Mapping[str, LazyTensor], max_bytes: int) -> Iterable[dict[str, LazyTensor]]:
    """Split the tensors, in their order, into groups of at most `max_bytes`."""
    group: dict[str, LazyTensor] = {}
    size = 0
    for name, tensor in tensors.items():
        if group and size + tensor.num_bytes > max_bytes:
            yield group
            group, size = {}, 0
        group[name] = tensor
        size += tensor.num_bytes
    yield group


def hf_decoder_names(config: DecoderConfig) -> dict[str, str]:
    """Return the name in `Decoder` -> transformers' name, for every tensor of the decoder."""
    blocks = {
        f"blocks.{layer}.{ours}": f"model.layers.{layer}.{theirs}"
        for layer in range(config.num_layers)
        for ours, theirs in _PER_BLOCK.items()
        if not _is_absent(ours, config)
    }
    return _TOP_LEVEL | blocks


def _is_absent(name: str, config: DecoderConfig) -> bool:
    """Return whether the name is of a QK-norm parameter that this decoder lacks."""
    if config.qk_norm == "layer" or num_norm_heads(name, config) is None:
        return False
    return config.qk_norm == "none" or name.endswith(".bias")


def num_norm_heads(name: str, config: DecoderConfig) -> int | None:
    """Return how many heads a QK-norm tensor is repeated for, or None if it is none."""
    if ".query_norm." in name:
        return config.num_heads
    if ".key_norm." in name:
        return config.num_kv_heads
    return None
