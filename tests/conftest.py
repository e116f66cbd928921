"""A tiny shared model: 16 codes, four tokens per image of 16 px, two layers of width 32."""

import os
from collections.abc import Iterator
from multiprocessing.forkserver import ensure_running
from pathlib import Path

import huggingface_hub.constants
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
from tests.hub_server import Hub, serve_hub
from tests.images import png
from tests.shard_building import build_shards

# For tiny tensors one thread is fastest.
torch.set_num_threads(1)

if "PYTEST_XDIST_WORKER" in os.environ:
    # A run of many tests needs the fork server of tests.launch: it imports while the first tests run.
    import tests.launch  # noqa: F401  (sets what the server imports)

    ensure_running()

TEXTS = ["a large red circle on a blue ground", "the small green cross, 123 times! äöü 猫"]


@pytest.fixture(scope="session")
def text_tokenizer() -> TextTokenizer:
    """Train a tokenizer of 300 text tokens and 16 image codes."""
    return TextTokenizer.train(TEXTS * 4, num_text=300, num_codes=16)


@pytest.fixture(scope="session")
def image_tokenizer() -> ImageTokenizer:
    """Return an image tokenizer with random weights."""
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
    """Return both tokenizers."""
    return Tokenizers(text=text_tokenizer, image=image_tokenizer)


@pytest.fixture(scope="session")
def decoder_config(text_tokenizer: TextTokenizer) -> DecoderConfig:
    """Return a config of two layers of width 32."""
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
    """Return a decoder with large random weights, so that its logits differ; never train it."""
    decoder = Decoder(decoder_config)
    decoder.init_weights(0)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) / 8)
    return decoder.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def model_parts(decoder: Decoder, text_tokenizer: TextTokenizer, image_tokenizer: ImageTokenizer) -> ModelComponents:
    """Return decoder and tokenizers of a model."""
    return ModelComponents(decoder, Tokenizers(text_tokenizer, image_tokenizer))


@pytest.fixture(scope="session")
def documents() -> list[Document]:
    """Return forty documents: captioned images, plain text, and questions about images."""
    documents: list[Document] = []
    for number in range(16):
        image = Image(data=png(number))
        parts = (Text(f"picture {number} of a red circle"), image)
        documents.append(Document(id=f"pair-{number}", source="pairs", content=parts))
        words = Text("words " * (number % 5 + 1) + f"{number}")
        documents.append(Document(id=f"text-{number}", source="text", content=(words,)))
        if number % 2:
            question = Turn("user", (Text("what is this?"), image))
            answer = Turn("assistant", (Text(f"number {number}"),))
            documents.append(Document(id=f"chat-{number}", source="chat", messages=(question, answer)))
    return documents


@pytest.fixture(scope="session")
def shards(documents: list[Document], tokenizers: Tokenizers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the shards of `documents`."""
    folder = tmp_path_factory.mktemp("shards")
    build_shards(documents, tokenizers, folder)
    return folder


@pytest.fixture(scope="session")
def reader(shards: Path) -> ShardReader:
    """Open the shards."""
    return ShardReader(shards)


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let torch have two threads, as if the user had set no number."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Serve a Hub that huggingface_hub uses, with a cache of its own and no token."""
    constants = huggingface_hub.constants
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with serve_hub() as hub:
        files = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
        yield hub
