"""Adapters as PEFT writes them: `adapter_config.json` and `adapter_model.safetensors`.

PEFT loads them over transformers' Chameleon or Qwen3, whose names of weights they have. LoRA
matrices are `MODULE.lora_A.weight` and `MODULE.lora_B.weight`; rows of a vocabulary table are
`trainable_tokens_delta`, which holds the rows themselves.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from calumma.checkpoints.hf_weights import hf_decoder_names
from calumma.checkpoints.lazy_tensor import LazyModel, LazyTensor, decoder_tensor_shapes
from calumma.checkpoints.safetensors_io import open_safetensors, write_safetensors
from calumma.errors import CheckpointError
from calumma.files import make_folder, read_json, write_json
from calumma.hub import find_model_folder, split_hub_name
from calumma.model.config import DecoderConfig
from calumma.model.lora import Adapter, LoRAMatrices, TokenRows
from calumma.text_format import pluralize

ADAPTER_CONFIG_FILE = "adapter_config.json"
ADAPTER_WEIGHTS_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_LORA, _TOKENS = "LORA", "TRAINABLE_TOKENS"
_TABLES = {"embedding": "embed_tokens", "head": "lm_head"}
_UNSUPPORTED = {"use_dora": False, "lora_bias": False, "fan_in_fan_out": False, "bias": "none"}
"""Fields of a LoRA config with the only value that is read."""


def _module_names(config: DecoderConfig) -> dict[str, str]:
    """Return the name in `Decoder` -> transformers' name, for every module with a weight."""
    names = hf_decoder_names(config).items()
    return {ours.removesuffix(".weight"): theirs.removesuffix(".weight") for ours, theirs in names}


def write_adapter(folder: Path, adapter: Adapter, config: DecoderConfig, base: Path) -> None:
    """Write an adapter of a decoder; all its LoRA matrices have the same rank and scale.

    Args:
        folder: gets the two files.
        adapter: what to write.
        config: of the decoder.
        base: the model folder that the adapter belongs to, recorded in the config.
    """
    names = _module_names(config)
    tensors: dict[str, Tensor] = {}
    for name, update in adapter.matrices.items():
        tensors[f"{_PREFIX}{names[name]}.lora_A.weight"] = update.lora_A
        tensors[f"{_PREFIX}{names[name]}.lora_B.weight"] = update.lora_B
    wrapper = "token_adapter." if adapter.matrices else ""
    for name, table in adapter.tables.items():
        tensors[f"{_PREFIX}{names[name]}.{wrapper}trainable_tokens_delta"] = table.rows
    make_folder(folder)
    lazy = {name: LazyTensor.from_tensor(tensor) for name, tensor in tensors.items()}
    write_safetensors(folder / ADAPTER_WEIGHTS_FILE, lazy)
    write_json(folder / ADAPTER_CONFIG_FILE, _adapter_config(adapter, names, base))


def _adapter_config(adapter: Adapter, names: Mapping[str, str], base: Path) -> dict[str, Any]:
    repository, revision = split_hub_name(base) or (str(base), None)
    common = {"base_model_name_or_path": repository, "revision": revision, "inference_mode": True, "task_type": None}
    token_ids = {_TABLES[name]: table.token_ids.tolist() for name, table in adapter.tables.items()}
    if not adapter.matrices:
        # PEFT's config of this kind has one list of tokens for all tables.
        (ids, *_) = token_ids.values()
        return {"peft_type": _TOKENS, **common, "target_modules": list(token_ids), "token_indices": ids}
    update = next(iter(adapter.matrices.values()))
    rank = len(update.lora_A)
    return {
        "peft_type": _LORA,
        **common,
        "r": rank,
        "lora_alpha": update.scale * rank,
        "lora_dropout": 0.0,
        "target_modules": sorted({names[name].rpartition(".")[2] for name in adapter.matrices}),
        "trainable_token_indices": token_ids or None,
        **_UNSUPPORTED,
    }


