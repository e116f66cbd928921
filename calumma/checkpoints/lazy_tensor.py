"""Lazily loaded tensors, and a model of them.

A model larger than memory is converted tensor by tensor; names, shapes and dtypes are known from
the headers of its files.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from calumma.checkpoints.sampling_params import SamplingOptions
from calumma.errors import CheckpointError, VocabularyError
from calumma.model.config import DecoderConfig
from calumma.model.decoder import Decoder
from calumma.tokens.text import TextTokenizer
from calumma.tokens.vq.config import VQConfig
from calumma.tokens.vq.network import VQModel

Shape = tuple[int, ...]
FLOAT_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""Dtypes that weights may have."""

_MAX_LISTED_NAMES = 3
"""Number of tensor names that an error message lists."""


@dataclass(frozen=True)
class LazyTensor:
    """A tensor of known shape and dtype whose values are read on demand."""

    shape: Shape
    dtype: torch.dtype

    read: Callable[[], Tensor]
    """Return the tensor on the CPU, contiguous.

    It may be the mapped memory of a file or a tensor in use elsewhere: clone it to keep it.
    """

    @classmethod
    def from_tensor(cls, tensor: Tensor) -> "LazyTensor":
        """Wrap a tensor that is in memory."""
        return cls(tuple(tensor.shape), tensor.dtype, lambda: tensor.detach().cpu().contiguous())

    @property
    def num_bytes(self) -> int:
        """Size of the tensor in bytes."""
        return prod(self.shape) * self.dtype.itemsize

    def map(self, shape: Shape, change: Callable[[Tensor], Tensor]) -> "LazyTensor":
        """Return a lazy tensor of `shape` that applies `change` whenever this one is read."""
        return LazyTensor(shape, self.dtype, lambda: change(self.read()).contiguous())

    def reshape(self, shape: Shape) -> "LazyTensor":
        """Return a lazy tensor of the same elements in another shape."""
        return self.map(shape, lambda tensor: tensor.reshape(shape))


class Int4Tensors(NamedTuple):
    """A matrix of 4-bit integers in a folder."""

    packed: LazyTensor
    """[O, I / 8] int32."""

    scale: LazyTensor
    """[O, I / group size] bfloat16."""


class LazyTokenizers(NamedTuple):
    """Tokenizers of lazy tensors; the fields are as in `LazyModel`."""

    vq_config: VQConfig
    vq_tensors: Mapping[str, LazyTensor]
    text_tokenizer: TextTokenizer
    tokenizer_json: str


