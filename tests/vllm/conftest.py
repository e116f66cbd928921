"""Models with heads of 32 and images of 16 codes, as vLLM's attention on CPUs and the tests of guidance need."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from calumma.checkpoints.model_folder import ModelComponents
from calumma.generate.model import Model, load
from calumma.tokens.folder import Tokenizers
from calumma.tokens.image import ImageTokenizer
from calumma.tokens.text import TextTokenizer
from calumma.tokens.vq.config import VQConfig
from calumma.tokens.vq.network import VQModel
from tests.checkpoints.random_models import save_random_model

SHAPE: dict[str, Any] = {
    "model_dim": 256,
    "num_heads": 8,
    "num_kv_heads": 4,
    "feed_forward_dim": 192,
    "max_seq_len": 256,
}

SaveModel = Callable[..., tuple[Path, Model]]


@pytest.fixture(scope="session")
def tokenizers() -> Tokenizers:
    texts = ["a large red circle on a blue ground", "the small green cross, 123 times! äöü 猫"]
    text = TextTokenizer.train(texts * 4, num_text=300, num_codes=64)
    torch.manual_seed(0)
    config = VQConfig(
        resolution=32,
        base_channels=32,
        channel_multipliers=(1, 1, 1, 1),
        num_res_blocks=1,
        latent_channels=8,
        code_dim=4,
        num_codes=64,
    )
    return Tokenizers(text, ImageTokenizer(VQModel(config)))


@pytest.fixture(scope="session")
def save_vllm_model(tokenizers: Tokenizers, tmp_path_factory: pytest.TempPathFactory) -> SaveModel:
    """Return a function that saves a random model, and loads it for this package's engine."""

    def save(**change: Any) -> tuple[Path, Model]:
        folder = tmp_path_factory.mktemp("vllm") / "model"
        # Of the components only the tokenizers are read.
        parts = ModelComponents(None, tokenizers)  # type: ignore[arg-type]
        save_random_model(folder, parts, **SHAPE | change)
        return folder, load(folder)

    return save
