"""Fine-tune and prefer as one rank of several; see test_tuning_ranks.py.

A folder holds `model` and `pairs.jsonl`; what is learned goes to SIZE/{tuned,preferred}.pt in it.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import torch

from calumma.checkpoints.model_folder import load_model
from calumma.train.config_dpo import (
    DPOConfig,
    DPOOptimizerConfig,
    DPOTrainConfig,
)
from calumma.train.config_finetune import FinetuneScheduleConfig, TrainableConfig
from calumma.train.dpo import train_dpo
from calumma.train.finetune import finetune
from tests.train.test_finetune import config

ADAPT = TrainableConfig(blocks="lora", lora_rank=2, embeddings="all", vocab_rows="image")


def tune(folder: Path, shards: Path, size: int) -> None:
    """A few steps on turns with additions alone."""
    start = load_model(folder / "model")
    rules = replace(config(shards), adapt=ADAPT, dropout=0.0, weights={"chat": 1.0, "pairs": 1.0})
    run = folder / str(size)
    made = finetune(rules, start.decoder, start.tokenizers.text.vocabulary, run / "tuned")
    if made is not None:
        torch.save(made.state_dict(), run / "tuned.pt")


def choose(folder: Path, size: int) -> None:
    """A few steps on pairs with all weights."""
    rules = DPOTrainConfig(
        model=folder / "model",
        dpo=DPOConfig(pairs=(folder / "pairs.jsonl",), beta=0.2),
        steps=4,
        device="cpu",
        batch_size=2,
        micro_batch_size=1,
        seq_len=64,
        optimizer=DPOOptimizerConfig(lr=1e-3),
        schedule=FinetuneScheduleConfig(warmup_steps=1),
    )
    run = folder / str(size)
    made = train_dpo(rules, load_model(folder / "model"), run / "preferred")
    if made is not None:
        torch.save(made.state_dict(), run / "preferred.pt")


def learn(folder: Path, shards: Path, port: str) -> None:
    """Both, the second in a world of its own that meets at another port."""
    size = int(os.environ["WORLD_SIZE"])
    tune(folder, shards, size)
    os.environ["MASTER_PORT"] = port
    choose(folder, size)