def read_adapter(folder: str | Path, config: DecoderConfig) -> Adapter:
    """Read an adapter that calumma or PEFT wrote.

    Args:
        folder: holds `adapter_config.json` and `adapter_model.safetensors`; or its name on the Hub.
        config: of the decoder that the adapter must fit.

    Raises:
        CheckpointError: a file is missing, the kind of adapter is not supported, or it belongs to
            another model.
    """
    folder = find_model_folder(folder)
    settings, lazy = _open_adapter(folder)
    ours = {theirs: name for name, theirs in _module_names(config).items()}
    lora: dict[str, dict[str, Tensor]] = {}
    tables: dict[str, TokenRows] = {}
    for name, tensor in lazy.items():
        found = re.fullmatch(
            r"(?:base_model\.model\.)?(.+?)(?:\.token_adapter)?\.(lora_[AB]\.weight|trainable_tokens_delta|weight)",
            name,
        )
        module, kind = (ours.get(found[1]), found[2]) if found else (None, "")
        is_table = module in _TABLES
        if module is None or is_table == kind.startswith("lora_"):
            raise CheckpointError(
                f"{folder}: tensor {name} is of no module that adapters of this model change; expected LoRA of the "
                "decoder's matrices, or rows of its two tables. Use an adapter of this model."
            )
        if is_table:
            rows = tensor.read().clone()
            tables[module] = _token_rows(folder, rows, _token_ids(settings, _TABLES[module], kind, rows))
        else:
            lora.setdefault(module, {})[kind[:6]] = tensor.read().clone()
    adapter = Adapter(
        matrices={name: _matrices(folder, settings, name, ours, pair) for name, pair in lora.items()}, tables=tables
    )
    _require_fitting(folder, settings, adapter, config)
    return adapter


def adapter_summary(folder: Path) -> list[str]:
    """Return what an adapter folder holds, as lines of text; only headers are read.

    Raises:
        CheckpointError: a file is missing, or the kind of adapter is not supported.
    """
    settings, tensors = _open_adapter(folder)
    ranks = [tensor.shape[0] for name, tensor in tensors.items() if name.endswith(".lora_A.weight")]
    rows = {
        table: sum(t.shape[0] for name, t in tensors.items() if f"{table}." in name and ".lora_" not in name)
        for table in _TABLES.values()
    }
    kinds = [f"LoRA of rank {' and '.join(map(str, sorted(set(ranks))))} on {pluralize(len(ranks), 'module')}"]
    kinds = (kinds if ranks else []) + [f"{number:,} rows of {table}" for table, number in rows.items() if number]
    num_parameters = sum(prod(tensor.shape) for tensor in tensors.values())
    num_bytes = sum(tensor.num_bytes for tensor in tensors.values())
    return [
        f"{', '.join(kinds) or 'no tensors'}: {num_parameters:,} parameters, {num_bytes:,} bytes",
        f"base model: {settings.get('base_model_name_or_path')}",
    ]


def _open_adapter(folder: Path) -> tuple[dict[str, Any], dict[str, LazyTensor]]:
    """Return the config and the tensors of an adapter folder."""
    for name in (ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE):
        if not (folder / name).is_file():
            is_run = (folder / "adapter" / name).is_file()
            raise CheckpointError(
                f"{folder} lacks {name}; expected an adapter folder of `calumma finetune` or PEFT. "
                + (f"Name {folder / 'adapter'}." if is_run else "Check the path.")
            )
    content = read_json(folder / ADAPTER_CONFIG_FILE)
    settings: dict[str, Any] = content if isinstance(content, dict) else {}
    _require_supported(folder, settings)
    return settings, open_safetensors(folder / ADAPTER_WEIGHTS_FILE)


