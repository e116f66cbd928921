"""The table of docs/plan.md: plans of the paper's two runs, next to the paper's figures."""

from pathlib import Path

from calumma.gpu_specs import GIB, gpu_spec
from calumma.plan.run_plan import PlanRequest, RunPlan, make_run_plan
from calumma.toml_config import load_config
from calumma.train.config import PretrainConfig

ROOT = Path(__file__).parents[2]
GPUS = {"7B": 1024, "34B": 3072}
GPU_HOURS = {"7B": 856_481, "34B": 4_282_407}
"""Source: Chameleon (arXiv:2405.09818), table 2."""


def planned(size: str) -> RunPlan:
    config = load_config(PretrainConfig, ROOT / "runs" / f"decoder-{size}.toml", [])
    return make_run_plan(PlanRequest(config=config, gpu=gpu_spec("a100-80gb"), num_gpus=GPUS[size]))


def columns(size: str) -> list[tuple[str, str, str]]:
    """Return the rows of the table: name, the paper's figure, the plan's."""
    plan, hours, gpus = planned(size), GPU_HOURS[size], GPUS[size]
    speed, memory = plan.time, plan.memory
    rate = speed.total_tokens / (hours * 3600)
    mfu = rate * speed.flops_per_token / plan.layout.gpu.peak_flops
    by_weights = 6 * plan.num_parameters * rate / plan.layout.gpu.peak_flops
    off = speed.gpu_hours / hours - 1
    return [
        ("A100-80GB", f"{gpus:,}", f"{plan.layout.num_gpus:,}"),
        ("tokens per step", f"{speed.tokens_per_step:,}", f"{speed.tokens_per_step:,}"),
        ("total tokens", "9.2 trillion", f"{speed.total_tokens / 1e12:.2f} trillion"),
        ("GPU hours", f"{hours:,}", f"{speed.gpu_hours:,.0f} ({off:+.0%})"),
        ("days", f"{hours / gpus / 24:.1f} *", f"{speed.days:.1f}"),
        ("tokens per second and GPU", f"{rate:,.0f} *", f"{speed.tokens_per_second_per_gpu:,.0f}"),
        ("MFU, with attention", f"{mfu:.1%} *", f"{speed.mfu:.0%}, assumed"),
        ("MFU, 6 FLOPs per parameter", f"{by_weights:.1%} *", ""),
        ("FSDP communication per step", "not stated", f"{speed.comm_seconds.weights:.1f} s"),
        ("compute per step", "not stated", f"{speed.compute_seconds:.1f} s"),
        ("weights and AdamW", "not stated", f"{(memory.weights + memory.optimizer) / GIB:.1f} GiB"),
        ("activations", "not stated", f"{memory.activations / GIB:.1f} GiB"),
        ("memory per GPU, of 79 GiB", "not stated", f"{plan.required_bytes / GIB:.1f} GiB"),
        ("energy of the GPUs", "not stated", f"{speed.kwh:,.0f} kWh"),
    ]


def table() -> str:
    """Return the Markdown table."""
    lines = ["| | 7B, paper | 7B, plan | 34B, paper | 34B, plan |", "|---|---|---|---|---|"]
    for (what, *small), (_, *large) in zip(columns("7B"), columns("34B"), strict=True):
        lines.append(f"| {' | '.join([what, *small, *large])} |")
    return "\n".join(lines)


def test_docs_page_has_the_current_table() -> None:
    assert table() in (ROOT / "docs" / "plan.md").read_text()
