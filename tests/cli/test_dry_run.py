"""A dry run prints the config and the plan, and starts nothing."""

from pathlib import Path

import pytest

from calumma.checkpoints.model_folder import ModelComponents, save_model
from calumma.cli.main import main
from calumma.documents.preferences import write_preferences
from calumma.tokens.folder import Tokenizers
from tests.train.test_dpo import PAIRS

ROOT = Path(__file__).parents[2]


def dry_run(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """Return the lines of the plan."""
    assert main([*words, "--out", "nowhere", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert not Path("nowhere").exists()
    return [line.removeprefix("# ") for line in lines if line.startswith("# ")]


@pytest.fixture(autouse=True)
def in_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_plan_for_given_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    config = str(ROOT / "runs/decoder-94M.toml")
    plan, memory, speed, time = dry_run(capsys, "pretrain", config, "--gpu", "h100-80gb", "--gpus", "8")
    assert plan == "plan: 94,382,592 parameters on 8 x h100-80gb"
    assert memory.startswith("memory: ") and " of 79 GiB, in the loss (weights 0.04, " in memory
    assert "tokens/s at an assumed MFU of 40%, " in speed
    assert time.startswith("time: ")
    assert time.endswith(" for 160,000 steps, 167,772,160,000 tokens")


def test_a_plan_for_this_machine_that_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    config = str(ROOT / "runs/decoder-7B.toml")
    (line,) = dry_run(capsys, "pretrain", config)
    assert line == (
        "plan: none for 1 x this CPU: 1 ranks do not divide into "
        "parallel.data_parallel_replicate=128 times parallel.tensor_parallel=1; expected a "
        "multiple. Start another number of ranks, or change one of the two."
    )
    *_, last = dry_run(capsys, "pretrain", config, "--parallel.data-parallel-replicate", "1")
    assert last.startswith("it does not fit: a GPU needs ")


def test_gpus_that_do_not_divide_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    config = str(ROOT / "runs/decoder-7B.toml")
    words = ["pretrain", config, "--out", "x", "--dry-run", "--gpu", "h100-80gb", "--gpus", "6"]
    assert main(words) == 2
    assert capsys.readouterr().err.startswith("error: 6 ranks do not divide into")


def test_the_plan_of_fine_tuning_has_the_shape_of_its_model(
    model_parts: ModelComponents, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("tune.toml").write_text('model = "model"\nshards = "s"\ntokenizers = "t"\n[weights]\nchat = 1.0\n')
    assert dry_run(capsys, "finetune", "tune.toml") == ["plan: none, since model does not exist yet"]
    save_model(Path("model"), model_parts)
    plan, *_ = dry_run(capsys, "finetune", "tune.toml")
    assert plan == f"plan: {model_parts.decoder.num_parameters:,} parameters on 1 x this CPU"


def test_a_plan_for_an_image_tokenizer(capsys: pytest.CaptureFixture[str]) -> None:
    config = str(ROOT / "runs/image-tokenizer-64.toml")
    Path("my.jsonl").write_text('{"text": "a"}\n')
    words = ["train-image-tokenizer", config, "--documents", '["my.jsonl"]']
    plan, memory, speed, time = dry_run(capsys, *words)
    assert plan.endswith(" parameters (encoder, codebook, decoder) on 1 x this CPU")
    assert memory.endswith("without the networks of the losses")
    assert "images/s at an assumed MFU of 50%, " in speed
    assert time.startswith("time: at least ")


def test_documents_and_shapes_that_a_run_would_refuse_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    config = str(ROOT / "runs/tiny-image-tokenizer.toml")
    assert main(["train-image-tokenizer", config, "--out", "x", "--dry-run"]) == 2
    assert capsys.readouterr().err.startswith("error: my-images: nothing found")
    config = str(ROOT / "runs/tiny.toml")
    assert main(["pretrain", config, "--out", "x", "--dry-run", "--model.num-heads", "3"]) == 2
    assert "160" in capsys.readouterr().err
    assert not Path("x").exists()


@pytest.fixture
def started(model_parts: ModelComponents, tokenizers: Tokenizers, shards: Path) -> None:
    """Make a model, tokenizers, shards and pairs, and a run of two steps."""
    save_model(Path("model"), model_parts)
    tokenizers.save(Path("tok"))
    write_preferences(Path("pairs.jsonl"), PAIRS)
    Path("run.toml").write_text(RUN.format(shards=shards))
    assert main(["pretrain", "run.toml", "--out", "first"]) == 0


RUN = """
shards = "{shards}"
tokenizers = "tok"
steps = 2
device = "cpu"
[data]
seq_len = 32
global_batch_size = 2
[schedule]
warmup_steps = 1
[model]
model_dim = 16
num_layers = 1
num_heads = 2
num_kv_heads = 2
feed_forward_dim = 16
"""


@pytest.mark.usefixtures("started")
def test_what_the_start_of_a_run_would_refuse_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    def error(words: str) -> str:
        assert main([*words.split(), "--dry-run"]) == main(words.split()) == 2
        one, other = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
        assert one == other
        return one

    assert error("pretrain run.toml --out first --seed 1").startswith(
        "error: first/checkpoints/step-00000002 was written by a run with seed=0; this run has seed=1."
    )
    assert error("pretrain run.toml --out first --steps 4").endswith(
        "--init-from continues a run under a new schedule."
    )
    assert error("pretrain run.toml --out other --init-from first --model.num-layers 2").startswith(
        "error: init_from=first was trained with model.num_layers=1; this run has model.num_layers=2."
    )
    assert "the mixture names source" in error("pretrain run.toml --out other --stage-one.weights.none 1")
    assert not Path("other").exists()
    Path("tune.toml").write_text(Path("run.toml").read_text().replace("[model]", "[old]").partition("[old]")[0])
    tune = "finetune tune.toml --out tuned --model model"
    assert error(f"{tune} --init-from first").startswith("error: init_from=first is a run of pre-training;")
    assert error(f"{tune} --weights.none 1").startswith("error: ")
    Path("dpo.toml").write_text('model = "model"\nsteps = 2\ndevice = "cpu"\n[dpo]\npairs = ["pairs.jsonl"]\n')
    assert "tokens with its prompt; expected at most seq_len=8" in error("finetune dpo.toml --out liked --seq-len 8")
    Path("pairs.jsonl").write_text("{}\n")
    assert error("finetune dpo.toml --out liked").startswith("error: pairs.jsonl")
