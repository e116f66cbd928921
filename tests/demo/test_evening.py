"""The evening's demo: its config is complete, and a tiny run goes from documents to scores."""

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import calumma
from calumma.checkpoints.model_folder import load_model
from calumma.demo.evening import RECIPE_FILE, EveningPipeline, load_evening_config
from calumma.demo.steps import DEMO_STEPS
from calumma.errors import ConfigError
from calumma.evaluate import still_lifes
from calumma.files import sha256
from calumma.train.pretraining import pretrain
from calumma.train.run_log import read_metrics
from calumma.train.training_loop import TrainCallbacks
from tests.launch import SignalOnCall, free_ports, launch, run_ranks

TINY = """\
num_documents = 24
num_conversations = 12
num_images = 16
num_text = 300
max_prompts = 1
checkpoint_interval = 2
finetuned_share = 0.5
[image_tokenizer]
steps = 4
batch_size = 4
quantize_start_step = 1
[image_tokenizer.network]
resolution = 16
base_channels = 32
channel_multipliers = [1, 1, 1]
num_res_blocks = 0
latent_channels = 8
code_dim = 4
num_codes = 16
encoder_context = "cell"
[pretrain]
steps = 4
stage_two_fraction = 0.5
[pretrain.model]
model_dim = 16
num_layers = 1
num_heads = 1
num_kv_heads = 1
feed_forward_dim = 32
max_seq_len = 256
[pretrain.data]
seq_len = 64
global_batch_size = 2
[pretrain.schedule]
warmup_steps = 1
[pretrain.stage_one.weights]
still-life-pairs = 1.0
[pretrain.stage_two.weights]
still-life-ask = 0.5
still-life-draw = 0.5
[finetune]
steps = 2
dropout = 0.0
[finetune.data]
seq_len = 64
global_batch_size = 2
[finetune.schedule]
warmup_steps = 1
[image_sampling]
guidance_scale = 1.5
"""


class Recorder:
    """Records the steps that are done."""

    def __init__(self) -> None:
        self.started: list[str] = []

    def begin(self, number: int, name: str) -> None:
        self.started.append(name)

    def skip(self, number: int, name: str) -> None:
        pass

    def training(self, name: str, steps: int) -> TrainCallbacks:
        return TrainCallbacks()

    def counting(self, name: str, total: int | None, unit: str) -> Callable[[int], None]:
        return lambda by: None


def test_the_shipped_config_is_complete(tmp_path: Path) -> None:
    config = load_evening_config()
    pretraining = config.pretrain_config(tmp_path)
    assert pretraining.shards == tmp_path / "shards"
    assert config.finetune_config(tmp_path).shards == tmp_path / "conversations"
    assert pretraining.data.seq_len <= pretraining.model.max_seq_len
    assert config.image_tokenizer.network.codes_per_image == 64
    assert load_evening_config(None, {"seed": 7}).pretrain_config(tmp_path).data.seed == 7


def test_a_mistake_is_named(tmp_path: Path) -> None:
    path = tmp_path / "evening.toml"
    path.write_text(TINY.replace("num_text", "num_texts"))
    with pytest.raises(ConfigError) as caught:
        load_evening_config(path)
    assert str(caught.value) == f"{path}: unknown field num_texts; did you mean num_text? Fix the name."


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(ConfigError) as caught:
        load_evening_config(None, {"finetuned_share": share})
    assert f"finetuned_share={share}; expected a share above 0 and at most 1." in str(caught.value)


def test_a_tiny_run_writes_a_model_with_its_recipe_and_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(still_lifes, "_NUM_NEIGHBORS", 20)
    monkeypatch.setattr(still_lifes, "_training_pairs", [])
    (tmp_path / "evening.toml").write_text(TINY)
    pipeline = EveningPipeline(tmp_path / "out", load_evening_config(tmp_path / "evening.toml"))
    recorder = Recorder()
    pipeline.run(recorder)
    assert recorder.started == list(DEMO_STEPS)
    recipe = json.loads((pipeline.model / RECIPE_FILE).read_text())
    assert recipe["fingerprint"] == pipeline.fingerprint
    assert recipe["config"]["pretrain"]["steps"] == 4
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert {"draws_one_object", "questions", "edits_exact"} <= {figure["name"] for figure in report["figures"]}
    assert calumma.load(pipeline.model).default_image_sampling.guidance_scale == 1.5
    decoder, _ = pipeline.run_finetuning(pipeline.config.finetune_config(pipeline.out), recorder)
    start = load_model(pipeline.run_folder("pretrain") / "model").decoder
    average = (decoder.embedding.weight + start.embedding.weight) / 2
    assert not torch.equal(decoder.embedding.weight, start.embedding.weight)
    torch.testing.assert_close(
        calumma.load(pipeline.model).decoder.embedding.weight.float(), average, rtol=0.01, atol=1e-4
    )
    pipeline.run(again := Recorder())
    assert again.started == []


@pytest.mark.slow  # tests of pre-training and of the smaller demo kill and share the same code
def test_killed_twice_it_ends_in_the_same_weights_and_two_ranks_give_the_losses_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    toml = tmp_path / "evening.toml"
    toml.write_text(TINY)

    def run(out: Path, death: SignalOnCall) -> None:
        given = ("demo", "--size", "evening", "--config", toml, "--out", out)
        ended = launch(*given, log=out.with_suffix(".log"), signal_on_call=death)
        assert ended.status == -signal.SIGKILL, ended.output

    one, killed = tmp_path / "one", tmp_path / "killed"
    before_the_report = SignalOnCall("calumma.demo.evening", "load_model", 2)
    run(one, before_the_report)
    run(killed, SignalOnCall("calumma.checkpoints.training_checkpoint", "write_json", 2))
    run(killed, SignalOnCall("calumma.checkpoints.checkpointer", "write_checkpoint", 3))
    run(killed, before_the_report)
    weights = ("model.safetensors", "vq_decoder.safetensors")
    assert [sha256(killed / "model" / w) for w in weights] == [sha256(one / "model" / w) for w in weights]

    [port] = free_ports(1)
    run_ranks(2, pretrain_rank, toml, one, tmp_path / "ranks", port=port, logs=tmp_path)
    losses, shared = (
        [(step["loss"], step["loss_text"], step["loss_image"]) for step in read_metrics(run)]
        for run in (one / "runs" / "pretrain", tmp_path / "ranks")
    )
    assert len(losses) == len(shared) == 4
    for alone, together in zip(losses, shared, strict=True):
        assert together == pytest.approx(alone, rel=1e-4)


def pretrain_rank(toml: Path, out: Path, run: Path) -> None:
    """Pre-train on the shards of a finished demo as one rank of several."""
    pretrain(load_evening_config(toml).pretrain_config(out), run)
