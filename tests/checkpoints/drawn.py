"""Random models whose norms and biases are no identity, for the tests of layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from calumma.checkpoints.model_folder import ModelParts, save_model
from calumma.model.config import DecoderConfig
from calumma.model.decoder import Decoder
from calumma.tokens.folder import Tokenizers
from calumma.tokens.image import ImageTokenizer
from calumma.tokens.sequence import encode_image_codes
from calumma.tokens.vq.network import VQModel

MHA: dict[str, Any] = {"num_kv_heads": 8}
GQA: dict[str, Any] = {"num_kv_heads": 4}


def drawn_decoder(parts: ModelParts, **change: Any) -> Decoder:
    """Two layers of 64 with eight heads, every parameter drawn."""
    shape: dict[str, Any] = {
        "vocabulary_size": parts.tokenizers.text.vocabulary.size,
        "model_dim": 64,
        "num_layers": 2,
        "num_heads": 8,
        "num_kv_heads": 4,
        "feed_forward_dim": 48,
        "max_tokens": 96,
    }
    decoder = Decoder(DecoderConfig(**(shape | change))).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            parameter.copy_(torch.randn_like(parameter) / 5)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1)
    return decoder


def save_drawn(folder: Path, parts: ModelParts, *, draws: bool = True, **change: Any) -> Decoder:
    """Save a drawn decoder with the parts' tokenizers."""
    decoder = drawn_decoder(parts, **change)
    tokenizers = parts.tokenizers if draws else without_image_decoder(parts.tokenizers)
    save_model(folder, ModelParts(decoder, tokenizers))
    return decoder


def without_image_decoder(tokenizers: Tokenizers) -> Tokenizers:
    """Return the tokenizers with a copy of the image tokenizer that lacks its decoder."""
    whole = tokenizers.image.network
    network = VQModel(whole.config, ["decoder"])
    network.load_state_dict(whole.state_dict(), strict=False)
    return Tokenizers(tokenizers.text, ImageTokenizer(network))


def mixed_ids(parts: ModelParts) -> torch.Tensor:
    """[2, T] int64: two rows of text with images in them, one begun by an image."""
    text, vocabulary = parts.tokenizers.text, parts.tokenizers.text.vocabulary
    red, blue = text.encode("a red circle"), text.encode("on blue")
    first, second = (
        encode_image_codes([3, 1, 4, 15], vocabulary),
        encode_image_codes([9, 2, 6, 5], vocabulary),
    )
    rows = [[0, *red, *first, *blue, *second, 2], [0, *second, *blue, *first, *red, 2]]
    return torch.tensor(rows)


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(files)}