@dataclass(frozen=True, kw_only=True)
class LazyModel:
    """A model of lazy tensors, from a folder of any layout or from memory."""

    layout: str
    """Description of the folder's layout, for messages."""

    decoder_config: DecoderConfig

    decoder_tensors: Mapping[str, LazyTensor]
    """Every tensor of the decoder, by its name in `Decoder`."""

    int4_matrices: Mapping[str, Int4Tensors] = field(default_factory=dict)
    """Matrices that the folder holds as int4, which `decoder_tensors` dequantizes."""

    vq_config: VQConfig

    vq_tensors: Mapping[str, LazyTensor]
    """Tensors of the image tokenizer by their names in `VQModel`; its decoder may be missing."""

    tokenizer_json: str
    """Exact content of `tokenizer.json`, with the placeholder named `<image>`."""

    text_tokenizer: TextTokenizer

    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    """Sampling parameters that requests start from."""

    num_weight_files: int = 0
    """Number of files with the decoder's weights."""

    @cached_property
    def has_image_decoder(self) -> bool:
        """Whether the folder has the image tokenizer's decoder."""
        return any(name.startswith("decoder.") for name in self.vq_tensors)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the embedding, which a config gives for the whole model."""
        return self.decoder_tensors["embedding.weight"].dtype

    @property
    def dtype_names(self) -> str:
        """Dtypes of the weights, for people."""
        wide = str(self.dtype).removeprefix("torch.")
        return f"int4 and {wide}" if self.int4_matrices else wide

    @property
    def num_bytes(self) -> int:
        """Size of all tensors in bytes, int4 matrices as the folder has them."""
        plain = (tensor for name, tensor in self.decoder_tensors.items() if name not in self.int4_matrices)
        parts = (tensor for matrix in self.int4_matrices.values() for tensor in matrix)
        return sum(each.num_bytes for each in (*plain, *parts, *self.vq_tensors.values()))

    @property
    def num_vq_bytes(self) -> int:
        """Size of the image tokenizer's tensors in bytes."""
        return sum(each.num_bytes for each in self.vq_tensors.values())

    @property
    def num_parameters(self) -> int:
        """Number of the decoder's parameters; a norm shared by heads counts once."""
        return sum(prod(each.shape) for each in self.decoder_tensors.values())

    def require_float(self, where: object) -> None:
        """Raise `CheckpointError` if the model has int4 weights."""
        if self.int4_matrices:
            raise CheckpointError(
                f"{where} has int4 weights, which are only loaded; expected the float weights. Use the model that it "
                "was quantized from."
            )

    def require_matching_vocabulary(self, where: object) -> None:
        """Check that decoder, text tokenizer and image tokenizer have the same vocabulary.

        Raises:
            VocabularyError: they do not.
        """
        vocabulary, rows = self.text_tokenizer.vocabulary, self.decoder_config.vocabulary_size
        if vocabulary.size > rows:
            raise VocabularyError(
                f"{where}: the tokenizer has {vocabulary.size} token ids, the decoder embeds {rows}; expected at most "
                "as many. Take the tokenizer that the decoder was trained with."
            )
        if vocabulary.num_codes != self.vq_config.num_codes:
            raise VocabularyError(
                f"{where}: the image tokenizer has {self.vq_config.num_codes} codes, the "
                f"vocabulary {vocabulary.num_codes}; expected the same number. Take the tokenizers "
                "that the decoder was trained with."
            )


def decoder_tensor_shapes(config: DecoderConfig) -> dict[str, Shape]:
    """Return the shape of every tensor of a decoder by its name, allocating nothing."""
    with torch.device("meta"):
        return _shapes(Decoder(config))


def vq_tensor_shapes(config: VQConfig) -> dict[str, Shape]:
    """Return the shape of every tensor of an image tokenizer by its name, allocating nothing."""
    with torch.device("meta"):
        return _shapes(VQModel(config))


def _shapes(module: torch.nn.Module) -> dict[str, Shape]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def require_tensors(
    where: object, found: Mapping[str, LazyTensor], expected: Mapping[str, Shape], model_kind: str
) -> None:
    """Check that exactly the expected tensors were found, each of the expected shape.

    Args:
        where: the file or folder, for messages.
        found: the tensors of the file or folder.
        expected: their shapes.
        model_kind: for messages, such as "a Chameleon-family model".

    Raises:
        CheckpointError: one is missing, unknown, of another shape, or not floating-point.
    """
    missing = [name for name in expected if name not in found]
    if missing:
        raise CheckpointError(
            f"{where} lacks {_listed(missing)}; expected every tensor of {model_kind}. Copy or "
            "download what is missing."
        )
    unknown = [name for name in found if name not in expected]
    if unknown:
        raise CheckpointError(
            f"{where} holds {_listed(unknown)}, unknown in {model_kind}; expected only its "
            "tensors. Take the config that belongs to these weights."
        )
    for name, shape in expected.items():
        if found[name].shape != shape:
            raise CheckpointError(
                f"{where}: tensor {name} is {list(found[name].shape)}, but its config "
                f"implies {list(shape)}. Copy both again from where they were written together."
            )
        if found[name].dtype not in FLOAT_DTYPES:
            raise CheckpointError(
                f"{where}: tensor {name} is of type {found[name].dtype}; expected a plain "
                "floating-point type, such as bfloat16. Quantized weights are not read."
            )


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    if len(names) == 1:
        return f"the tensor {names[0]}"
    more = ", ..." if len(names) > _MAX_LISTED_NAMES else ""
    return f"{len(names)} tensors ({', '.join(names[:_MAX_LISTED_NAMES])}{more})"
