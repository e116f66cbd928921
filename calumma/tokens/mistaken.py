"""A model's folder given where tokenizers are expected: the way out is a command."""

from __future__ import annotations

import json
from pathlib import Path

from calumma.errors import TokenizerError


def refuse_model(folder: Path) -> None:
    """Tell somebody who named a model how to come by its tokenizers.

    To be asked when a file of tokenizers is missing; any other folder is left to the caller.

    Raises:
        TokenizerError: the folder holds a model, in Hugging Face's layout or in Meta's, or is the
            part of a release that holds its tokenizers.
    """
    inside = (folder / "vqgan.yaml").is_file()
    model = folder.parent if inside and not _is_model(folder) else folder
    if _is_model(model):
        raise TokenizerError(
            f"{folder} is a model's folder; expected one of tokenizers alone. Write the model's into "
            f"one with `calumma convert {model} tokenizers --to tokenizers`, and name that."
        )


def _is_model(folder: Path) -> bool:
    if (folder / "params.json").is_file() or any(folder.glob("models/*/params.json")):
        return True
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    # The folder of a training run has a config.json too, which is no model's.
    return isinstance(config, dict) and "model_type" in config
