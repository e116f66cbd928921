"""Parameter-efficient fine-tuning: LoRA adapters, and training some rows of the vocabulary tables.

Trained weights are parameters separate from the frozen ones, so that the optimizer, the
checkpoints and FSDP2 treat them like any others. At the end they are merged into a plain decoder.

Shapes: B rows, T tokens, I and O input and output width of a matrix, V vocabulary size, M
model_dim, W trained rows.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from calumma.checkpoints.peft_folder import write_adapter
from calumma.errors import ConfigError
from calumma.model.decoder import INITIAL_STD, Decoder, LMHead
from calumma.model.lora import Adapter, LoRAMatrices, TokenRows
from calumma.train.config_finetune import TrainableConfig
from calumma.vocabulary import Vocabulary

ADAPTER_FOLDER = "adapter"


class LoRALinear(nn.Linear):
    """A frozen linear layer with a LoRA adapter: x W' + scale * x A' B'."""

    def __init__(self, inner: nn.Linear, rank: int, scale: float) -> None:
        super().__init__(inner.in_features, inner.out_features, bias=False, device="meta")
        self.weight = inner.weight
        self.lora_A = nn.Parameter(inner.weight.new_empty(rank, inner.in_features))
        self.lora_B = nn.Parameter(inner.weight.new_empty(inner.out_features, rank))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, T, I] to [B, T, O]."""
        return super().forward(x) + F.linear(F.linear(x, self.lora_A), self.lora_B) * self.scale

    def merged_weight(self) -> Tensor:
        """Return the matrix [O, I] with the adapter merged."""
        return self.weight + self.scale * (self.lora_B @ self.lora_A)


class PartialEmbedding(nn.Embedding):
    """A frozen embedding of which a range of rows is trained."""

    def __init__(self, inner: nn.Embedding, rows: range) -> None:
        super().__init__(inner.num_embeddings, inner.embedding_dim, device="meta")
        self.weight = inner.weight
        self.rows = nn.Parameter(inner.weight.new_empty(len(rows), inner.embedding_dim))
        self.first = rows.start

    def forward(self, ids: Tensor) -> Tensor:
        """Map [B, T] int64 to [B, T, M]."""
        rows = ids - self.first
        inside = (rows >= 0) & (rows < len(self.rows))
        trained = F.embedding(rows.where(inside, 0), self.rows)
        return torch.where(inside[..., None], trained, super().forward(ids))


class PartialHead(LMHead):
    """A frozen output layer of which a range of rows is trained."""

    def __init__(self, inner: LMHead, rows: range) -> None:
        super().__init__(inner.in_features, inner.out_features, bias=False, device="meta")
        self.weight = inner.weight
        self.rows = nn.Parameter(inner.weight.new_empty(len(rows), inner.in_features))
        self.first = rows.start

    def forward(self, hidden: Tensor, fn: Callable[[Tensor, Tensor], Any] | None = None) -> Any:
        """Compute logits as `LMHead.forward`, with the trained rows."""
        matrix = replace_rows(self.weight, self.rows, self.first)
        return F.linear(hidden, matrix) if fn is None else fn(hidden, matrix)


def replace_rows(table: Tensor, rows: Tensor, first: int) -> Tensor:
    """Return a table [V, M] with its rows from `first` on replaced by [W, M]."""
    return torch.cat([table[:first], rows, table[first + len(rows) :]])


def image_vocab_rows(vocabulary: Vocabulary) -> range:
    """Return the token ids of images: codes, end and begin of an image, which are adjacent."""
    return range(vocabulary.codes.start, vocabulary.begin_image + 1)


def apply_adapters(decoder: Decoder, config: TrainableConfig, vocabulary: Vocabulary) -> None:
    """Freeze the weights that are not trained, and add adapters; call it before sharding.

    The new parameters are uninitialized: `initial_adapter_weights` gives their values.

    Args:
        decoder: its parameters may be on the meta device.
        config: the weights to train.
        vocabulary: decides which rows are those of images.
    """
    if config.trains_all:
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


def initial_adapter_weights(decoder: Decoder, start: Decoder, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Yield initial values of the adapters, with which the decoder computes what `start` does.

    LoRA A matrices are random, B matrices zero; trained rows are copies.
    """
    for number, (name, module) in enumerate(decoder.named_modules()):
        if isinstance(module, LoRALinear):
            generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
            lora_a = torch.empty(module.lora_A.shape)
            yield f"{name}.lora_A", lora_a.normal_(0.0, INITIAL_STD, generator=generator)
            yield f"{name}.lora_B", torch.zeros(module.lora_B.shape)
        elif isinstance(module, PartialEmbedding | PartialHead):
            table = start.get_parameter(f"{name}.weight")
            yield f"{name}.rows", table[module.first : module.first + len(module.rows)]


@torch.no_grad()
def merge_adapters(decoder: Decoder) -> Decoder:
    """Return a plain decoder with the same logits; the decoder itself if it has no adapters."""
    weights = dict(decoder.state_dict())
    for name, module in decoder.named_modules():
        if isinstance(module, LoRALinear):
            weights[f"{name}.weight"] = module.merged_weight()
            del weights[f"{name}.lora_A"], weights[f"{name}.lora_B"]
        elif isinstance(module, PartialEmbedding | PartialHead):
            weights[f"{name}.weight"] = replace_rows(module.weight, module.rows, module.first)
            del weights[f"{name}.rows"]
    if len(weights) == len(decoder.state_dict()):
        return decoder
    with torch.device("meta"):
        made = Decoder(decoder.config)
    made.load_state_dict(weights, assign=True)
    return made


def save_adapter(run: Path, decoder: Decoder, base: Path) -> None:
    """Write the trained weights of a decoder with adapters to `adapter/`, which PEFT loads too.

    `base` is the model folder that the decoder started from.
    """
    write_adapter(run / ADAPTER_FOLDER, trained_adapter(decoder), decoder.config, base)


def trained_adapter(decoder: Decoder) -> Adapter:
    """Return the trained weights of a decoder with adapters, on the CPU."""
    matrices, tables = {}, {}
    for name, module in decoder.named_modules():
        if isinstance(module, LoRALinear):
            matrices[name] = LoRAMatrices(module.lora_A.detach().cpu(), module.lora_B.detach().cpu(), module.scale)
        elif isinstance(module, PartialEmbedding | PartialHead):
            ids = torch.arange(module.first, module.first + len(module.rows))
            tables[name] = TokenRows(ids, module.rows.detach().cpu())
        elif isinstance(module, nn.Embedding | LMHead) and module.weight.requires_grad:
            tables[name] = TokenRows(torch.arange(len(module.weight)), module.weight.detach().cpu())
    return Adapter(matrices=matrices, tables=tables)


def require_shardable(config: TrainableConfig, tensor_parallel: int) -> None:
    """Raise `ConfigError` if tensor-parallel ranks would share matrices with adapters."""
    if tensor_parallel > 1 and not config.trains_all:
        raise ConfigError(
            f"parallel.tensor_parallel={tensor_parallel} with trainable.blocks={config.blocks!r}; "
            "expected 1. Set parallel.tensor_parallel=1; FSDP2 shards over all ranks."
        )
