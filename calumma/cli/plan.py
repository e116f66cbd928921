"""`calumma plan`: memory, time and cost of a run before it starts."""

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
  calumma plan run.toml --gpus 2 --gpu h200-141gb --price 2.50 --json    for machines
  calumma plan run.toml --gpus 64 --gpu h100-80gb --html plan.html     memory, time, alternatives"""


def add_plan_command(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "plan",
        "CONFIG --gpus N --gpu KIND [--price X] [--json | --html FILE] [--a.b VALUE ...]",
        "Estimate the memory, time and cost of a run, without its GPUs.\n"
        "CONFIG is that of `calumma pretrain`; its shards need not exist.",
        _EXAMPLES,
    )
    parser.add_argument("config", type=Path, metavar="CONFIG", help="TOML file of the run")
    parser.add_argument("--gpus", type=int, required=True, metavar="N", help="number of GPUs")
    parser.add_argument("--gpu", required=True, metavar="KIND", help="their kind, such as a100-80gb")
    parser.add_argument("--mfu", type=float, metavar="X", help="model FLOPs utilization (default: 0.4 or 0.3)")
    parser.add_argument("--price", type=float, metavar="X", help="US dollars per GPU hour")
    parser.add_argument("--vocab-size", type=int, metavar="N", help="default: the shards', or 65,536")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print one JSON object")
    output.add_argument("--html", type=Path, metavar="FILE", help="also write a page with bars and alternatives")
    parser.set_defaults(run=_run, accepts_overrides=True, no_graceful_stop=True)


def _run(args: argparse.Namespace) -> None:
    """Print the plan of a run.

    Raises:
        ConfigError: the run does not fit, or GPUs, heads or sequences are not divisible.
    """
    import json

    from calumma.files import write_text
    from calumma.gpu_specs import gpu_spec
    from calumma.plan.run_plan import PlanRequest, make_run_plan, planned_vocabulary_size
    from calumma.toml_config import load_config
    from calumma.train.config import PretrainConfig

    config = load_config(PretrainConfig, args.config, args.overrides)
    gpu = gpu_spec(args.gpu)
    if args.price is not None:
        gpu = replace(gpu, price_per_hour=args.price)
    vocab_size = planned_vocabulary_size(config) if args.vocab_size is None else args.vocab_size
    request = PlanRequest(config=config, gpu=gpu, num_gpus=args.gpus, vocabulary_size=vocab_size, mfu=args.mfu)
    plan = make_run_plan(request)
    if args.html is not None:
        from calumma.cli.plan_page import plan_page

        write_text(args.html, plan_page(request, args.config.stem))
    plan.require_fitting()
    print(json.dumps(plan_json(plan)) if args.json else "\n".join(format_plan(plan)))


def plan_json(plan: "RunPlan") -> dict[str, Any]:
    """Return a plan as a JSON object; bytes are per GPU."""
    from dataclasses import asdict

    from calumma.plan.run_plan import CUDA_CONTEXT_BYTES, FRAGMENTATION_FRACTION

    layout = {
        "num_gpus": plan.layout.num_gpus,
        "sequences_per_rank": plan.sequences_per_rank,
        "grad_accum_steps": plan.grad_accum_steps,
    }
    memory = {
        "total": plan.memory.total,
        "context": CUDA_CONTEXT_BYTES,
        "fragmentation_fraction": FRAGMENTATION_FRACTION,
        "required": plan.required_bytes,
    }
    return {
        "num_parameters": plan.num_parameters,
        "layout": asdict(plan.layout) | layout,
        "memory": asdict(plan.memory) | memory,
        "time": asdict(plan.time),
    }


def plan_rows(plan: "RunPlan") -> list[tuple[str, str, str]]:
    """Return name, value and note of each number of a plan; an empty name separates blocks."""
    blank = [("", "", "")]
    return [*_run_rows(plan), *blank, *_memory_rows(plan), *blank, *_time_rows(plan)]


def format_plan(plan: "RunPlan") -> list[str]:
    """Return a plan as the lines of a table."""
    rows = plan_rows(plan)
    name_width = max(len(name) for name, _, _ in rows)
    value_width = max(len(value) for _, value, _ in rows)
    return [f"{name:<{name_width}}  {value:>{value_width}}  {note}".rstrip() for name, value, note in rows]


def _run_rows(plan: "RunPlan") -> list[tuple[str, str, str]]:
    layout, config = plan.layout, plan.request.config
    degrees = (
        f"{layout.data_parallel_shard} shards x {layout.tensor_parallel} tensor x "
        f"{f'{layout.context_parallel} context x ' if layout.context_parallel > 1 else ''}"
        f"{pluralize(layout.data_parallel_replicate, 'replica')}"
    )
    load = f"{plan.grad_accum_steps} x {plan.sequences_per_rank} x {config.data.seq_len:,}"
    return [
        ("parameters", f"{plan.num_parameters:,}", ""),
        ("GPUs", f"{layout.num_gpus:,}", f"{layout.gpu.name}: {degrees}"),
        (
            "tokens per step",
            f"{plan.time.tokens_per_step:,}",
            f"the busiest GPU: {load} (micro-batches x sequences x tokens)",
        ),
        ("steps", f"{config.steps:,}", f"{plan.time.total_tokens / 1e9:,.1f} billion tokens"),
    ]


def _memory_rows(plan: "RunPlan") -> list[tuple[str, str, str]]:
    from calumma.gpu_specs import GIB
    from calumma.plan.run_plan import CUDA_CONTEXT_BYTES, FRAGMENTATION_FRACTION

    memory, compute = plan.memory, plan.request.config.compute
    allowances = (
        f"{CUDA_CONTEXT_BYTES / GIB:g} GiB of CUDA context and buffers, {FRAGMENTATION_FRACTION:.0%} fragmentation"
    )
    gradients = "float32, sharded" if memory.gradients else "none at the peak"
    checkpointing = f"activation_checkpointing = {compute.activation_checkpointing}"
    notes = {
        "weights": "float32, sharded",
        "gradients": gradients,
        "optimizer": "AdamW's two moments",
        "gathered": "weights in use, gradients before their reduction",
        "activations": checkpointing,
        "loss": "a chunk of logits, the head's gradient",
        "allowances": allowances,
    }
    rows = [
        *((name, size, notes[name]) for name, size in plan.memory_parts.items()),
        ("GPU needs", plan.required_bytes, f"at the peak, {memory.moment}"),
        ("GPU has", plan.layout.gpu.memory_gib * GIB, ""),
    ]
    return [(name, f"{size / GIB:.2f} GiB", note) for name, size, note in rows]


def _time_rows(plan: "RunPlan") -> list[tuple[str, str, str]]:
    time, gpu = plan.time, plan.layout.gpu
    overlap = "more than compute, which waits" if time.is_comm_bound else "overlaps compute"
    assumed = "given" if plan.request.mfu else "assumed"
    return [
        ("compute", f"{time.compute_seconds:.2f} s", f"per step, at {time.mfu:.0%} MFU ({assumed})"),
        ("FSDP", f"{time.comm_seconds.weights:.2f} s", f"weights and gradients: {overlap}"),
        ("tensor parallel", f"{time.comm_seconds.activations:.2f} s", "activations"),
        ("optimizer", f"{time.optimizer_seconds:.2f} s", "AdamW, at the memory's bandwidth"),
        ("tokens per second", f"{time.tokens_per_second:,.0f}", f"{time.tokens_per_second_per_gpu:,.0f} per GPU"),
        ("days", f"{time.days:,.1f}", f"{time.gpu_hours:,.0f} GPU hours"),
        ("energy", f"{time.kwh:,.0f} kWh", f"of the GPUs alone, at {gpu.max_watts:g} W"),
        ("cost", f"${time.dollars:,.0f}", f"at ${gpu.price_per_hour:.2f} per GPU hour"),
    ]
