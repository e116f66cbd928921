"""`calumma finetune`: SFT, DPO, and errors."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from calumma import runtime
from calumma.checkpoints.model_folder import ModelComponents, load_model, save_model
from calumma.checkpoints.training_checkpoint import newest_checkpoint
from calumma.cli.main import main
from calumma.documents.document import Document, Text, Turn
from calumma.documents.preferences import write_preferences
from calumma.documents.writers import write_jsonl
from calumma.errors import ConfigError
from calumma.files import read_json
from calumma.tokens.folder import Tokenizers
from tests.checkpoints.random_models import save_random_model
from tests.end_to_end.test_verbs import FINETUNE, PRETRAIN
from tests.rl.runs import write_prompts
from tests.train.test_dpo import PAIRS


def test_a_missing_model_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("turns.toml").write_text(FINETUNE)
    assert main(["finetune", "turns.toml", "--out", "tuned"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: run/model")


def test_a_config_without_a_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "turns.toml"
    path.write_text(FINETUNE.replace('model = "run/model"\n', ""))
    assert main(["finetune", str(path), "--out", str(tmp_path / "tuned")]) == 2
    assert capsys.readouterr().err == (
        f"error: {path}: model is missing; expected a value. Set it there or with --model VALUE.\n"
    )


@pytest.fixture
def ready(
    model_parts: ModelComponents, tokenizers: Tokenizers, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Create a folder with everything that `FINETUNE` names, and preference pairs."""
    monkeypatch.chdir(tmp_path)
    save_model(Path("run/model"), model_parts)
    tokenizers.text.save(Path("tok"))
    tokenizers.image.save(Path("tok"))
    Path("shards").symlink_to(shards)
    Path("turns.toml").write_text(FINETUNE)
    write_preferences(Path("pairs.jsonl"), PAIRS)


@pytest.mark.usefixtures("ready")
def test_an_unbalanced_mixture_is_warned_of_and_recorded(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--trainable.blocks", "lora", "--trainable.lora-rank", "2", "--trainable.vocab-rows", "image"]
    assert main(["finetune", "turns.toml", "--out", "tuned", *words]) == 0
    printed = capsys.readouterr()
    (warning,) = [line for line in printed.err.splitlines() if line.startswith("warning: ")]
    assert warning.startswith("warning: unbalanced: 0.0% of the answers contain images; ")
    record = read_json(Path("tuned/balance.json"))
    assert record["pairings"] == {"text+image->text": 1.0}
    assert f"warning: {record['warning']}" == warning
    assert printed.out == (
        "tuned/model: fine-tuned from run/model\ntuned/adapter: what was trained, without the model, for --adapter\n"
    )
    assert Path("tuned/adapter/adapter_model.safetensors").is_file()
    load_model(Path("tuned/model"))


DPO = """
model = "run/model"
steps = 2
batch_size = 2
seq_len = 64
device = "cpu"
[dpo]
pairs = ["pairs.jsonl"]
"""


@pytest.mark.usefixtures("ready")
def test_a_config_with_a_dpo_table_selects_dpo(capsys: pytest.CaptureFixture[str]) -> None:
    Path("dpo.toml").write_text(DPO)
    assert main(["finetune", "dpo.toml", "--out", "liked", "--dpo.beta", "0.3"]) == 0
    assert capsys.readouterr().out == ("liked/model: tuned by DPO from run/model\n")
    assert read_json(Path("liked/config.json"))["dpo"] == {
        "pairs": ["pairs.jsonl"], "beta": 0.3, "label_smoothing": 0.0, "sft_weight": 0.0
    }  # fmt: skip
    load_model(Path("liked/model"))


@pytest.mark.usefixtures("ready", "two_threads")
def test_a_command_leaves_cpus_to_other_programs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "num_busy_cpus", lambda: 1)
    Path("dpo.toml").write_text(DPO)
    assert main(["finetune", "dpo.toml", "--out", "liked"]) == 0
    assert (
        "warning: liked: other programs use 1 CPU, so training uses 1 instead of 2 threads. "
        "Set OMP_NUM_THREADS=2 to use 2: the results differ by rounding.\n"
    ) in capsys.readouterr().err
    saved = newest_checkpoint(Path("liked"))
    assert saved is not None and saved.load_meta()["num_threads"] == 1


@pytest.mark.usefixtures("ready")
def test_the_former_name_of_the_dpo_table_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    Path("dpo.toml").write_text(DPO.replace("[dpo]", "[preference]"))
    assert main(["finetune", "dpo.toml", "--out", "liked"]) == 2
    assert capsys.readouterr().err == "error: dpo.toml: unknown field preference.pairs; it is now dpo.pairs.\n"


