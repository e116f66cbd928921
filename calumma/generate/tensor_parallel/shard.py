"""Tensor parallel: one decoder sharded over the ranks of a process group.

Every rank has some of the heads and of the feed-forward channels of all blocks, and a copy of the
rest; every rank runs an engine and gets the same requests in the same order. `launcher.py` starts
the ranks of one machine. Under torchrun, a program of your own does:

    torch.distributed.init_process_group()
    model = calumma.load(folder, device=f"cuda:{local_rank}", dtype="bfloat16")
    shard_decoder(model.decoder)
    sample = model.generate(...)                       # the same on all ranks
"""

import torch
import torch.distributed
from torch import Tensor, nn

from calumma.checkpoints.lazy_tensor import LazyModel
from calumma.errors import GenerationError
from calumma.model.config import DecoderConfig
from calumma.model.decoder import Decoder
from calumma.model.qk_norm import QKNorm

_SHARD_DIM = {"query": 0, "key": 0, "value": 0, "gate": 0, "up": 0, "output": 1, "down": 1}
"""Dimension along which the weight of each matrix is sharded."""


def require_divisible(config: DecoderConfig, tp_size: int) -> None:
    """Raise `GenerationError` unless a decoder can be sharded over this many ranks."""
    if any(number % tp_size for number in (config.num_kv_heads, config.feed_forward_dim)) or (
        config.qk_norm_groups > 1 and config.qk_norm_groups % tp_size
    ):
        raise GenerationError(
            f"{tp_size} ranks do not divide {config.num_kv_heads} key heads, {config.qk_norm_groups} groups of norms "
            f"and a feed-forward of {config.feed_forward_dim}; expected a divisor of all (of one group any is). Start "
            "another number."
        )


@torch.no_grad()
def shard_decoder(decoder: Decoder) -> None:
    """Shard a decoder over the process group in place, before an engine is made of it.

    The outputs of attention and feed-forward are summed over the ranks (all-reduce). The input of
    the head is broadcast from rank 0, so all ranks sample the same tokens despite rounding. Raises
    as `require_divisible` does.
    """
    tp_size = torch.distributed.get_world_size()
    require_divisible(decoder.config, tp_size)
    for name, dim in _shard_dims(decoder).items():
        path, _, attribute = name.rpartition(".")
        shard = _shard(decoder.get_parameter(name), dim)
        setattr(decoder.get_submodule(path), attribute, nn.Parameter(shard, requires_grad=False))
    for block in decoder.blocks:
        for branch in ("attention", "feed_forward"):
            block.get_submodule(branch).register_forward_hook(_all_reduce)
    decoder.norm.register_forward_hook(_broadcast)
    decoder.tp_size = tp_size


def read_sharded_decoder(model: LazyModel) -> Decoder:
    """Read this rank's shard of a decoder on disk, holding one full tensor at a time."""
    with torch.device("meta"):
        decoder = Decoder(model.decoder_config)
    dims = _shard_dims(decoder)
    shard_decoder(decoder)
    decoder.load_state_dict(
        {
            name: _shard(stored.read(), dims[name]) if name in dims else stored.read().clone()
            for name, stored in model.decoder_tensors.items()
        },
        assign=True,
    )
    return decoder.eval()


def _shard_dims(decoder: Decoder) -> dict[str, int]:
    """Return the sharded parameters by name, each with the dimension it is sharded along."""
    dims: dict[str, int] = {}
    for path, module in decoder.blocks.named_modules(prefix="blocks"):
        name = path.rpartition(".")[2]
        if name in _SHARD_DIM:
            dims[f"{path}.weight"] = _SHARD_DIM[name]
        elif isinstance(module, QKNorm) and decoder.config.qk_norm_groups > 1:
            dims |= {f"{path}.{parameter}": 0 for parameter, _ in module.named_parameters()}
    return dims


def _shard(tensor: Tensor, dim: int) -> Tensor:
    rank, tp_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    return tensor.chunk(tp_size, dim)[rank].clone()


def _all_reduce(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
    torch.distributed.all_reduce(output)
    return output


def _broadcast(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
    torch.distributed.broadcast(output, src=0)
    return output
