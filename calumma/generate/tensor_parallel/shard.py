"""One decoder over the ranks of a process group, for models that one GPU does not hold.

Every rank has some of the heads and of the feed-forward's channels in all blocks, and all of the
rest; every rank runs an engine of its own and is given the same requests in the same order.
`group.py` starts such ranks on one machine and sees to that; under torchrun, whoever writes the
program does:

    torch.distributed.init_process_group()
    model = calumma.load(folder, device=f"cuda:{local_rank}", dtype="bfloat16")
    share(model.decoder)
    sample = model.generate(...)                       # on all ranks alike
"""

from __future__ import annotations

import torch
import torch.distributed
from torch import Tensor, nn

from calumma.checkpoints.lazy_tensor import LazyModel
from calumma.errors import GenerationError
from calumma.model.config import DecoderConfig
from calumma.model.decoder import Decoder
from calumma.model.qk_norm import QKNorm

_ALONG = {"query": 0, "key": 0, "value": 0, "gate": 0, "up": 0, "output": 1, "down": 1}
"""Along which dimension the weights of each matrix are cut."""


def require_divisible(shape: DecoderConfig, tp_size: int) -> None:
    """See that so many ranks can share a decoder.

    Raises:
        GenerationError: heads, norms or the feed-forward do not divide over them.
    """
    if any(number % tp_size for number in (shape.num_kv_heads, shape.feed_forward_dim)) or (
        shape.qk_norm_groups > 1 and shape.qk_norm_groups % tp_size
    ):
        raise GenerationError(
            f"{tp_size} ranks do not divide {shape.num_kv_heads} key heads, {shape.qk_norm_groups} "
            f"groups of norms and a feed-forward of {shape.feed_forward_dim}; expected a divisor of "
            "all (of one group any is). Start another number."
        )


@torch.no_grad()
def shard_decoder(decoder: Decoder) -> None:
    """Cut a decoder over the ranks of the process group, for good, before an engine is made of it.

    What attention and feed-forward of each rank add to the stream is summed over the ranks. What
    the head reads is the first rank's: so all choose the same ids, whatever their rounding.

    Raises:
        GenerationError: heads, norms or the feed-forward do not divide over the ranks.
    """
    size = torch.distributed.get_world_size()
    require_divisible(decoder.config, size)
    for name, dim in _cuts(decoder).items():
        where, _, own = name.rpartition(".")
        part = _part(decoder.get_parameter(name), dim)
        setattr(decoder.get_submodule(where), own, nn.Parameter(part, requires_grad=False))
    for block in decoder.blocks:
        for branch in ("attention", "feed_forward"):
            block.get_submodule(branch).register_forward_hook(_summed)
    decoder.norm.register_forward_hook(_of_the_first)
    decoder.tp_size = size


def read_sharded_decoder(model: LazyModel) -> Decoder:
    """This rank's share of a decoder on disk; no more than one of its tensors is ever held whole.

    Raises:
        GenerationError: heads, norms or the feed-forward do not divide over the ranks.
    """
    with torch.device("meta"):
        decoder = Decoder(model.decoder_config)
    cuts = _cuts(decoder)
    shard_decoder(decoder)
    decoder.load_state_dict(
        {
            name: _part(stored.read(), cuts[name]) if name in cuts else stored.read()
            for name, stored in model.decoder_tensors.items()
        },
        assign=True,
    )
    return decoder.eval()


def _cuts(decoder: Decoder) -> dict[str, int]:
    """The parameters that are cut, by name, each with the dimension along which it is."""
    cuts: dict[str, int] = {}
    for name, module in decoder.blocks.named_modules(prefix="blocks"):
        own = name.rpartition(".")[2]
        if own in _ALONG:
            cuts[f"{name}.weight"] = _ALONG[own]
        elif isinstance(module, QKNorm) and decoder.config.qk_norm_groups > 1:
            cuts |= {f"{name}.{parameter}": 0 for parameter, _ in module.named_parameters()}
    return cuts


def _part(whole: Tensor, dim: int) -> Tensor:
    """This rank's part, in memory of its own."""
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    return whole.chunk(size, dim)[rank].clone()


def _summed(module: nn.Module, inputs: object, made: Tensor) -> Tensor:
    torch.distributed.all_reduce(made)
    return made


def _of_the_first(module: nn.Module, inputs: object, made: Tensor) -> Tensor:
    torch.distributed.broadcast(made, src=0)
    return made
