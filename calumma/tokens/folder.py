"""A folder of both tokenizers, and the container of the two.

tokenizer.json, image_sizes.json                            text; sizes of images, if not squares
image_tokenizer.json, image_tokenizer.safetensors           images
"""

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import torch

from calumma.errors import TokenizerError
from calumma.files import fingerprint
from calumma.tokens.image import ImageTokenizer
from calumma.tokens.text import TextTokenizer
from calumma.tokens.vq.inference import Precision

PREPROCESSING_VERSION = "content cropped, prompts padded; white background; Lanczos; 32 images per batch; 1"
"""Preprocessing of images and text; the number is increased when they change token ids."""


@dataclass(frozen=True)
class Tokenizers:
    """The text tokenizer and the image tokenizer of one vocabulary."""

    text: TextTokenizer
    image: ImageTokenizer

    def __post_init__(self) -> None:
        expected, found = self.text.vocabulary.num_codes, self.image.config.num_codes
        if expected != found:
            raise TokenizerError(
                f"the image tokenizer has {found} codes, the text tokenizer's vocabulary {expected}; expected the "
                f"same number. Train the text tokenizer with --num-codes {found}."
            )

    @property
    def has_image_decoder(self) -> bool:
        """Whether the image tokenizer has its decoder, so that codes can become images."""
        return self.image.has_decoder

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Twelve hex digits of each component that decides the token ids of a document."""
        sizes = self.text.vocabulary.image_sizes
        return {
            "text_tokenizer": fingerprint(self.text.tokenizer.to_str(pretty=False)),
            "image_tokenizer": self.image.fingerprint,
            "preprocessing": fingerprint(PREPROCESSING_VERSION),
            **({"image_sizes": fingerprint(json.dumps(asdict(sizes)))} if sizes else {}),
        }

    def save(self, folder: Path) -> None:
        """Write both tokenizers into `folder`, which is created if it does not exist.

        Raises:
            OutputError: the folder cannot be written.
        """
        self.image.save(folder)
        self.text.save(folder)

    @classmethod
    def load(
        cls, folder: Path, device: str | torch.device = "cpu", *, image_precision: Precision = "float32"
    ) -> "Tokenizers":
        """Read both tokenizers of a folder.

        `image_precision` is of the image encoder (`InferenceEncoder`), which is compiled too on a
        GPU unless it is "float32".

        Raises:
            TokenizerError: one is missing or broken, they have different numbers of codes, or the
                folder is a model's.
        """
        compiled = image_precision != "float32" and torch.device(device).type == "cuda"
        image = ImageTokenizer.load(folder, device=device, precision=image_precision, compiled=compiled)
        return cls(TextTokenizer.load(folder), image)
