"""A tiny model that many tests share: 16 codes, four to an image of 16 px, two layers of 32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from calumma.checkpoints.model_folder import ModelComponents
from calumma.documents.document import Document, Image, Text, Turn
from calumma.model.config import DecoderConfig
from calumma.model.decoder import Decoder
from calumma.shards.reader import ShardReader
from calumma.tokens.folder import Tokenizers
from calumma.tokens.image import ImageTokenizer
from calumma.tokens.text import TextTokenizer
from calumma.tokens.vq.config import VQConfig
from calumma.tokens.vq.network import VQModel
from tests.images import png
from tests.shard_building import build_shards

# Tiny tensors: a second thread costs more than it gives.
torch.set_num_threads(1)

TEXTS = ["a large red circle on a blue ground", "the small green cross, 123 times! äöü 猫"]


@pytest.fixture(scope="session")
def text_tokenizer() -> TextTokenizer:
    """300 text ids, 16 codes."""
    return TextTokenizer.train(TEXTS * 4, num_text=300, num_codes=16)


@pytest.fixture(scope="session")
def image_tokenizer() -> ImageTokenizer:
    """Random weights: every picture has some codes, no matter which."""
    torch.manual_seed(0)
    config = VQConfig(
        resolution=16,
        base_channels=32,
        channel_multipliers=(1, 1, 1, 1),
        num_res_blocks=1,
        latent_channels=8,
        code_dim=4,
        num_codes=16,
    )
    return ImageTokenizer(VQModel(config))


@pytest.fixture(scope="session")
def tokenizers(text_tokenizer: TextTokenizer, image_tokenizer: ImageTokenizer) -> Tokenizers:
    """Both."""
    return Tokenizers(text=text_tokenizer, image=image_tokenizer)


@pytest.fixture(scope="session")
def decoder_config(text_tokenizer: TextTokenizer) -> DecoderConfig:
    """Two layers of 32."""
    return DecoderConfig(
        vocabulary_size=text_tokenizer.vocabulary.size,
        model_dim=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        feed_forward_dim=48,
        max_seq_len=128,
    )


@pytest.fixture(scope="session")
def decoder(decoder_config: DecoderConfig) -> Decoder:
    """Weights so large that its logits differ widely; do not train on it."""
    made = Decoder(decoder_config)
    made.init_weights(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(
                torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) / 8
            )
    return made.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def model_parts(
    decoder: Decoder, text_tokenizer: TextTokenizer, image_tokenizer: ImageTokenizer
) -> ModelComponents:
    """The whole model."""
    return ModelComponents(decoder, Tokenizers(text_tokenizer, image_tokenizer))


@pytest.fixture(scope="session")
def documents() -> list[Document]:
    """Forty documents: captioned pictures, plain text, and questions about pictures."""
    made: list[Document] = []
    for number in range(16):
        picture = Image(data=png(number))
        parts = (Text(f"picture {number} of a red circle"), picture)
        made.append(Document(id=f"pair-{number}", source="pairs", content=parts))
        words = Text("words " * (number % 5 + 1) + f"{number}")
        made.append(Document(id=f"text-{number}", source="text", content=(words,)))
        if number % 2:
            asked = Turn("user", (Text("what is this?"), picture))
            answer = Turn("assistant", (Text(f"number {number}"),))
            made.append(Document(id=f"chat-{number}", source="chat", messages=(asked, answer)))
    return made


@pytest.fixture(scope="session")
def shards(
    documents: list[Document], tokenizers: Tokenizers, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The shards of `documents`."""
    folder = tmp_path_factory.mktemp("shards")
    build_shards(documents, tokenizers, folder)
    return folder


@pytest.fixture(scope="session")
def reader(shards: Path) -> ShardReader:
    """The shards, opened."""
    return ShardReader(shards)
