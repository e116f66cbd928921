"""What the demo may be told: one TOML file, `demo.toml` beside this one."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from calumma.generate.params import ImageSampling
from calumma.toml_config import build_config, read_toml
from calumma.train.config import PretrainConfig
from calumma.train.config_finetune import FinetuneConfig
from calumma.train.config_image_tokenizer import ImageTokenizerTrainConfig


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Every choice of the demo; the folders are the road's own."""

    image_tokenizer: ImageTokenizerTrainConfig

    num_text: int
    """Text ids, the 256 bytes included."""

    pretrain: dict[str, Any]
    """Fields of `PretrainConfig` but for its folders and seed."""

    finetune: dict[str, Any]
    """Fields of `FinetuneConfig` but for its folders and seed."""

    image_sampling: ImageSampling = field(default_factory=ImageSampling)
    """How the pictures are drawn."""

    max_scenes: int = 0
    """Training and held-out scenes taken, for a quick run; 0 takes all."""

    max_eval_documents: int = 240
    """Held-out documents that the figures are measured on, at most."""

    checkpoint_interval: int = 50
    """Steps between two checkpoints: the most training that a kill can lose."""

    seed: int = 0

    def pretrain_config(self, out: Path) -> PretrainConfig:
        """The config of pre-training in the demo's folder."""
        return build_config(PretrainConfig, self._placed(self.pretrain, out), "demo")

    def finetune_config(self, out: Path) -> FinetuneConfig:
        """The config of fine-tuning in the demo's folder."""
        tree = self._placed(self.finetune, out)
        tree["model"] = out / "runs" / "pretrain" / "model"
        return build_config(FinetuneConfig, tree, "demo")

    def _placed(self, tree: dict[str, Any], out: Path) -> dict[str, Any]:
        data = {"seed": self.seed, **tree.get("data", {})}
        folders = {"shards": out / "shards", "tokenizers": out / "tokenizers"}
        return {
            **tree,
            **folders,
            "data": data,
            "seed": self.seed,
            "checkpoint": {"interval": self.checkpoint_interval},
        }


def load_demo_config(path: Path | None = None, changes: dict[str, Any] | None = None) -> DemoConfig:
    """The shipped config, or the one in a file, with changed fields."""
    with as_file(files("calumma.demo").joinpath("demo.toml")) as shipped:
        tree = read_toml(path or shipped) | (changes or {})
    return build_config(DemoConfig, tree, str(path or "demo.toml"))
