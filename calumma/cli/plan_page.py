"""The HTML page of `calumma plan --html`: memory and time as bars, for other GPUs as well.

The plans of all choices are computed ahead. Radio buttons and style rules select the one that is
shown, so the page needs no script.
"""

import html
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Literal

from calumma.charts import stacked_bar
from calumma.cli.plan import plan_rows
from calumma.errors import CalummaError
from calumma.gpu_specs import GIB, GPU_SPECS
from calumma.html_report import CHART_STYLE, REPORT_STYLE, html_page
from calumma.plan.run_plan import PlanRequest, make_run_plan
from calumma.text_format import format_duration

if TYPE_CHECKING:
    from calumma.plan.run_plan import RunPlan

_GPU_FACTORS = (0.25, 0.5, 1, 2, 4)
"""Numbers of GPUs to choose from, as multiples of the requested number."""

_CHECKPOINTING: tuple[Literal["none", "selective", "full"], ...] = ("none", "selective", "full")

_STYLE = """\
fieldset { border: 1px solid #8886; border-radius: 6px; margin: .5rem 0; padding: .3rem .8rem }
label { margin-right: 1.2rem; display: inline-block; padding: .2rem 0 }
.plan { display: none }
.fits { color: #1f7a49; font-weight: 600 } .misfit { color: #c22; font-weight: 600 }
.numbers td:nth-child(2) { text-align: right }
@media (prefers-color-scheme: dark) { .fits { color: #6c9 } .misfit { color: #f88 } }
"""


def plan_page(request: PlanRequest, name: str) -> str:
    """Return the page of a plan and of its alternatives.

    Args:
        request: the run; the choices that the page shows first are its own.
        name: name of the run, for the title.
    """
    gpus = GPU_SPECS | {request.gpu.name: request.gpu}
    counts = sorted({max(1, round(request.num_gpus * factor)) for factor in _GPU_FACTORS})
    chosen = request.config.compute.activation_checkpointing
    dials = [
        _dial("GPU", "gpu", list(gpus), request.gpu.name),
        _dial("number of GPUs", "count", [str(count) for count in counts], str(request.num_gpus)),
        _dial("activation checkpointing", "checkpointing", list(_CHECKPOINTING), chosen),
    ]
    rules, panels = [], []
    for gpu, count, checkpointing in product(gpus, counts, _CHECKPOINTING):
        ids = [f"gpu-{gpu}", f"count-{count}", f"checkpointing-{checkpointing}"]
        panel = f"plan-{gpu}-{count}-{checkpointing}"
        rules.append("body" + "".join(f":has(#{id_}:checked)" for id_ in ids) + f" #{panel} {{ display: block }}")
        config = replace(
            request.config, compute=replace(request.config.compute, activation_checkpointing=checkpointing)
        )
        changed = replace(request, gpu=gpus[gpu], num_gpus=count, config=config)
        panels.append(f'<section class="plan" id="{panel}">{"".join(_panel(changed))}</section>')
    title = f"Plan of {name}"
    note = "Estimates computed before the run; every choice below was planned in the same way as the command line's."
    body = f"<main><h1>{html.escape(title)}</h1><p>{note}</p>{''.join(dials)}{''.join(panels)}</main>"
    return html_page(title, body, style="\n".join([REPORT_STYLE + CHART_STYLE + _STYLE, *rules, ""]))


def _dial(label: str, group: str, choices: list[str], chosen: str) -> str:
    buttons = "".join(
        f'<label><input type="radio" name="{group}" id="{group}-{choice}"{" checked" * (choice == chosen)}> '
        f"{html.escape(choice)}</label>"
        for choice in choices
    )
    return f"<fieldset><legend>{label}</legend>{buttons}</fieldset>"


def _panel(request: PlanRequest) -> Iterator[str]:
    """Yield the HTML of one choice; a run that is impossible has its error instead."""
    try:
        plan = make_run_plan(request)
    except CalummaError as error:
        yield f'<p class="misfit">Impossible: {html.escape(str(error))}</p>'
        return
    has, needs = plan.layout.gpu.memory_gib, plan.required_bytes / GIB
    verdict = ("fits", "Fits") if plan.fits else ("misfit", "Does not fit")
    yield f'<p class="{verdict[0]}">{verdict[1]}: {needs:.1f} GiB of {has} GiB per GPU, {plan.memory.moment}.</p>'
    yield "<h2>Memory of a GPU at the peak of a step</h2>"
    memory = {name: size / GIB for name, size in plan.memory_parts.items() if size}
    yield stacked_bar(memory, "memory by use", lambda size: f"{size:.1f} GiB", limit=has)
    yield "<h2>Time of a step</h2>"
    yield stacked_bar(_step_parts(plan), "time of a step by work")
    time = plan.time
    yield (
        f"<p>{time.days:,.1f} days, {time.gpu_hours:,.0f} GPU hours, {time.tokens_per_second:,.0f} tokens per second, "
        f"${time.dollars:,.0f}; a step takes {format_duration(time.step_seconds)}.</p>"
    )
    yield '<details><summary>All numbers</summary><table class="numbers">'
    for row in plan_rows(plan):
        yield "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
    yield "</table></details>"


def _step_parts(plan: "RunPlan") -> dict[str, float]:
    """Return the seconds of a step that do not overlap."""
    time = plan.time
    exposed = max(0.0, time.comm_seconds.weights - time.compute_seconds)
    parts = {
        "compute": time.compute_seconds,
        "FSDP communication beyond compute": exposed,
        "tensor-parallel communication": time.comm_seconds.activations,
        "optimizer": time.optimizer_seconds,
    }
    return {name: seconds for name, seconds in parts.items() if seconds}
