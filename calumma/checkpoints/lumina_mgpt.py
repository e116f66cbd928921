"""Folders of Lumina-mGPT 1.0: Chameleon's names, norms of groups, and images of any size.

config.json               architectures: ["ChameleonXLLMXForConditionalGeneration"]
model*.safetensors        decoder; QK-norms have a row for each of `model_parallel_size` groups
tokenizer.json            text tokenizer of the Chameleon release

Its training leaves the image tokenizer out, and no folder has its decoder: both are those of the
Chameleon release (`--tokenizers`). Which sizes the images of a folder have is in its name alone.
Source: Lumina-mGPT (arXiv:2408.02657) and its public code.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from calumma.checkpoints.hf_chameleon import open_chameleon
from calumma.checkpoints.hf_weights import VQ_PREFIX, open_hf_weights
from calumma.checkpoints.lazy_tensor import LazyModel
from calumma.checkpoints.meta.release import open_release_tokenizers
from calumma.errors import CheckpointError
from calumma.tokens.text import TEXT_TOKENIZER_NAME
from calumma.vocabulary import ImageSizeTokens

LUMINA_ARCHITECTURE = "ChameleonXLLMXForConditionalGeneration"
TARGET_SIZES = (512, 768, 1024)
"""Sides in pixels of the square with the most cells that images may have, as in the models' names."""

_NEWLINE_NAME, _FIRST_SIDE_NAME = "<reserved08799>", "<reserved08800>"
_CELL = 16
"""Pixels of a cell's side."""


def is_lumina_mgpt(config: Any) -> bool:
    """Return whether a `config.json` is one of Lumina-mGPT."""
    return isinstance(config, dict) and LUMINA_ARCHITECTURE in (config.get("architectures") or ())


def lumina_image_sizes(names: Mapping[str, int], target_size: int) -> ImageSizeTokens:
    """Return the size tokens of Lumina-mGPT, by the token names of its tokenizer.

    Raises:
        CheckpointError: the tokenizer lacks the reserved tokens.
    """
    missing = [name for name in (_NEWLINE_NAME, _FIRST_SIDE_NAME) if name not in names]
    if missing:
        raise CheckpointError(
            f"the tokenizer has no token {missing[0]}; expected the text tokenizer of the Chameleon release. Name its "
            "folder with --tokenizers."
        )
    return ImageSizeTokens(
        newline=names[_NEWLINE_NAME], first_size=names[_FIRST_SIDE_NAME], max_cells=(target_size // _CELL) ** 2
    )


def set_lumina_sizes(model: LazyModel, target_size: int) -> None:
    """Give a model with Chameleon's tokenizer the size tokens of Lumina-mGPT."""
    tokenizer = model.text_tokenizer
    sizes = lumina_image_sizes(tokenizer.tokenizer.get_vocab(with_added_tokens=True), target_size)
    tokenizer.vocabulary = replace(tokenizer.vocabulary, image_sizes=sizes)


def open_lumina_mgpt(
    folder: Path, config: Mapping[str, Any], tokenizers: Path | None = None, target_size: int | None = None
) -> LazyModel:
    """Open a folder without reading its tensors.

    Args:
        folder: the model folder.
        config: its `config.json`.
        tokenizers: the folder of the Chameleon release's tokenizers; None takes the folder's own.
        target_size: one of `TARGET_SIZES`; None is what `image_sizes.json` says.

    Raises:
        CheckpointError: a file or a tensor is missing, or the sizes of images are not known.
    """
    if tokenizers is None and not any(name.startswith(VQ_PREFIX) for name in open_hf_weights(folder)):
        raise CheckpointError(
            f"{folder} is a folder of Lumina-mGPT without an image tokenizer; expected that of the Chameleon release. "
            f"Use `calumma convert {folder} DST --to calumma --tokenizers CHAMELEON/tokenizer --target-size 768`."
        )
    release = None if tokenizers is None else open_release_tokenizers(tokenizers)
    model = open_chameleon(folder, config, norm_groups=config.get("model_parallel_size") or 1, tokenizers=release)
    if target_size is not None:
        set_lumina_sizes(model, target_size)
    if model.text_tokenizer.vocabulary.image_sizes is None:
        raise CheckpointError(
            f"{folder} is a folder of Lumina-mGPT, and its sizes of images are not known; expected them from its "
            f"name. Use `calumma convert {folder} DST --to calumma --target-size 768`, or 512 or 1024."
        )
    model.require_matching_vocabulary(folder)
    return replace(model, layout="a Lumina-mGPT folder")


def lumina_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return Lumina-mGPT's `config.json` of one of Chameleon."""
    own = {"architectures": [LUMINA_ARCHITECTURE], "dropout": 0.0, "mask_image_logits": False, "z_loss_weight": 0.0}
    return {**config, **own}


def require_lumina_layout(model: LazyModel, where: object) -> None:
    """Check that Lumina-mGPT's layout can represent a model.

    Raises:
        CheckpointError: it cannot.
    """
    sizes = model.text_tokenizer.vocabulary.image_sizes
    names = model.text_tokenizer.tokenizer.get_vocab(with_added_tokens=True)
    expected = names.get(_NEWLINE_NAME), names.get(_FIRST_SIDE_NAME), 2
    found = None if sizes is None else (sizes.newline, sizes.first_size, sizes.cells_per_unit)
    if model.decoder_config.qk_norm != "layer" or found != expected:
        raise CheckpointError(
            f"{where} has no images in Lumina-mGPT's sizes; expected a model converted from its layout, in which "
            f"{_NEWLINE_NAME} is the newline ({TEXT_TOKENIZER_NAME}). Use --to calumma."
        )
