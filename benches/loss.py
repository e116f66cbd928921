"""Compare the chunked loss of the output head with the direct formula.

    python benches/loss.py            4,096 labels, vocabulary of 65,536, width 256, on a CPU
    python benches/loss.py --quick    two rounds

"direct" holds all logits: cross-entropy by torch, and a z-loss by `logsumexp`. Peak memory is
that of a process minus that of a process which only builds the inputs and the head.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))  # the repository, when run as a script

from benches.measure import child_peak_memory_bytes, describe_machine, format_result, median_seconds, time_interleaved
from calumma.model.decoder import LMHead
from calumma.train.loss import cross_entropy_and_z_loss
from calumma.vocabulary import Vocabulary

Z_LOSS = 1e-5
VOCABULARY = Vocabulary.release()


def make_inputs(targets: int, width: int) -> tuple[Tensor, LMHead, Tensor]:
    """Return hidden states, the output head and labels."""
    torch.manual_seed(0)
    hidden = torch.randn(1, targets, width, requires_grad=True)
    head = LMHead(width, VOCABULARY.size, bias=False)
    return hidden, head, torch.randint(4, VOCABULARY.size, (1, targets))


def chunked(hidden: Tensor, head: LMHead, targets: Tensor) -> Tensor:
    """Return the loss that training uses."""
    loss_mask = torch.ones_like(targets, dtype=torch.bool)
    return cross_entropy_and_z_loss(hidden, head, targets, loss_mask, VOCABULARY, z_loss_weight=Z_LOSS).total


def direct(hidden: Tensor, head: LMHead, targets: Tensor) -> Tensor:
    """Return the loss computed from all logits at once."""
    logits = head(hidden).float().flatten(0, 1)
    entropy = nn.functional.cross_entropy(logits, targets.flatten(), reduction="sum")
    return entropy + Z_LOSS * logits.logsumexp(dim=1).square().sum()


SIDES = {"ours": chunked, "direct": direct}


def run_once(side: str, targets: int, width: int) -> list[Tensor]:
    """Return loss and gradients of one side; [] for an unknown side, after building the inputs."""
    hidden, head, expected = make_inputs(targets, width)
    if side not in SIDES:
        return []
    total = SIDES[side](hidden, head, expected)
    total.backward()
    assert hidden.grad is not None and head.weight.grad is not None
    return [total.detach(), hidden.grad, head.weight.grad]


def peak_memory(side: str, arguments: argparse.Namespace) -> int:
    """Return the peak memory in bytes of a process that runs one side once."""
    size = ["--targets", str(arguments.targets), "--width", str(arguments.width)]
    return child_peak_memory_bytes([sys.executable, __file__, "--side", side, *size])


def backward_step(side: str, inputs: tuple[Tensor, LMHead, Tensor]) -> Callable[[], None]:
    """Return a function that computes loss and gradients of one side."""

    def run() -> None:
        SIDES[side](*inputs).backward()
        inputs[0].grad = inputs[1].weight.grad = None

    return run


def main() -> None:
    """Measure and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two rounds")
    parser.add_argument("--targets", type=int, default=4096)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds = 2
    if arguments.side:
        run_once(arguments.side, arguments.targets, arguments.width)
        return
    idle = peak_memory("neither", arguments)
    peaks = {side: peak_memory(side, arguments) - idle for side in SIDES}
    inputs = make_inputs(arguments.targets, arguments.width)
    steps = {side: backward_step(side, inputs) for side in SIDES}
    sides: dict[str, dict[str, float | None]] = {
        side: {"tokens_per_second": round(arguments.targets / seconds, 1), "peak_memory_bytes": peaks[side]}
        for side, seconds in median_seconds(time_interleaved(steps, num_rounds=arguments.rounds)).items()
    }
    results = [run_once(side, arguments.targets, arguments.width) for side in SIDES]
    differences = [float((one - other).abs().max() / other.abs().max()) for one, other in zip(*results, strict=True)]
    difference = dict(zip(("loss", "hidden_gradient", "head_gradient"), differences, strict=True))
    print(format_result("loss", sides, describe_machine(), relative_difference=difference))


if __name__ == "__main__":
    main()
