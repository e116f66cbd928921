"""Fine-tune and prefer as one rank of several; see test_tuning_ranks.py.

A folder holds `model` and `pairs.jsonl`; what is learned goes to SIZE/{tuned,preferred}.pt in it.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import torch

from calumma.checkpoints.model_folder import load_model
from calumma.train.config_finetune import AdaptConfig, FinetuneScheduleConfig
from calumma.train.config_preference import (
    PairsConfig,
    PreferenceConfig,
    PreferenceOptimizerConfig,
)
from calumma.train.finetune import finetune
from calumma.train.preference import prefer
from tests.train.test_finetune import config

ADAPT = AdaptConfig(matrices="lora", rank=2, tables="all", rows="image")


def tune(folder: Path, shards: Path, size: int) -> None:
    """A few steps on turns with additions alone."""
    start = load_model(folder / "model")
    rules = replace(config(shards), adapt=ADAPT, dropout=0.0, weights={"chat": 1.0, "pairs": 1.0})
    run = folder / str(size)
    made = finetune(rules, start.decoder, start.text.vocabulary, run / "tuned")
    if made is not None:
        torch.save(made.state_dict(), run / "tuned.pt")


def choose(folder: Path, size: int) -> None:
    """A few steps on pairs with all weights."""
    rules = PreferenceConfig(
        model=folder / "model",
        preference=PairsConfig(pairs=(folder / "pairs.jsonl",), beta=0.2),
        steps=4,
        device="cpu",
        pairs_per_step=2,
        pairs_at_once=1,
        row_length=64,
        optimizer=PreferenceOptimizerConfig(peak_rate=1e-3),
        schedule=FinetuneScheduleConfig(warmup_steps=1),
    )
    run = folder / str(size)
    made = prefer(rules, load_model(folder / "model"), run / "preferred")
    if made is not None:
        torch.save(made.state_dict(), run / "preferred.pt")


def learn(folder: Path, shards: Path, port: str) -> None:
    """Both, the second in a world of its own that meets at another port."""
    size = int(os.environ["WORLD_SIZE"])
    tune(folder, shards, size)
    os.environ["MASTER_PORT"] = port
    choose(folder, size)