@pytest.mark.usefixtures("ready")
def test_a_model_and_documents_are_enough(capsys: pytest.CaptureFixture[str]) -> None:
    turns = (Turn("user", (Text("draw"),)), Turn("assistant", (Text("no"),)))
    write_jsonl(Path("my.jsonl"), [Document(id=f"d{n}", messages=turns) for n in range(4)])
    line = "finetune --steps 2 --model run/model --documents my.jsonl --out out/tuned --device cpu"
    assert main([*line.split(), "--data.seq-len", "64"]) == 0
    assert load_model(Path("out/tuned/model")).decoder.config.num_layers
    assert Path("out/tuned/shards/manifest.json").is_file()
    assert read_json(Path("out/tuned/config.json"))["steps"] == 2
    capsys.readouterr()
    assert main([*line.split(), "--data.seq-len", "64"]) == 0, "the same again has nothing to do"


def test_neither_a_config_nor_a_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["finetune", "--steps", "2", "--out", str(tmp_path / "tuned")]) == 2
    assert capsys.readouterr().err == (
        "error: neither CONFIG nor --model and --documents are given; expected one of the two. "
        "`calumma finetune --help` shows examples.\n"
    )


@pytest.mark.usefixtures("ready")
def test_a_config_names_documents_and_no_tokenizers() -> None:
    turns = (Turn("user", (Text("draw"),)), Turn("assistant", (Text("no"),)))
    write_jsonl(Path("my.jsonl"), [Document(id=f"d{n}", messages=turns) for n in range(4)])
    config = FINETUNE.replace('shards = "shards"', 'documents = ["my.jsonl"]')
    config = config.replace('tokenizers = "tok"\n', "").replace("[weights]\nchat = 1.0\n", "")
    Path("turns.toml").write_text(config)
    assert main(["finetune", "turns.toml", "--out", "tuned"]) == 0
    assert Path("tuned/shards/manifest.json").is_file()


@pytest.mark.usefixtures("ready")
def test_a_dry_run_checks_the_sources(capsys: pytest.CaptureFixture[str]) -> None:
    Path("turns.toml").write_text(FINETUNE.replace("chat = 1.0", "chats = 1.0"))
    assert main(["finetune", "turns.toml", "--out", "tuned", "--dry-run"]) == 2
    assert 'source "chats"' in capsys.readouterr().err
    assert not Path("tuned").exists()


