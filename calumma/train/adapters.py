"""Parameter-efficient fine-tuning: LoRA, also over quantized weights, and rows of vocabulary tables.

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
from calumma.model.quantization import (
    Int4Linear,
    Int8Linear,
    is_int4,
    pack_int4,
    pack_int8,
    quantize_int4,
    quantize_int8,
)
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


class _FrozenProduct(torch.autograd.Function):
    """The product with a quantized matrix, which is dequantized again for the gradient of the input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, base: Int8Linear | Int4Linear) -> Tensor:
        """Map [B, T, I] to [B, T, O], in the dtype of autocast if it is on."""
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        ctx.base = base
        return F.linear(x.to(dtype), base.dequantized(dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Return the gradient of the input, [B, T, I]."""
        return gradients[0] @ ctx.base.dequantized(gradients[0].dtype), None


class QuantizedLoRALinear(nn.Module):
    """A frozen quantized linear layer with a LoRA adapter, as in QLoRA (arXiv:2305.14314)."""

    def __init__(self, base: Int8Linear | Int4Linear, rank: int, scale: float, like: Tensor) -> None:
        """Add an adapter with the dtype and device of a tensor."""
        super().__init__()
        self.base = base
        self.lora_A = nn.Parameter(like.new_empty(rank, base.in_features))
        self.lora_B = nn.Parameter(like.new_empty(base.out_features, rank))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, T, I] to [B, T, O]."""
        product: Tensor = _FrozenProduct.apply(x, self.base)
        return product + F.linear(F.linear(x, self.lora_A), self.lora_B) * self.scale

    def merged_weight(self) -> Tensor:
        """Return the dequantized matrix [O, I] with the adapter merged."""
        return self.base.dequantized(self.lora_A.dtype) + self.scale * (self.lora_B @ self.lora_A)


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
    """Return the token ids of images: codes, end and begin, or all up to the sides of images of any size."""
    sizes = vocabulary.image_sizes
    return range(vocabulary.codes.start, vocabulary.begin_image + 1 if sizes is None else sizes.sides.stop)


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
    if config.quantization is not None:
        (quantize_int8 if config.quantization == "int8" else quantize_int4)(decoder)
    if config.blocks == "lora":
        rank, scale = config.lora_rank, config.lora_alpha / config.lora_rank
        for parent in list(decoder.blocks.modules()):
            for name, inner in list(parent.named_children()):
                if isinstance(inner, nn.Linear):
                    setattr(parent, name, LoRALinear(inner, rank, scale))
                elif isinstance(inner, Int8Linear | Int4Linear):
                    setattr(parent, name, QuantizedLoRALinear(inner, rank, scale, decoder.embedding.weight))
    if config.embeddings == "none":
        return
    if config.vocab_rows == "all":
        decoder.head.requires_grad_(True)
        decoder.embedding.requires_grad_(config.embeddings == "all")
        return
    decoder.head = PartialHead(decoder.head, image_vocab_rows(vocabulary))
    if config.embeddings == "all":
        decoder.embedding = PartialEmbedding(decoder.embedding, image_vocab_rows(vocabulary))


def require_trainable(config: TrainableConfig, start: Decoder, tensor_parallel: int = 1) -> None:
    """Raise `ConfigError` if a decoder, or adapters on tensor-parallel ranks, cannot be trained so."""
    require_shardable(config, tensor_parallel)
    if is_int4(start) and config.quantization != "int4":
        raise ConfigError(
            f"trainable.quantization={config.quantization!r} of a model with int4 weights; expected 'int4'. Set "
            "trainable.blocks='lora' and trainable.quantization='int4', or start from the float weights."
        )


def frozen_weights(decoder: Decoder, start: Decoder) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights of `start` by their names in a decoder with adapters, quantized where it quantizes."""
    modules = dict(decoder.named_modules())
    for name, tensor in start.state_dict().items():
        parent, _, kind = name.rpartition(".")
        if parent not in modules:
            continue  # the downward head of `start`, which other weights make useless
        module = modules[parent]
        if not isinstance(module, QuantizedLoRALinear):
            yield name, tensor
        elif kind != "weight":
            yield f"{parent}.base.{kind}", tensor
        elif isinstance(module.base, Int4Linear):
            yield from zip(
                (f"{parent}.base.packed", f"{parent}.base.scale"),
                pack_int4(tensor, module.base.group_size),
                strict=True,
            )
        else:
            yield from zip((f"{parent}.base.weight", f"{parent}.base.scale"), pack_int8(tensor), strict=True)


def initial_adapter_weights(decoder: Decoder, start: Decoder, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Yield initial values of the adapters, with which the decoder computes what `start` does.

    LoRA A matrices are random, B matrices zero; trained rows are copies.
    """
    # The quantized layers inside adapters do not count, so that these are the values of float LoRA.
    modules = (item for item in decoder.named_modules() if not isinstance(item[1], Int8Linear | Int4Linear))
    for number, (name, module) in enumerate(modules):
        if isinstance(module, LoRALinear | QuantizedLoRALinear):
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
        if isinstance(module, LoRALinear | QuantizedLoRALinear):
            for each in module.state_dict():
                del weights[f"{name}.{each}"]
            weights[f"{name}.weight"] = module.merged_weight()
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
        if isinstance(module, LoRALinear | QuantizedLoRALinear):
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
