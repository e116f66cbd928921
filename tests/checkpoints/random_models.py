"""Random models with nontrivial norms and biases, for the tests of layouts."""

from pathlib import Path
from typing import Any

import torch

from calumma.checkpoints.model_folder import ModelComponents, save_model
from calumma.model.config import DecoderConfig
from calumma.model.decoder import Decoder
from calumma.tokens.folder import Tokenizers
from calumma.tokens.image import ImageTokenizer
from calumma.tokens.sequence import encode_image_codes
from calumma.tokens.vq.network import VQModel

MHA: dict[str, Any] = {"num_kv_heads": 8}
GQA: dict[str, Any] = {"num_kv_heads": 4}


def random_decoder(parts: ModelComponents, **change: Any) -> Decoder:
    """Return a random decoder of two layers with eight heads and model_dim 64."""
    shape: dict[str, Any] = {
        "vocabulary_size": parts.tokenizers.text.vocabulary.size,
        "model_dim": 64,
        "num_layers": 2,
        "num_heads": 8,
        "num_kv_heads": 4,
        "feed_forward_dim": 48,
        "max_seq_len": 96,
    }
    decoder = Decoder(DecoderConfig(**(shape | change))).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            parameter.copy_(torch.randn_like(parameter) / 5)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1)
    return decoder


def save_random_model(
    folder: Path, parts: ModelComponents, *, has_image_decoder: bool = True, **change: Any
) -> Decoder:
    """Save and return a random decoder with the tokenizers of `parts`."""
    decoder = random_decoder(parts, **change)
    tokenizers = parts.tokenizers if has_image_decoder else without_image_decoder(parts.tokenizers)
    save_model(folder, ModelComponents(decoder, tokenizers))
    return decoder


def without_image_decoder(tokenizers: Tokenizers) -> Tokenizers:
    """Return the tokenizers with a copy of the image tokenizer that lacks its decoder."""
    full = tokenizers.image.network
    network = VQModel(full.config, ["decoder"])
    network.load_state_dict(full.state_dict(), strict=False)
    return Tokenizers(tokenizers.text, ImageTokenizer(network))


def mixed_token_ids(parts: ModelComponents) -> torch.Tensor:
    """Return [2, T] int64: two sequences of text and images, one image first."""
    text, vocabulary = parts.tokenizers.text, parts.tokenizers.text.vocabulary
    red, blue = text.encode("a red circle"), text.encode("on blue")
    first, second = (encode_image_codes([3, 1, 4, 15], vocabulary), encode_image_codes([9, 2, 6, 5], vocabulary))
    sequences = [[0, *red, *first, *blue, *second, 2], [0, *second, *blue, *first, *red, 2]]
    return torch.tensor(sequences)


def folder_bytes(folder: Path) -> dict[str, bytes]:
    """Return the content of every file of a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(files)}
