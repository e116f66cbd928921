"""Tensors that lie somewhere and are read when asked for, and a model made of them.

A model larger than the memory is converted tensor by tensor: what is known of it beforehand is
names, shapes and dtypes, which the headers of its files tell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import Tensor

from calumma.errors import CheckpointError, VocabularyError
from calumma.model.config import DecoderConfig
from calumma.model.decoder import Decoder
from calumma.tokens.text import TextTokenizer
from calumma.tokens.vq.config import VQConfig
from calumma.tokens.vq.network import VQNetwork

Shape = tuple[int, ...]
FLOAT_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""What weights are kept in."""

_MAX_LISTED_NAMES = 3
"""Names that a message lists before it only counts."""


@dataclass(frozen=True)
class LazyTensor:
    """One tensor: what is known of it, and how to get it."""

    shape: Shape
    dtype: torch.dtype

    read: Callable[[], Tensor]
    """A tensor of that shape and dtype on the CPU, contiguous; a new one at each call."""

    @classmethod
    def from_tensor(cls, tensor: Tensor) -> LazyTensor:
        """A tensor that is in memory already."""
        return cls(tuple(tensor.shape), tensor.dtype, lambda: tensor.detach().cpu().contiguous())

    @property
    def num_bytes(self) -> int:
        """How much it holds."""
        return prod(self.shape) * self.dtype.itemsize

    def map(self, shape: Shape, change: Callable[[Tensor], Tensor]) -> LazyTensor:
        """The tensor that `change` makes of this one when it is read."""
        return LazyTensor(shape, self.dtype, lambda: change(self.read()).contiguous())


@dataclass(frozen=True, kw_only=True)
class LazyModel:
    """A model on disk or in memory, whichever layout its folder has."""

    layout: str
    """The folder's layout in words, for people."""

    decoder_config: DecoderConfig

    decoder_tensors: Mapping[str, LazyTensor]
    """Every tensor of the decoder, by our names."""

    vq_config: VQConfig

    vq_tensors: Mapping[str, LazyTensor]
    """The image tokenizer's tensors by our names, its decoder's only where the folder has them."""

    tokenizer_json: str
    """`tokenizer.json` to the letter, with the placeholder named `<image>`."""

    text_tokenizer: TextTokenizer

    num_weight_files: int = 0
    """That hold the decoder's weights."""

    @cached_property
    def has_image_decoder(self) -> bool:
        """Whether the image tokenizer's decoder is there."""
        return any(name.startswith("decoder.") for name in self.vq_tensors)

    @property
    def dtype(self) -> torch.dtype:
        """The embedding's dtype, which a config tells for the whole."""
        return self.decoder_tensors["embedding.weight"].dtype

    @property
    def num_bytes(self) -> int:
        """Of all tensors."""
        return sum(
            each.num_bytes for each in (*self.decoder_tensors.values(), *self.vq_tensors.values())
        )

    @property
    def num_vq_bytes(self) -> int:
        """Of the image tokenizer's tensors alone."""
        return sum(each.num_bytes for each in self.vq_tensors.values())

    @property
    def num_parameters(self) -> int:
        """Of the decoder; heads that share a norm share it here too."""
        return sum(prod(each.shape) for each in self.decoder_tensors.values())

    def require_matching_vocabulary(self, where: object) -> None:
        """See that decoder, text tokenizer and image tokenizer speak of the same ids.

        Raises:
            VocabularyError: they do not.
        """
        vocabulary, rows = self.text_tokenizer.vocabulary, self.decoder_config.vocabulary_size
        if vocabulary.size > rows:
            raise VocabularyError(
                f"{where}: the tokenizer has {vocabulary.size} ids, the decoder rows for {rows}; "
                "expected at least as many rows as ids. Take the tokenizer that the decoder was "
                "trained with."
            )
        if vocabulary.num_codes != self.vq_config.num_codes:
            raise VocabularyError(
                f"{where}: the image tokenizer has {self.vq_config.num_codes} codes, the "
                f"vocabulary {vocabulary.num_codes}; expected as many. Take the tokenizers that the "
                "decoder was trained with."
            )


def decoder_tensor_shapes(config: DecoderConfig) -> dict[str, Shape]:
    """The shape of every tensor of a decoder, by our names; nothing is allocated."""
    with torch.device("meta"):
        return _shapes(Decoder(config))


def vq_tensor_shapes(config: VQConfig) -> dict[str, Shape]:
    """The shape of every tensor of an image tokenizer, by our names; nothing is allocated."""
    with torch.device("meta"):
        return _shapes(VQNetwork(config))


def _shapes(module: torch.nn.Module) -> dict[str, Shape]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def require_tensors(
    where: object, found: Mapping[str, LazyTensor], expected: Mapping[str, Shape], model_kind: str
) -> None:
    """See that exactly the tensors are there that should be, each in its shape.

    Args:
        where: the file or folder, for the message.
        found: what is there, by the names it has there.
        expected: what should be.
        of: what they are the tensors of, such as "a Chameleon-family model".

    Raises:
        CheckpointError: one is missing, unknown, or of another shape.
    """
    missing = [name for name in expected if name not in found]
    if missing:
        raise CheckpointError(
            f"{where} lacks {_listed(missing)}; expected every tensor of {model_kind}. Copy or download "
            "what is missing."
        )
    unknown = [name for name in found if name not in expected]
    if unknown:
        raise CheckpointError(
            f"{where} holds {_listed(unknown)}, unknown in {model_kind}; expected its own tensors and no "
            "other. This is another kind of model, or a config that is not its own."
        )
    for name, shape in expected.items():
        if found[name].shape != shape:
            raise CheckpointError(
                f"{where}: tensor {name} is {list(found[name].shape)}, but its config wants "
                f"{list(shape)}. Copy both again from where they were written together."
            )
        if found[name].dtype not in FLOAT_DTYPES:
            raise CheckpointError(
                f"{where}: tensor {name} is of type {found[name].dtype}; expected a plain "
                "floating-point type, such as bfloat16. Quantised weights are not read."
            )


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    if len(names) == 1:
        return f"the tensor {names[0]}"
    more = ", ..." if len(names) > _MAX_LISTED_NAMES else ""
    return f"{len(names)} tensors ({', '.join(names[:_MAX_LISTED_NAMES])}{more})"