def _require_supported(folder: Path, settings: Mapping[str, Any]) -> None:
    kind = settings.get("peft_type")
    if kind not in (_LORA, _TOKENS):
        raise CheckpointError(f"{folder} is a PEFT adapter of type {kind!r}; expected {_LORA} or {_TOKENS}. Use one.")
    for name, expected in _UNSUPPORTED.items():
        if (found := settings.get(name, expected)) != expected:
            raise CheckpointError(
                f"{folder} has {name} = {found!r}; expected {expected!r}. Merge the adapter with PEFT, and load the "
                "merged model."
            )


def _token_ids(settings: Mapping[str, Any], table: str, kind: str, rows: Tensor) -> list[int]:
    if kind == "weight":  # modules_to_save: the whole table
        return list(range(len(rows)))
    if settings["peft_type"] == _TOKENS:
        return list(settings.get("token_indices") or ())
    indices = settings.get("trainable_token_indices") or {}
    return list(indices.get(table) or () if isinstance(indices, dict) else indices)


def _token_rows(folder: Path, rows: Tensor, token_ids: list[int]) -> TokenRows:
    if len(rows) != len(token_ids):
        raise CheckpointError(
            f"{folder} has {len(rows)} rows of a vocabulary table for {len(token_ids)} token ids; expected as many. "
            "Copy both files again from where they were written together."
        )
    ids = torch.tensor(token_ids)
    order = ids.argsort()
    return TokenRows(ids[order], rows[order])


def _matrices(
    folder: Path, settings: Mapping[str, Any], name: str, ours: Mapping[str, str], pair: Mapping[str, Tensor]
) -> LoRAMatrices:
    if len(pair) < 2:
        raise CheckpointError(
            f"{folder} holds one of the two LoRA matrices of {name}; expected both. Copy the folder again."
        )
    theirs = next(key for key, value in ours.items() if value == name)
    alpha = _pattern_value(settings.get("alpha_pattern"), theirs, settings.get("lora_alpha", 8))
    rank = len(pair["lora_A"])
    return LoRAMatrices(
        pair["lora_A"], pair["lora_B"], alpha / rank**0.5 if settings.get("use_rslora") else alpha / rank
    )


def _pattern_value(patterns: Any, module: str, default: float) -> float:
    """Return the value of the first pattern that matches the end of a module's name, as in PEFT."""
    for pattern, value in (patterns or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", module):
            return float(value)
    return float(default)


def _require_fitting(folder: Path, settings: Mapping[str, Any], adapter: Adapter, config: DecoderConfig) -> None:
    shapes = decoder_tensor_shapes(config)
    found = {name: (len(m.lora_B), m.lora_A.shape[1]) for name, m in adapter.matrices.items()}
    for name, table in adapter.tables.items():
        last = int(table.token_ids[-1]) + 1 if len(table.token_ids) else 0
        found[name] = (max(last, shapes[f"{name}.weight"][0]), table.rows.shape[1])
    for name, shape in found.items():
        expected = shapes[f"{name}.weight"]
        if tuple(shape) != expected:
            raise CheckpointError(
                f"{folder} is an adapter of another model: its {name} is {list(shape)}, the model's "
                f"{list(expected)}; expected one of this model. Its base is {settings.get('base_model_name_or_path')}."
            )


def merge_adapter(model: LazyModel, adapter: Adapter) -> LazyModel:
    """Return a model with an adapter merged into its weights, whose dtypes stay."""
    tensors = dict(model.decoder_tensors)
    for name, update in adapter.matrices.items():
        weight = tensors[f"{name}.weight"]
        tensors[f"{name}.weight"] = weight.map(weight.shape, partial(_add_update, update=update))
    for name, table in adapter.tables.items():
        weight = tensors[f"{name}.weight"]
        tensors[f"{name}.weight"] = weight.map(weight.shape, partial(_replace_rows, table=table))
    return replace(model, decoder_tensors=tensors)


def _add_update(weight: Tensor, *, update: LoRAMatrices) -> Tensor:
    return (weight.float() + update.delta()).to(weight.dtype)


def _replace_rows(weight: Tensor, *, table: TokenRows) -> Tensor:
    return weight.index_copy(0, table.token_ids, table.rows.to(weight.dtype))
