"""Int4 weights in a model folder, in the "pack-quantized" layout of compressed-tensors.

    MODULE.weight_packed    [O, I / 8] int32: eight weights plus 8, the first column in the low bits
    MODULE.weight_scale     [O, I / group size] bfloat16
    MODULE.weight_shape     [2] int64: O, I

`config.json` has `quantization_config`, which transformers and vLLM read. The embedding, the head
and all norms keep their dtype.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from calumma.checkpoints.lazy_tensor import Int4Tensors, LazyTensor
from calumma.errors import CheckpointError
from calumma.model.decoder import Decoder
from calumma.model.quantization import Int4Linear, pack_int4, unpack_int4

_PACKED, _SCALE, _SHAPE = ".weight_packed", ".weight_scale", ".weight_shape"


def int4_config(group_size: int) -> dict[str, Any]:
    """Return the `quantization_config` of a `config.json`."""
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": group_size}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": ["lm_head"],
    }


def quantize_tensors(tensors: Mapping[str, LazyTensor], group_size: int) -> dict[str, LazyTensor]:
    """Replace the matrices of the blocks, by their names in a folder, by int4 ones.

    Each is quantized when it is written.
    """
    made = {}
    for name, weight in tensors.items():
        if ".layers." not in name or not name.endswith("_proj.weight"):
            made[name] = weight
            continue
        module, (outputs, inputs) = name.removesuffix(".weight"), weight.shape
        made[module + _PACKED] = LazyTensor((outputs, inputs // 8), torch.int32, partial(_pack, weight, group_size))
        made[module + _SCALE] = LazyTensor(
            (outputs, inputs // group_size), torch.bfloat16, partial(_scale, weight, group_size)
        )
        made[module + _SHAPE] = LazyTensor.from_tensor(torch.tensor([outputs, inputs]))
    return made


def _pack(weight: LazyTensor, group_size: int) -> Tensor:
    return pack_int4(weight.read(), group_size)[0].view(torch.int32)


def _scale(weight: LazyTensor, group_size: int) -> Tensor:
    return pack_int4(weight.read(), group_size)[1]


def split_int4(
    tensors: Mapping[str, LazyTensor], config: Mapping[str, Any], where: object
) -> tuple[dict[str, LazyTensor], dict[str, Int4Tensors]]:
    """Separate the int4 matrices of a folder, which are also returned as dequantized ones.

    Args:
        tensors: of a folder, by name.
        config: its `config.json`.
        where: the folder, for messages.

    Returns:
        All tensors with `MODULE.weight` in place of its parts, and the int4 matrices by that name.

    Raises:
        CheckpointError: the folder has another quantization, or lacks a part of a matrix.
    """
    quantization = config.get("quantization_config")
    if not quantization:
        return dict(tensors), {}
    groups = quantization.get("config_groups") or {}
    weights = dict((next(iter(groups.values()), None) or {}).get("weights") or {})
    expected = int4_config(int(weights.get("group_size") or 0))
    needed = expected["config_groups"]["group_0"]["weights"]
    if quantization.get("format") != expected["format"] or any(weights.get(n) != v for n, v in needed.items()):
        raise CheckpointError(
            f"{where} has weights quantized by {quantization.get('quant_method')!r}; expected symmetric "
            "int4 in groups, as `calumma convert --quantization int4` writes. Convert the float weights."
        )
    made, matrices = dict(tensors), {}
    for name in [name for name in tensors if name.endswith(_PACKED)]:
        module = name.removesuffix(_PACKED)
        made.pop(module + _SHAPE, None)
        packed, scale = made.pop(name), made.pop(module + _SCALE, None)
        if scale is None or packed.dtype != torch.int32:
            raise CheckpointError(
                f"{where} lacks {module}{_SCALE}; expected the scales of every int4 matrix. Copy the folder again."
            )
        matrix = Int4Tensors(packed, scale)
        matrices[module + ".weight"] = matrix
        shape = packed.shape[0], 8 * packed.shape[1]
        made[module + ".weight"] = LazyTensor(shape, torch.bfloat16, partial(_dequantize, matrix))
    return made, matrices


def _dequantize(matrix: Int4Tensors) -> Tensor:
    return unpack_int4(matrix.packed.read().view(torch.uint8), matrix.scale.read(), torch.bfloat16)


def load_int4(decoder: Decoder, matrices: Mapping[str, Int4Tensors]) -> None:
    """Replace linear layers of a decoder by int4 ones, by the names of their weights."""
    for name, matrix in matrices.items():
        parent, _, child = name.removesuffix(".weight").rpartition(".")
        layer = Int4Linear(matrix.packed.read().clone().view(torch.uint8), matrix.scale.read().clone())
        setattr(decoder.get_submodule(parent), child, layer)
