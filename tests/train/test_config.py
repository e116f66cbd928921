"""Configs of training runs: defaults and refusals."""

import math
from pathlib import Path
from typing import Any

import pytest

from calumma.batches.loader import DataConfig
from calumma.errors import ConfigError
from calumma.shards.manifest import Manifest
from calumma.toml_config import build_config
from calumma.train.config import (
    CheckpointConfig,
    OptimizerConfig,
    ParallelConfig,
    PretrainConfig,
    ScheduleConfig,
    StageConfig,
    StageTwoConfig,
    TrainConfig,
    run_identity,
)


def test_no_steps_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        TrainConfig(shards=Path("s"), steps=0)
    assert str(caught.value) == "steps=0; expected at least 1. Raise steps."


@pytest.mark.parametrize("name", ["interval", "keep_latest", "keep_every"])
def test_checkpoint_counts_out_of_range_are_refused(name: str) -> None:
    counts = {"interval": 100, "keep_latest": 2, "keep_every": 0} | {name: -1}
    with pytest.raises(ConfigError) as caught:
        CheckpointConfig(**counts)
    assert str(caught.value) == (
        f"checkpoint.interval={counts['interval']}, checkpoint.keep_latest={counts['keep_latest']} "
        f"and checkpoint.keep_every={counts['keep_every']}; expected at least 1, 1 and 0."
    )


