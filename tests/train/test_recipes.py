"""The configs in `runs/` have the paper's values."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from calumma.gpu_specs import gpu_spec
from calumma.model.presets import PRESETS, RELEASE_VOCABULARY_SIZE
from calumma.plan.run_plan import PlanRequest, make_run_plan
from calumma.toml_config import load_config
from calumma.train.config import PretrainConfig

ROOT = Path(__file__).parents[2]
RUNS = ROOT / "runs"
BATCHES = {"37M": 1.57e6, "94M": 1.05e6, "443M": 1.57e6, "1.5B": 2.10e6, "7B": 2**23, "34B": 3 * 2**22}
STEPS = {"37M": 160e3, "94M": 160e3, "443M": 160e3, "1.5B": 120e3, "7B": 1.097e6, "34B": 731e3}


def recipe(size: str) -> PretrainConfig:
    return load_config(PretrainConfig, RUNS / f"decoder-{size}.toml", [])


def test_every_size_has_a_recipe() -> None:
    names = {path.stem.removeprefix("decoder-") for path in RUNS.glob("decoder-*.toml")}
    assert names == set(PRESETS) - {"tiny"}


@pytest.mark.parametrize("size", BATCHES)
def test_batches_and_steps_are_the_paper_s(size: str) -> None:
    config = recipe(size)
    ids = config.data.global_batch_size * config.data.seq_len
    assert ids == pytest.approx(BATCHES[size], rel=5e-3)
    assert config.steps == STEPS[size]
    assert config.model.model_dim == PRESETS[size].model_dim
    assert (config.schedule.warmup_steps, config.schedule.decay_type) == (4000, "exponential")
    assert (config.optimizer.betas, config.optimizer.eps) == ((0.9, 0.95), 1e-5)
    assert (config.z_loss_weight, config.stage_two_fraction) == (1e-5, 0.2)


def test_dropout_and_reordered_norms_are_never_together() -> None:
    assert (recipe("7B").model.norm_order, recipe("7B").model.dropout) == ("pre", 0.1)
    assert (recipe("34B").model.norm_order, recipe("34B").model.dropout) == ("reordered", 0.0)
    assert recipe("7B").optimizer.lr == recipe("34B").optimizer.lr == 1e-4


def test_stage_two_halves_the_weights_of_stage_one() -> None:
    config = recipe("7B")
    for name, weight in config.stage_one.weights.items():
        assert config.stage_two_weights[name] == pytest.approx(weight / 2)
    assert sum(config.stage_two_weights.values()) == pytest.approx(1.0)


def test_the_run_of_twenty_minutes_takes_no_longer() -> None:
    config = load_config(PretrainConfig, RUNS / "h100-20-minutes.toml", [])
    question = PlanRequest(config=config, gpu=gpu_spec("h100-80gb"), num_gpus=1, vocabulary_size=24_200)
    plan = make_run_plan(question)
    plan.require_fitting()
    assert 10 < plan.time.days * 24 * 60 < 18  # compiling and saving come on top
    assert sum(config.stage_two_weights.values()) == pytest.approx(1.0)


def documented_commands() -> list[str]:
    """Return the commands of docs and config headers that run or plan a pre-training config."""
    pages = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *RUNS.glob("*.toml")]
    text = "\n".join(page.read_text() for page in pages)
    text = re.sub(r"\\\n#?\s*", "", text)  # continued lines
    begins = r"(?:calumma plan|(?:torchrun [^`\n]*-m )?calumma pretrain|sbatch [^`\n]*pretrain\.sbatch)"
    found = set(re.findall(rf"{begins} runs/[^`\n|]*", text))
    return sorted(command for command in found if "runs/tiny.toml" not in command)  # for CPUs


def option(words: list[str], name: str, default: str) -> str:
    return words[words.index(name) + 1] if name in words else default


def test_commands_are_found() -> None:
    commands = documented_commands()
    for begin in ("calumma plan", "torchrun --nproc-per-node 8", "calumma pretrain", "sbatch"):
        assert any(command.startswith(begin) for command in commands), begin


@pytest.mark.parametrize("command", documented_commands())
def test_documented_commands_fit_their_gpus(command: str) -> None:
    words = shlex.split(command)
    path = next(word for word in words if word.startswith("runs/"))
    number, kind = 1, "h100-80gb"
    if words[1] == "plan":
        number, kind = int(option(words, "--gpus", "")), option(words, "--gpu", "")
    elif words[0] == "torchrun":
        number = int(option(words, "--nproc-per-node", "")) * int(option(words, "--nnodes", "1"))
    elif words[0] == "sbatch":
        number = 8 * int(option(words, "--nodes", "1"))
    start = next((i for i, word in enumerate(words) if re.match(r"--\w[\w-]*\.", word)), len(words))
    config = load_config(PretrainConfig, ROOT / path, words[start:])
    make_run_plan(
        PlanRequest(config=config, gpu=gpu_spec(kind), num_gpus=number, vocabulary_size=RELEASE_VOCABULARY_SIZE)
    ).require_fitting()


SLURM_SCRIPT = ROOT / "scripts" / "slurm" / "pretrain.sbatch"


def test_the_slurm_script_starts_one_torchrun_per_machine(tmp_path: Path) -> None:
    assert subprocess.run(["bash", "-n", SLURM_SCRIPT], check=False).returncode == 0
    for name, body in (("scontrol", "echo node-7; echo node-8"), ("srun", 'echo "$@"')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_NODELIST": "node-[7-8]", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "42"}
    done = subprocess.run(
        ["bash", SLURM_SCRIPT, "a.toml", "out/a b", "--steps", "5"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", **job},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == shlex.split(
        "--kill-on-bad-exit=1 torchrun --nnodes 2 --nproc-per-node 8 --max-restarts 3 "
        "--rdzv-backend c10d --rdzv-endpoint node-7:29500 --rdzv-id 42 "
        "-m calumma pretrain a.toml --out out/a b --steps 5"
    )
    no_config = subprocess.run(["bash", SLURM_SCRIPT], capture_output=True, text=True, check=False)
    assert (no_config.returncode, no_config.stderr[:6]) == (2, "usage:")