def test_missing_shards_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.toml").write_text(PRETRAIN)
    assert main(["pretrain", "run.toml", "--out", "run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(("error: tok", "error: shards"))


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of the functions that a start on eight small GPUs calls."""
    calls: list[str] = []

    def pretrain(*args: object, **kwargs: object) -> None:
        calls.append("pretrain")
        raise ConfigError("started.")

    monkeypatch.setattr("calumma.train.pretraining.pretrain", pretrain)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    properties = SimpleNamespace(total_memory=79 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "8")
    return calls


CONFIG = str(Path(__file__).parents[2] / "runs" / "decoder-37M.toml")


def test_a_run_that_does_not_fit_the_gpus_is_refused_before_it_starts(
    started: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["pretrain", CONFIG, "--out", str(tmp_path), "--data.global-batch-size", "4096"]
    command += ["--data.micro-batch-size", "512"]
    assert main(command) == 2
    assert not started
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: a GPU needs ")
    assert ", and h100-80gb has 79; expected a run that fits. The nearest that does: " in line
    assert "--data.micro-batch-size 256 (" in line
    assert main([*command, "--no-plan-check"]) == 2
    assert started == ["pretrain"]


def test_a_run_that_fits_starts_and_other_ranks_do_not_plan(
    started: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["pretrain", CONFIG, "--out", str(tmp_path)]) == 2
    assert started == ["pretrain"]
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("calumma.cli.dry_run.require_fitting_run", None)
    assert main(["pretrain", CONFIG, "--out", str(tmp_path)]) == 2
    assert started == ["pretrain"] * 2


def test_a_run_on_a_gpu_without_known_specs_starts(
    started: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GeForce 256")
    assert main(["pretrain", CONFIG, "--out", str(tmp_path)]) == 2
    assert started == ["pretrain"]


def test_a_mistyped_stage_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.toml"
    path.write_text(PRETRAIN.replace("stage_two.weights", "stage_too.weights"))
    assert main(["pretrain", str(path), "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err == (
        f"error: {path}: unknown field stage_too; did you mean stage_two? Fix the name.\n"
    )


def test_tokenizers_without_an_image_decoder_give_a_model_without_one(
    shards: Path, model_parts: ModelComponents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_random_model(Path("source"), model_parts, has_image_decoder=False)
    assert main(["convert", "source", "tok", "--to", "tokenizers"]) == 0
    Path("shards").symlink_to(shards)
    Path("run.toml").write_text(PRETRAIN)
    assert main(["pretrain", "run.toml", "--out", "run", "--steps", "2"]) == 0
    trained, source = load_model(Path("run/model")), load_model(Path("source"))
    assert not trained.tokenizers.has_image_decoder
    assert trained.tokenizers.image.fingerprint == source.tokenizers.image.fingerprint


RUN = """\
shards = "{shards}"
tokenizers = "{tokenizers}"
steps = 100000
checkpoint.interval = 100000
device = "cpu"
data = {{ seq_len = 32, global_batch_size = 2, num_workers = 2 }}
model = {{ model_dim = 16, num_layers = 1, num_heads = 2, num_kv_heads = 2, feed_forward_dim = 16 }}
stage_one.weights = {{ pairs = 1.0 }}
stage_two.weights = {{ pairs = 1.0 }}
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, -9), (signal.SIGINT, 3)])
def test_no_loader_process_outlives_its_run(
    number: int, status: int, shards: Path, tokenizers: Tokenizers, tmp_path: Path
) -> None:
    tokenizers.text.save(tmp_path)
    tokenizers.image.save(tmp_path)
    config = tmp_path / "run.toml"
    config.write_text(RUN.format(shards=shards, tokenizers=tmp_path))
    command = [sys.executable, "-m", "calumma", "pretrain", config, "--out", tmp_path / "run"]
    run = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    _wait_until(lambda: metrics.exists() and metrics.stat().st_size > 1000)
    assert len(_processes_of_session(run.pid)) >= 3
    if number == signal.SIGINT:
        os.killpg(run.pid, number)  # as a terminal does, to all of them
    else:
        run.send_signal(number)
    assert run.wait(60) == status
    _wait_until(lambda: not _processes_of_session(run.pid))
    assert run.stderr is not None
    if status == 3:
        assert "Run the same command to resume." in run.stderr.read()
    run.stderr.close()


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _processes_of_session(leader: int) -> list[int]:
    """Return the running processes of a session."""
    listed = subprocess.run(["ps", "-o", "pid=,stat=", "-s", str(leader)], capture_output=True, text=True, check=False)
    lines = [line.split() for line in listed.stdout.splitlines()]
    return [int(pid) for pid, state in lines if not state.startswith("Z")]


@pytest.mark.usefixtures("ready")
def test_a_grpo_table_tunes_by_rewards(capsys: pytest.CaptureFixture[str]) -> None:
    write_prompts(Path("prompts.jsonl"))
    Path("grpo.toml").write_text(
        'model = "run/model"\nsteps = 2\nbatch_size = 4\nseq_len = 96\n'
        '[grpo]\nprompts = ["prompts.jsonl"]\nreward_funcs = ["short_answer"]\nnum_generations = 2\n'
        "max_completion_length = 12\n"
    )
    assert main(["finetune", "grpo.toml", "--out", "tuned", "--dry-run"]) == 0
    assert main(["finetune", "grpo.toml", "--out", "tuned", "--grpo.beta", "0.1"]) == 0
    assert "tuned/model: tuned by rewards from" in capsys.readouterr().out
    metrics = [json.loads(line) for line in Path("tuned/metrics.jsonl").read_text().splitlines()]
    assert all({"reward", "reward_short_answer", "kl", "entropy_image"} <= line.keys() for line in metrics)
    assert main(["finetune", "grpo.toml", "--out", "other", "--grpo.reward-funcs", '["nothing"]', "--dry-run"]) == 2
    assert "reward 'nothing' cannot be loaded" in capsys.readouterr().err


def test_the_shipped_model_is_named_without_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    documents = tmp_path / "turns.jsonl"
    write_jsonl(
        documents, [Document(id="a", messages=(Turn("user", (Text("hello"),)), Turn("assistant", (Text("hi"),))))]
    )
    command = ["finetune", "--model", "still-life", "--documents", str(documents), "--out", str(tmp_path / "tuned")]
    assert main([*command, "--steps", "1", "--data.global-batch-size", "1"]) == 0
    assert (tmp_path / "tuned" / "model" / "config.json").is_file()
    assert main(["convert", "still-life", str(tmp_path / "converted"), "--to", "qwen3"]) == 2
    assert 'has qk_norm = "layer"; expected "rms" for Qwen3' in capsys.readouterr().err
