"""The weights of a Hugging Face folder: one safetensors file, or several with an index.

model.safetensors                                      where one file holds all
model-00001-of-00003.safetensors, ...                  else
model.safetensors.index.json                           which tensor lies in which of them
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from calumma.checkpoints.lazy_tensor import LazyTensor
from calumma.checkpoints.safetensors_io import Tell, read_tensors, silent, write_tensors
from calumma.errors import CheckpointError
from calumma.files import read_json, write_json

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
MOST_BYTES = 5_000_000_000
"""Of one file of weights, unless a single tensor is larger; what others write too."""


def read_weights(folder: Path) -> dict[str, LazyTensor]:
    """Every tensor of a folder's weights, none of them read yet.

    Raises:
        CheckpointError: there are none, a file is broken, or the index names what is not there.
    """
    tensors: dict[str, LazyTensor] = {}
    for path in weight_files(folder):
        tensors |= read_tensors(path)
    lost = sorted(_index(folder).keys() - tensors.keys())
    if lost:
        raise CheckpointError(
            f"{folder / INDEX_NAME} tells of {len(lost)} tensors that no file has, the first of "
            f"them {lost[0]}; expected the files it was written with. Copy or download them again."
        )
    return tensors


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a folder's weights, in the order of their names.

    Raises:
        CheckpointError: there are none, or the index names one that is not there.
    """
    if (folder / WEIGHTS_NAME).is_file():
        return [folder / WEIGHTS_NAME]
    names = sorted(set(_index(folder).values()))
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise CheckpointError(
                f"{folder} lacks the file {name}, which its {INDEX_NAME} names; expected every file "
                "of the weights. Copy or download the missing one."
            )
    files = [folder / name for name in names] or sorted(folder.glob("model*.safetensors"))
    if not files:
        raise CheckpointError(
            f"{folder} holds no model*.safetensors; expected the weights of a Chameleon-family "
            "model. Pickled weights (.bin) are not read here: save them as safetensors."
        )
    return files


def _index(folder: Path) -> dict[str, str]:
    """Tensor -> file; empty where one file holds all, or no index tells."""
    path = folder / INDEX_NAME
    if (folder / WEIGHTS_NAME).is_file() or not path.is_file():
        return {}
    record = read_json(path)
    places = record.get("weight_map") if isinstance(record, dict) else None
    if not isinstance(places, dict) or not all(isinstance(v, str) for v in places.values()):
        raise CheckpointError(
            f"{path} has no weight_map from tensors to files; expected the index of sharded "
            "safetensors. Copy or download it again."
        )
    return places


def write_weights(
    folder: Path,
    tensors: Mapping[str, LazyTensor],
    *,
    most_bytes: int = MOST_BYTES,
    tell: Tell = silent,
) -> None:
    """Write a folder's weights, holding one tensor at a time, and drop those it had before."""
    groups = list(_groups(tensors, most_bytes))
    names = [WEIGHTS_NAME]
    if len(groups) > 1:
        names = [f"model-{n:05d}-of-{len(groups):05d}.safetensors" for n, _ in enumerate(groups, 1)]
    for name, group in zip(names, groups, strict=True):
        write_tensors(folder / name, group, tell)
    for old in folder.glob("model*.safetensors"):
        if old.name not in names:
            old.unlink()
    (folder / INDEX_NAME).unlink(missing_ok=True)
    if len(groups) > 1:
        places = {n: file for file, group in zip(names, groups, strict=True) for n in group}
        total = sum(tensor.num_bytes for tensor in tensors.values())
        record = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        write_json(folder / INDEX_NAME, record)


def _groups(tensors: Mapping[str, LazyTensor], most_bytes: int) -> Iterable[dict[str, LazyTensor]]:
    """The tensors in their order, parted where a file would grow too large."""
    group: dict[str, LazyTensor] = {}
    held = 0
    for name, tensor in tensors.items():
        if group and held + tensor.num_bytes > most_bytes:
            yield group
            group, held = {}, 0
        group[name] = tensor
        held += tensor.num_bytes
    yield group
