"""Fine-tuning that changes few weights: low-rank additions, and rows of the tables alone.

What learns stands in parameters of its own beside weights that stay; so the optimizer, the
checkpoints and the ranks of FSDP2 need to know nothing of it. At the end all is merged into a
decoder like any other.

Shapes: B rows, T tokens, I and O a matrix's input and output width, R rank, V vocabulary size,
M model_dim, W learning rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from calumma.errors import ConfigError
from calumma.files import atomic_write, make_folder
from calumma.model.decoder import INITIAL_STD, Decoder, LMHead
from calumma.train.config_finetune import TrainableConfig
from calumma.vocabulary import Vocabulary

FILE_NAME = "adapter.safetensors"


class LoRALinear(nn.Linear):
    """A matrix that stays, with an addition of low rank that learns: x W' + scale * x D' U'."""

    def __init__(self, inner: nn.Linear, rank: int, scale: float) -> None:
        super().__init__(inner.in_features, inner.out_features, bias=False, device="meta")
        self.weight = inner.weight
        self.lora_A = nn.Parameter(inner.weight.new_empty(rank, inner.in_features))
        self.lora_B = nn.Parameter(inner.weight.new_empty(inner.out_features, rank))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, I] to [B, T, O]."""
        return super().forward(x) + F.linear(F.linear(x, self.lora_A), self.lora_B) * self.scale

    def merged(self) -> Tensor:
        """[O, I] the matrix that does the same alone."""
        return self.weight + self.scale * (self.lora_B @ self.lora_A)


class PartialEmbedding(nn.Embedding):
    """An embedding of which some neighbouring rows learn."""

    def __init__(self, inner: nn.Embedding, rows: range) -> None:
        super().__init__(inner.num_embeddings, inner.embedding_dim, device="meta")
        self.weight = inner.weight
        self.rows = nn.Parameter(inner.weight.new_empty(len(rows), inner.embedding_dim))
        self.first = rows.start

    def forward(self, ids: Tensor) -> Tensor:
        """[B, T] int64 to [B, T, M]."""
        places = ids - self.first
        inside = (places >= 0) & (places < len(self.rows))
        learning = F.embedding(places.where(inside, 0), self.rows)
        return torch.where(inside[..., None], learning, super().forward(ids))


class PartialHead(LMHead):
    """An output layer of which some neighbouring rows learn."""

    def __init__(self, inner: LMHead, rows: range) -> None:
        super().__init__(inner.in_features, inner.out_features, bias=False, device="meta")
        self.weight = inner.weight
        self.rows = nn.Parameter(inner.weight.new_empty(len(rows), inner.in_features))
        self.first = rows.start

    def forward(
        self, hidden: Tensor, instead: Callable[[Tensor, Tensor], Any] | None = None
    ) -> Any:
        """As `Head.forward`, with the learning rows in their places."""
        matrix = replace_rows(self.weight, self.rows, self.first)
        return F.linear(hidden, matrix) if instead is None else instead(hidden, matrix)


def replace_rows(table: Tensor, rows: Tensor, first: int) -> Tensor:
    """[V, M] a table with [W, M] other rows from `first` on."""
    return torch.cat([table[:first], rows, table[first + len(rows) :]])


def image_vocab_rows(vocabulary: Vocabulary) -> range:
    """The ids of images: codes, end and begin, which stand side by side."""
    return range(vocabulary.codes.start, vocabulary.begin_image + 1)


def apply_adapters(decoder: Decoder, config: TrainableConfig, vocabulary: Vocabulary) -> None:
    """Freeze what is not to learn, and put what learns beside it; to be called before sharding.

    The new parameters have no values yet: `fresh_additions` gives them.

    Args:
        decoder: not in use yet; its parameters may be on the meta device.
        config: what learns.
        vocabulary: which rows are those of images.
    """
    if config.is_whole:
        return
    decoder.requires_grad_(False)
    if config.blocks == "lora":
        for parent in list(decoder.blocks.modules()):
            for name, inner in list(parent.named_children()):
                if isinstance(inner, nn.Linear):
                    scale = config.lora_alpha / config.lora_rank
                    setattr(parent, name, LoRALinear(inner, config.lora_rank, scale))
    if config.embeddings == "none":
        return
    if config.vocab_rows == "all":
        decoder.head.requires_grad_(True)
        decoder.embedding.requires_grad_(config.embeddings == "all")
        return
    decoder.head = PartialHead(decoder.head, image_vocab_rows(vocabulary))
    if config.embeddings == "all":
        decoder.embedding = PartialEmbedding(decoder.embedding, image_vocab_rows(vocabulary))


def initial_adapter_weights(
    decoder: Decoder, start: Decoder, seed: int
) -> Iterator[tuple[str, Tensor]]:
    """First values of what `adapt` added to `decoder`, under which it does what `start` does.

    LoRA's inner matrices are drawn from a seed each, the outer are zero; rows are those of the
    start.
    """
    for number, (name, module) in enumerate(decoder.named_modules()):
        if isinstance(module, LoRALinear):
            generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
            down = torch.empty(module.lora_A.shape).normal_(0.0, INITIAL_STD, generator=generator)
            yield f"{name}.down", down
            yield f"{name}.up", torch.zeros(module.lora_B.shape)
        elif isinstance(module, PartialEmbedding | PartialHead):
            table = start.get_parameter(f"{name}.weight")
            yield f"{name}.rows", table[module.first : module.first + len(module.rows)]


@torch.no_grad()
def merge_adapters(decoder: Decoder) -> Decoder:
    """A decoder without additions that gives the same logits; itself where it has none."""
    whole = dict(decoder.state_dict())
    for name, module in decoder.named_modules():
        if isinstance(module, LoRALinear):
            whole[f"{name}.weight"] = module.merged()
            del whole[f"{name}.down"], whole[f"{name}.up"]
        elif isinstance(module, PartialEmbedding | PartialHead):
            whole[f"{name}.weight"] = replace_rows(module.weight, module.rows, module.first)
            del whole[f"{name}.rows"]
    if len(whole) == len(decoder.state_dict()):
        return decoder
    with torch.device("meta"):
        made = Decoder(decoder.config)
    made.load_state_dict(whole, assign=True)
    return made


def save_adapter(folder: Path, decoder: Decoder, config: TrainableConfig) -> None:
    """Write what learned, alone: `adapter.safetensors`, by the names of the decoder's modules.

    Its metadata say how LoRA's additions are scaled.
    """
    learned = {
        name: parameter.detach().cpu().contiguous()
        for name, parameter in decoder.named_parameters()
        if parameter.requires_grad
    }
    make_folder(folder)
    about = {"format": "pt", "rank": str(config.lora_rank), "alpha": str(config.lora_alpha)}
    # Not save_file, whose files only their owner can read, whatever the umask.
    with atomic_write(folder / FILE_NAME) as temporary:
        temporary.write_bytes(save(learned, about))


def require_shardable(config: TrainableConfig, tensor: int) -> None:
    """Refuse additions where tensor ranks share the matrices.

    Raises:
        ConfigError: they do, and not all weights learn.
    """
    if tensor > 1 and not config.is_whole:
        raise ConfigError(
            f"parallel.tensor_parallel={tensor} cuts matrices that trainable.blocks={config.blocks!r} adds "
            "to; expected whole ones. Set parallel.tensor_parallel=1 (FSDP2 shards them all the same)."
        )
