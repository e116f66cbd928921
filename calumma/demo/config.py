"""The config of the demo of size "minutes": one TOML file; the shipped one is `minutes.toml`."""

from dataclasses import dataclass, field
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from calumma.generate.params import ImageSampling, TextSampling
from calumma.toml_config import build_config, read_toml
from calumma.train.config import PretrainConfig
from calumma.train.config_finetune import FinetuneConfig
from calumma.train.config_image_tokenizer import ImageTokenizerTrainConfig


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """All settings of the demo but its folders."""

    image_tokenizer: ImageTokenizerTrainConfig | None = None
    """Training of the image tokenizer; without this table the demo takes that of the shipped model."""

    num_text: int
    """Text tokens of the vocabulary, the 256 bytes included."""

    pretrain: dict[str, Any]
    """Fields of `PretrainConfig` except folders and seed."""

    finetune: dict[str, Any]
    """Fields of `FinetuneConfig` except folders and seed."""

    text_sampling: TextSampling = field(default_factory=TextSampling)
    image_sampling: ImageSampling = field(default_factory=ImageSampling)
    """Sampling rules of the model folders."""

    max_scenes: int = 0
    """Training and held-out scenes to use, for a quick run; 0 uses all."""

    max_eval_documents: int = 240
    """Held-out documents of the evaluation, at most."""

    checkpoint_interval: int = 50
    """Steps between two checkpoints, which a killed training loses at most."""

    seed: int = 0

    def pretrain_config(self, out: Path) -> PretrainConfig:
        """Return the config of pre-training in the demo's folder."""
        return build_config(PretrainConfig, self._with_folders(self.pretrain, out), "demo")

    def finetune_config(self, out: Path) -> FinetuneConfig:
        """Return the config of fine-tuning in the demo's folder."""
        tree = self._with_folders(self.finetune, out)
        tree["model"] = out / "runs" / "pretrain" / "model"
        return build_config(FinetuneConfig, tree, "demo")

    def _with_folders(self, tree: dict[str, Any], out: Path) -> dict[str, Any]:
        data = {"seed": self.seed, **tree.get("data", {})}
        folders = {"shards": out / "shards", "tokenizers": out / "tokenizers"}
        return {
            **tree,
            **folders,
            "data": data,
            "seed": self.seed,
            "checkpoint": {"interval": self.checkpoint_interval},
        }


def load_demo_config(path: Path | None = None, overrides: dict[str, Any] | None = None) -> DemoConfig:
    """Load the shipped config, or the one in a file, with overridden fields."""
    with as_file(files("calumma.demo").joinpath("minutes.toml")) as shipped:
        tree = read_toml(path or shipped) | (overrides or {})
    return build_config(DemoConfig, tree, str(path or "minutes.toml"))
