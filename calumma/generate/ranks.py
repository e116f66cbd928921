"""One decoder over the ranks that torchrun started, for models that one GPU does not hold.

Every rank has some of the heads and of the feed-forward's channels in all blocks, and all of the
rest; every rank runs an engine of its own and is given the same requests in the same order.

    torch.distributed.init_process_group()
    model = calumma.load(folder, device=f"cuda:{local_rank}", dtype="bfloat16")
    share(model.decoder)
    sample = model.generate(...)                       # on all ranks alike
"""

from __future__ import annotations

import torch.distributed
from torch import Tensor, nn

from calumma.errors import GenerationError
from calumma.model.decoder import Decoder
from calumma.model.norm import HeadNorm


@torch.no_grad()
def share(decoder: Decoder) -> None:
    """Cut a decoder over the ranks of the process group, for good, before an engine is made of it.

    What attention and feed-forward of each rank add to the stream is summed over the ranks. What
    the head reads is the first rank's: so all choose the same ids, whatever their rounding.

    Raises:
        GenerationError: heads, norms or the feed-forward do not divide over the ranks.
    """
    size, shape = torch.distributed.get_world_size(), decoder.config
    if any(number % size for number in (shape.num_kv_heads, shape.feed_forward_dim)) or (
        shape.qk_norm_groups > 1 and shape.qk_norm_groups % size
    ):
        raise GenerationError(
            f"{size} ranks do not divide {shape.num_kv_heads} key heads, {shape.qk_norm_groups} "
            f"groups of norms and a feed-forward of {shape.feed_forward_dim}; wanted a divisor of "
            "all (of one group any is). Start another number."
        )
    for block in decoder.blocks:
        attention = block.get_submodule("attention")
        feed_forward = block.get_submodule("feed_forward")
        cuts = [(attention, name, 0) for name in ("query", "key", "value")]
        cuts += [(feed_forward, name, 0) for name in ("gate", "up")]
        cuts += [(attention, "output", 1), (feed_forward, "down", 1)]
        for part, name, dim in cuts:
            _keep(part.get_submodule(name), "weight", dim)
        for norm in attention.children():
            if isinstance(norm, HeadNorm) and shape.qk_norm_groups > 1:
                for name, _ in list(norm.named_parameters()):
                    _keep(norm, name, 0)
        for part in (attention, feed_forward):
            part.register_forward_hook(_summed)
    decoder.norm.register_forward_hook(_of_the_first)
    decoder.ranks = size


def _keep(module: nn.Module, name: str, dim: int) -> None:
    """Leave this rank's part of a parameter."""
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    whole: Tensor = getattr(module, name)
    part = whole.chunk(size, dim)[rank].clone()
    setattr(module, name, nn.Parameter(part, requires_grad=False))


def _summed(module: nn.Module, inputs: object, made: Tensor) -> Tensor:
    torch.distributed.all_reduce(made)
    return made


def _of_the_first(module: nn.Module, inputs: object, made: Tensor) -> Tensor:
    torch.distributed.broadcast(made, src=0)
    return made
