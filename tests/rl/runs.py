"""Prompts, rewards and configs of small GRPO runs, also as one rank of several."""

import base64
import json
import os
from pathlib import Path
from typing import Any

import torch

from calumma.checkpoints.model_folder import load_model
from calumma.generate.best_of import RewardInput
from calumma.rl.config_grpo import GRPOConfig, GRPOTrainConfig
from calumma.rl.grpo import train_grpo
from calumma.train.config_dpo import DPOCheckpointConfig, DPOOptimizerConfig
from calumma.train.config_finetune import FinetuneScheduleConfig
from tests.images import png


def write_prompts(path: Path, count: int = 4) -> Path:
    """Write prompts, every second one with an image, whose reference answer is an image."""
    lines = []
    for number in range(count):
        image = {"type": "image", "base64": base64.b64encode(png(number)).decode()}
        question: list[Any] = [{"type": "text", "text": f"draw {number}"}, *([image] if number % 2 else [])]
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": [image]}]
        lines.append(json.dumps({"id": f"p{number}", "messages": turns, "attributes": {"number": str(number)}}))
    path.write_text("\n".join(lines) + "\n")
    return path


def brightness(completion: RewardInput) -> float:
    """Return the mean brightness of the first image, from 0 to 1."""
    images = completion.images
    values = torch.tensor(list(images[0].convert("L").tobytes())).float() if images else torch.zeros(1)
    return float(values.mean()) / 255


def nonsense(completion: RewardInput) -> float:
    """Return a reward that only one letter raises."""
    return completion.text.count("e") / (1 + len(completion.text))


def config(prompts: Path, model: Path = Path("not read"), **changes: Any) -> GRPOTrainConfig:
    """Return a config; fields of the [grpo] table and of the run may be changed."""
    grpo: dict[str, Any] = {
        "prompts": (prompts,),
        "reward_funcs": ("tests.rl.runs:brightness",),
        "num_generations": 4,
        "max_completion_length": 12,
        "modality": "image",
    }
    names = GRPOConfig.__dataclass_fields__.keys()
    grpo |= {name: value for name, value in changes.items() if name in names}
    run: dict[str, Any] = {
        "steps": 4,
        "batch_size": 16,
        "micro_batch_size": 6,
        "seq_len": 96,
        "device": "cpu",
        "checkpoint": DPOCheckpointConfig(interval=1),
        "optimizer": DPOOptimizerConfig(lr=3e-3),
        "schedule": FinetuneScheduleConfig(warmup_steps=1, min_lr_factor=1.0),
    }
    run |= {name: value for name, value in changes.items() if name not in names}
    return GRPOTrainConfig(model=model, grpo=GRPOConfig(**grpo), **run)


def tune_rank(folder: Path) -> None:
    """Tune the model of a folder by rewards in FOLDER/SIZE."""
    run = folder / os.environ.get("WORLD_SIZE", "1")
    prompts = folder / "prompts.jsonl"
    rules = config(prompts, folder / "model", beta=0.05, steps=2, anchors=(prompts,), num_anchors=4)
    made = train_grpo(rules, load_model(folder / "model"), run)
    if made is not None:
        torch.save(made.state_dict(), run / "tuned.pt")
