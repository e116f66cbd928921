"""Configs of fine-tuning: defaults and refusals."""

from pathlib import Path
from typing import Any

import pytest

from calumma.errors import ConfigError
from calumma.toml_config import build_config, load_config
from calumma.train.config_finetune import CATEGORIES, FinetuneConfig, TrainableConfig

TREE = {"shards": "s", "tokenizers": "t", "model": "m"}
RUNS = Path(__file__).parents[2] / "runs"


def config(**changes: Any) -> FinetuneConfig:
    return build_config(FinetuneConfig, TREE | changes, "turns.toml")


def refusal(**changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        config(**changes)
    return str(caught.value)


def test_the_defaults_are_the_paper_s() -> None:
    # A table that says something else of the optimizer does not bring pre-training's rate back.
    made = config(weights={"a": 1.0}, optimizer={"eps": 1e-8}, schedule={"warmup_steps": 3})
    assert (made.optimizer.lr, made.optimizer.weight_decay) == (1e-5, 0.1)
    assert (made.schedule.decay_type, made.dropout, made.z_loss_weight) == ("cosine", 0.05, 1e-5)
    assert made.trainable.trains_all


def test_the_recipe_in_runs_has_the_paper_s_batch() -> None:
    made = load_config(FinetuneConfig, RUNS / "finetune-7B.toml", [])
    assert made.data.global_batch_size == 128
    assert made.data.seq_len == 4096
    assert set(made.categories) == set(CATEGORIES)
    assert (made.optimizer.lr, made.dropout) == (1e-5, 0.05)


def test_categories_have_equal_weights_by_default() -> None:
    made = config(categories={"text": {"a": 3.0, "b": 1.0}, "safety": {"c": 5.0}})
    assert made.source_weights == {"a": 0.75, "b": 0.25, "c": 1.0}
    weighted = config(categories={"text": {"a": 1.0}, "safety": {"a": 1.0, "c": 1.0}}, category_weights={"text": 4.0})
    assert weighted.source_weights == {"a": 4.5, "c": 0.5}


def test_weights_and_categories_exclude_each_other() -> None:
    assert config().source_weights == {}
    assert refusal(weights={"a": 1.0}, categories={"text": {"a": 1.0}}) == (
        "turns.toml: weights {'a': 1.0} and categories {'text': {'a': 1.0}}; expected at most one "
        "of them: [weights], or a table for each category, such as [categories.text]."
    )


def test_a_dropout_out_of_range_is_refused_before_any_work() -> None:
    assert refusal(dropout=2.0) == ("turns.toml: dropout=2.0; expected a probability of at least 0 and below 1.")


@pytest.mark.parametrize(
    "changes",
    [{"categories": {"speech": {"a": 1.0}}},
     {"categories": {"text": {"a": 1.0}}, "category_weights": {"speech": 1.0}}],
)  # fmt: skip
def test_a_category_that_is_unknown_or_has_no_sources_is_refused(changes: dict[str, Any]) -> None:
    assert refusal(**changes) == (
        "turns.toml: category 'speech' is unknown, or has a weight and no sources; expected one of "
        f"{', '.join(CATEGORIES)} with its sources. Fix the name."
    )


def test_a_category_without_positive_shares_is_refused() -> None:
    assert refusal(categories={"text": {"a": 0.0}}) == (
        "turns.toml: category 'text' has no source with a positive weight; expected one. Add it, "
        "or leave the category out."
    )


def test_weights_out_of_range_are_refused() -> None:
    assert refusal(weights={"a": 1.0, "b": -1.0}) == (
        "turns.toml: the weights of the sources are {'a': 1.0, 'b': -1.0}; expected none negative "
        "and one positive. Fix them."
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"blocks": "none", "embeddings": "none"},
            "trainable.blocks='none' and trainable.embeddings='none' train nothing; expected one "
            "of them. Set trainable.embeddings='head' or trainable.blocks='lora'.",
        ),
        ({"blocks": "lora", "lora_rank": 0}, "trainable.lora_rank=0; expected at least 1. Raise trainable.lora_rank."),
        (
            {"vocab_rows": "image"},
            "trainable.embeddings='all' and trainable.vocab_rows='image' with "
            "trainable.blocks='all', which trains every weight; expected 'all' of both. Set "
            "trainable.blocks='lora' or 'none'.",
        ),
    ],
)
def test_adaptations_that_contradict_themselves_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainableConfig(**fields)
    assert str(caught.value) == message
