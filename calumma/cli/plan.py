"""`calumma plan`: what a run needs and costs, before it is started."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calumma.cli.command import Subparsers, add_command
from calumma.text_format import pluralize

if TYPE_CHECKING:
    from calumma.plan.run_plan import RunPlan

_EXAMPLES = """\
  calumma plan run.toml --gpus 1 --gpu h100-80gb
  calumma plan run.toml --gpus 2 --gpu a100-80gb --compute.activation-checkpointing full --mfu 0.35
  calumma plan run.toml --gpus 2 --gpu h200-141gb --price 2.50 --json    for machines"""


def add_plan_command(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = add_command(
        subparsers,
        "plan",
        "CONFIG --gpus N --gpu KIND [--mfu X] [--price X] [--json] [--a.b VALUE ...]",
        "Work out the memory, days and cost of a run, without the GPUs.\n"
        "CONFIG is one of `calumma pretrain`; its shards need not be there.",
        _EXAMPLES,
    )
    parser.add_argument("config", type=Path, metavar="CONFIG", help="TOML file of the run")
    parser.add_argument("--gpus", type=int, required=True, metavar="N", help="how many GPUs")
    parser.add_argument("--gpu", required=True, metavar="KIND", help="which, such as a100-80gb")
    parser.add_argument(
        "--mfu", type=float, metavar="X", help="share of the peak reached (default: by recompute)"
    )
    parser.add_argument("--price", type=float, metavar="X", help="US dollars for a GPU's hour")
    parser.add_argument(
        "--vocabulary", type=int, metavar="N", help="ids (default: the shards', or 65,536)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=_run, accepts_overrides=True, no_graceful_stop=True)


def _run(args: argparse.Namespace) -> None:
    """Work it out and print it.

    Raises:
        ConfigError: the run fits no GPU of the kind, or its parts do not divide.
    """
    import json

    from calumma.gpu_specs import gpu_spec
    from calumma.plan.run_plan import PlanRequest, make_run_plan, planned_vocabulary_size
    from calumma.toml_config import load_config
    from calumma.train.config import PretrainConfig

    config = load_config(PretrainConfig, args.config, args.overrides)
    gpu = gpu_spec(args.gpu)
    if args.price is not None:
        gpu = replace(gpu, price_per_hour=args.price)
    num_ids = planned_vocabulary_size(config) if args.vocabulary is None else args.vocabulary
    question = PlanRequest(
        config=config,
        gpu=gpu,
        num_gpus=args.gpus,
        vocabulary_size=num_ids,
        mfu=args.mfu,
    )
    plan = make_run_plan(question)
    plan.require_fitting()
    print(json.dumps(plan_json(plan)) if args.json else "\n".join(format_plan(plan)))


def plan_json(plan: RunPlan) -> dict[str, Any]:
    """A plan for machines; bytes are one GPU's."""
    from dataclasses import asdict

    from calumma.plan.run_plan import CUDA_CONTEXT_BYTES, FRAGMENTATION_FRACTION

    layout = asdict(plan.layout)
    return {
        "num_parameters": plan.num_parameters,
        "layout": layout | {"num_gpus": plan.layout.num_gpus, "rows": plan.sequences_per_rank},
        "memory": asdict(plan.memory)
        | {
            "total": plan.memory.total,
            "context": CUDA_CONTEXT_BYTES,
            "fragmented_share": FRAGMENTATION_FRACTION,
            "needed": plan.required_bytes,
        },
        "speed": asdict(plan.time),
    }


def format_plan(plan: RunPlan) -> list[str]:
    """A plan for people: a table."""
    blocks = [_run_rows(plan), _memory_rows(plan), _time_rows(plan)]
    wide = max(len(name) for rows in blocks for name, _, _ in rows)
    high = max(len(value) for rows in blocks for _, value, _ in rows)
    lines = []
    for rows in blocks:
        lines += [f"{name:<{wide}}  {value:>{high}}  {note}".rstrip() for name, value, note in rows]
        lines.append("")
    return lines[:-1]


def _run_rows(plan: RunPlan) -> list[tuple[str, str, str]]:
    layout, config = plan.layout, plan.request.config
    ways = f"{layout.data_parallel_shard} shards x {layout.tensor_parallel} tensor x {pluralize(layout.data_parallel_replicate, 'replica')}"
    load = f"{plan.grad_accum_steps} x {plan.sequences_per_rank} x {config.data.seq_len:,}"
    return [
        ("parameters", f"{plan.num_parameters:,}", ""),
        ("GPUs", f"{layout.num_gpus:,}", f"{layout.gpu.name}: {ways}"),
        (
            "ids a step",
            f"{plan.time.tokens_per_step:,}",
            f"the busiest GPU: {load} (batches x rows x ids)",
        ),
        ("steps", f"{config.steps:,}", f"{plan.time.total_tokens / 1e9:,.1f} billion ids"),
    ]


def _memory_rows(plan: RunPlan) -> list[tuple[str, str, str]]:
    from calumma.gpu_specs import GIB
    from calumma.plan.run_plan import CUDA_CONTEXT_BYTES, FRAGMENTATION_FRACTION

    memory, compute = plan.memory, plan.request.config.compute
    told = [
        ("weights", memory.weights, "float32, its part of them"),
        (
            "gradients",
            memory.gradients,
            "float32, its part" if memory.gradients else "none at that moment",
        ),
        ("optimizer", memory.optimizer, "AdamW's two means"),
        ("gathered", memory.gathered, "weights in use, gradients on their way"),
        ("activations", memory.activations, f"recompute = {compute.activation_checkpointing}"),
        ("loss", memory.loss, "a chunk of logits, the head's gradient"),
        ("allowances", plan.required_bytes - memory.total, ""),
        ("a GPU needs", plan.required_bytes, f"at its fullest, {memory.moment}"),
    ]
    rows = [(name, f"{size / GIB:.2f} GiB", note) for name, size, note in told]
    allowed = f"{CUDA_CONTEXT_BYTES / GIB:g} GiB of driver and buffers, {FRAGMENTATION_FRACTION:.0%} between tensors"
    rows[-2] = (*rows[-2][:2], allowed)
    return [*rows, ("and has", f"{plan.layout.gpu.memory_gib:.2f} GiB", "")]


def _time_rows(plan: RunPlan) -> list[tuple[str, str, str]]:
    speed, gpu = plan.time, plan.layout.gpu
    waits = ": MORE than it computes, so it waits" if speed.is_comm_bound else ", meanwhile"
    assumed = "given" if plan.request.mfu else "assumed"
    return [
        (
            "computing",
            f"{speed.compute_seconds:.2f} s",
            f"a step, at {speed.mfu:.0%} MFU ({assumed})",
        ),
        ("sending", f"{speed.comm_seconds.weights:.2f} s", f"weights and gradients{waits}"),
        ("waiting", f"{speed.comm_seconds.activations:.2f} s", "between tensor ranks"),
        ("updating", f"{speed.optimizer_seconds:.2f} s", "AdamW, by the memory's bandwidth"),
        (
            "ids a second",
            f"{speed.tokens_per_second:,.0f}",
            f"{speed.tokens_per_second_per_gpu:,.0f} a GPU",
        ),
        ("days", f"{speed.days:,.1f}", f"{speed.gpu_hours:,.0f} GPU hours"),
        ("energy", f"{speed.kwh:,.0f} kWh", f"of the GPUs alone, at {gpu.max_watts:g} W"),
        ("cost", f"${speed.dollars:,.0f}", f"at ${gpu.price_per_hour:.2f} a GPU and hour"),
    ]