@pytest.mark.parametrize(
    ("table", "fields", "message"),
    [
        (OptimizerConfig, {"lr": math.nan}, "optimizer.lr=nan; expected a finite number of at least 0."),
        (OptimizerConfig, {"eps": -0.1}, "optimizer.eps=-0.1; expected a finite number of at least 0."),
        (OptimizerConfig, {"max_grad_norm": -1.0}, "optimizer.max_grad_norm=-1.0; expected above 0 (inf is none)."),
        (
            OptimizerConfig,
            {"betas": (0.9, 1.0)},
            "optimizer.betas=(0.9, 1.0); expected two numbers of at least 0 and below 1.",
        ),
        (
            ScheduleConfig,
            {"min_lr_factor": -0.5},
            "schedule.warmup_steps=4000 and schedule.min_lr_factor=-0.5; expected at least 0, and from 0 to 1.",
        ),
    ],
)
def test_numbers_of_the_optimizer_out_of_range_are_refused(
    table: type[Any], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        table(**fields)
    assert str(caught.value) == message


def test_gradient_accumulation_may_differ_between_launches() -> None:
    one, other, larger = (
        TrainConfig(shards=Path("s"), data=data)
        for data in (
            DataConfig(global_batch_size=64),
            DataConfig(global_batch_size=64, micro_batch_size=4),
            DataConfig(global_batch_size=128),
        )
    )
    assert run_identity(one) == run_identity(other) != run_identity(larger)


@pytest.mark.parametrize("kind", ["tensor_parallel", "context_parallel"])
def test_rows_that_ranks_cannot_share_are_refused(kind: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainConfig(shards=Path("s"), parallel=ParallelConfig(**{kind: 3}))
    assert str(caught.value) == (
        f"data.seq_len=256 does not divide over parallel.{kind}=3 ranks; the nearest that does is data.seq_len=255."
    )


def test_tensor_and_context_parallelism_together_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        ParallelConfig(tensor_parallel=2, context_parallel=4)
    assert str(caught.value) == (
        "parallel.tensor_parallel=2 and parallel.context_parallel=4; expected 1 for one of them. Set "
        "parallel.tensor_parallel=1."
    )


def test_the_defaults_are_the_paper_s() -> None:
    config = PretrainConfig(
        shards=Path("s"),
        tokenizers=Path("t"),
        stage_one=StageConfig(weights={"a": 1.0}),
        stage_two=StageTwoConfig(added_weights={"b": 1.0}),
    )
    assert config.z_loss_weight == 1e-5
    assert config.stage_two_fraction == 0.2
    assert config.stage_two_weights == {"a": 0.5, "b": 0.5}
    assert config.schedule.warmup_steps == 4000
    optimizer = OptimizerConfig()
    assert (optimizer.betas, optimizer.weight_decay) == ((0.9, 0.95), 0.1)
    assert (optimizer.lr, optimizer.max_grad_norm) == (1e-4, 1.0)


STAGES = {"stage_one": {"weights": {"a": 1.0}}, "stage_two": {"weights": {"a": 1.0}}}
TREE = {"shards": "s", "tokenizers": "t", **STAGES}


def test_a_named_size_stands_for_the_fields_that_are_left_out() -> None:
    model = {"size": "34B", "max_seq_len": 2048}
    shape = build_config(PretrainConfig, TREE | {"model": model}, "run.toml").model
    assert (shape.model_dim, shape.num_kv_heads, shape.norm_order) == (8192, 8, "reordered")
    assert shape.max_seq_len == 2048


def test_a_dropout_out_of_range_is_refused_before_any_work() -> None:
    with pytest.raises(ConfigError) as caught:
        build_config(PretrainConfig, TREE | {"model": {"dropout": 1.0}}, "run.toml")
    assert "dropout=1.0; expected a probability of at least 0 and below 1." in str(caught.value)


def test_an_unknown_size_is_refused_with_the_file_s_name() -> None:
    with pytest.raises(ConfigError) as caught:
        build_config(PretrainConfig, TREE | {"model": {"size": "8B"}}, "run.toml")
    assert str(caught.value) == (
        "run.toml: size '8B' is not known; expected one of tiny, 37M, 94M, 443M, 1.5B, 7B, 34B."
    )


def test_a_size_is_no_field_where_none_are_named() -> None:
    with pytest.raises(ConfigError) as caught:
        build_config(PretrainConfig, TREE | {"optimizer": {"size": "7B"}}, "run.toml")
    assert str(caught.value).startswith("run.toml: unknown field optimizer.size; expected one of")


@pytest.mark.parametrize("two", [{}, {"weights": {"a": 1.0}, "added_weights": {"b": 2.0}}])
def test_stage_two_has_one_kind_of_weights(two: dict[str, dict[str, float]]) -> None:
    with pytest.raises(ConfigError) as caught:
        build_config(PretrainConfig, TREE | {"stage_two": two}, "run.toml")
    assert str(caught.value) == (
        f"run.toml: stage two has weights {two.get('weights', {})} of its own and adds "
        f"{two.get('added_weights', {})} to stage one's; expected one of the two: "
        "[stage_two.weights], or [stage_two.added_weights]."
    )


def test_without_a_second_stage_the_first_is_the_whole_run() -> None:
    config = build_config(PretrainConfig, {"shards": "s", "tokenizers": "t"}, "run.toml")
    assert config.stage_two_start == config.steps
    one = build_config(PretrainConfig, TREE | {"stage_two": None}, "run.toml")
    assert one.stage_two_weights == {"a": 1.0}


@pytest.mark.parametrize("unit", ["tokens", "sequences"])
def test_without_weights_every_token_has_the_same_chance(shards: Path, unit: str) -> None:
    manifest = Manifest.load(shards)
    tree = {"shards": shards, "tokenizers": "t", "data": {"mixture_unit": unit}}
    config = build_config(PretrainConfig, tree, "run.toml").with_default_weights(manifest)
    assert config.stage_one.weights == {
        name: float(getattr(manifest.counts(name), f"num_{unit}")) for name in manifest.sources
    }
    assert config.with_default_weights(manifest) is config


def test_a_warm_up_that_never_ends_is_warned_of() -> None:
    tree = {"shards": "s", "tokenizers": "t", "steps": 60}
    assert build_config(PretrainConfig, tree, "run.toml").warning == (
        "schedule.warmup_steps=4000 with steps=60: the learning rate never reaches its peak. "
        "Lower schedule.warmup_steps, for example to 6."
    )
    tree |= {"schedule": {"warmup_steps": 6}}
    assert build_config(PretrainConfig, tree, "run.toml").warning is None


def lr_factors(config: ScheduleConfig, steps: int) -> list[float]:
    return [config.lr_factor(step, steps) for step in range(steps)]


def test_warm_up_then_exponential_decay() -> None:
    config = ScheduleConfig(warmup_steps=2, decay_type="exponential", min_lr_factor=0.0625)
    assert lr_factors(config, 6) == pytest.approx([0.5, 1.0, 0.5, 0.25, 0.125, 0.0625])


def test_warm_up_then_cosine() -> None:
    config = ScheduleConfig(warmup_steps=1, decay_type="cosine", min_lr_factor=0.2)
    assert lr_factors(config, 5) == pytest.approx([1.0, 0.882842712, 0.6, 0.317157288, 0.2])


def test_without_warm_up_the_decay_begins_at_once() -> None:
    config = ScheduleConfig(warmup_steps=0, decay_type="exponential", min_lr_factor=0.25)
    assert lr_factors(config, 2) == pytest.approx([0.5, 0.25])


def test_a_run_shorter_than_its_warm_up_only_warms_up() -> None:
    assert lr_factors(ScheduleConfig(warmup_steps=8), 2) == pytest.approx([0.125, 0.25])


def test_held_out_sources_have_no_default_weight(shards: Path) -> None:
    manifest = Manifest.load(shards)
    config = build_config(PretrainConfig, {"shards": shards, "tokenizers": "t"}, "run.toml")

    class Renamed:
        sources = ("pairs", "sft-safety-held-out")
        counts = staticmethod(lambda name: manifest.counts("pairs"))

    assert list(config.default_weights(Renamed())) == ["pairs"]  # type: ignore[arg-type]
    Renamed.sources = ("held-out", "sft-safety-held-out")
    with pytest.raises(ConfigError) as caught:
        config.default_weights(Renamed())  # type: ignore[arg-type]
    assert str(caught.value) == (
        f"all sources of {shards} are held out (held-out, sft-safety-held-out); expected one to train on. "
        "Give its weight in the config, or name it otherwise."
    )
