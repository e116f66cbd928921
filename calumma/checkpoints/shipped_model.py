"""The model that the package ships: its folder, by the name `still-life`."""

import importlib.resources
from pathlib import Path

SHIPPED_MODEL = "still-life"
"""Name of the shipped model, for which `calumma generate`, `serve` and `load` need no folder."""


def shipped_model_folder() -> Path:
    """Return the folder of the shipped model inside the package."""
    return Path(str(importlib.resources.files("calumma"))) / "assets" / SHIPPED_MODEL


def resolve_model_folder(model: str | Path) -> Path:
    """Return the folder of a model; the shipped model's name is its folder unless one of that name exists."""
    folder = Path(model)
    is_name = str(model) == SHIPPED_MODEL and not folder.exists()
    return shipped_model_folder() if is_name else folder
