"""A tiny model with random weights, and composed scenes that it has never seen."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch

from calumma.checkpoints.model_folder import ModelParts, save_model
from calumma.corpora.compose import scene_document, shape_scenes
from calumma.documents.document import Document
from calumma.generate.model import Model, load
from calumma.model.config import DecoderConfig
from calumma.model.decoder import Decoder
from calumma.tokens.image import ImageTokenizer
from calumma.tokens.text import TextTokenizer
from calumma.tokens.vq.config import VQConfig
from calumma.tokens.vq.network import VQNetwork


def make_model_folder(folder: Path) -> Path:
    torch.manual_seed(0)
    text = TextTokenizer.train(["a small red circle on a blue ground"], num_text=262, num_codes=16)
    network = VQNetwork(
        VQConfig(
            resolution=16, base_channels=32, channel_multipliers=(1, 1, 1), num_res_blocks=1,
            latent_channels=32, code_dim=8, num_codes=16,
        )
    )  # fmt: skip
    decoder = Decoder(
        DecoderConfig(
            vocabulary_size=text.vocabulary.size, model_dim=32, num_layers=1, num_heads=2,
            num_kv_heads=2, feed_forward_dim=64, max_tokens=128,
        )
    )  # fmt: skip
    decoder.initialise(0)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    save_model(folder, ModelParts(decoder, text, ImageTokenizer(network)))
    return folder


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def model(model_folder: Path) -> Model:
    return load(model_folder)


@pytest.fixture(scope="session")
def scenes() -> list[Document]:
    return [scene_document(scene, "shapes", {}, 16) for scene in islice(shape_scenes(), 0, 600, 50)]
