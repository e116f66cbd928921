"""Fine-tune and train by DPO as one rank of several; see test_tuning_ranks.py.

A folder has `model` and `pairs.jsonl`; the weights are written to SIZE/{tuned,preferred}.pt in it.
"""

import os
from dataclasses import replace
from pathlib import Path

import torch

from calumma.checkpoints.model_folder import load_model
from calumma.train.config_dpo import DPOConfig, DPOOptimizerConfig, DPOTrainConfig
from calumma.train.config_finetune import FinetuneScheduleConfig, TrainableConfig
from calumma.train.dpo import train_dpo
from calumma.train.finetuning import finetune
from tests.train.test_finetuning import config

ADAPTERS = TrainableConfig(blocks="lora", lora_rank=2, embeddings="all", vocab_rows="image")


def tune(folder: Path, shards: Path, size: int) -> None:
    """Fine-tune adapters for a few steps."""
    start = load_model(folder / "model")
    weights = {"chat": 1.0, "pairs": 1.0}
    tuning = replace(config(shards), trainable=ADAPTERS, dropout=0.0, weights=weights)
    run = folder / str(size)
    made = finetune(tuning, start.decoder, start.tokenizers.text.vocabulary, run / "tuned")
    if made is not None:
        torch.save(made.state_dict(), run / "tuned.pt")


def prefer(folder: Path, size: int) -> None:
    """Train all weights by DPO for a few steps."""
    dpo_config = DPOTrainConfig(
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
    made = train_dpo(dpo_config, load_model(folder / "model"), run / "preferred")
    if made is not None:
        torch.save(made.state_dict(), run / "preferred.pt")


def tune_and_prefer(folder: Path, shards: Path, port: str) -> None:
    """Do both, the second in a process group with another port."""
    size = int(os.environ["WORLD_SIZE"])
    tune(folder, shards, size)
    os.environ["MASTER_PORT"] = port
    prefer(folder, size)
