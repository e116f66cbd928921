"""Calumma: mixed-modal early-fusion models, from raw documents to a model that reads and draws."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from calumma.generate.events import Sample
    from calumma.generate.model import Model, load
    from calumma.generate.params import ImageSampling, TextSampling

__version__ = "0.1.0"

__all__ = ["ImageSampling", "Model", "Sample", "TextSampling", "__version__", "load"]

_HOMES = {
    "ImageSampling": "calumma.generate.params",
    "Model": "calumma.generate.model",
    "Sample": "calumma.generate.events",
    "TextSampling": "calumma.generate.params",
    "load": "calumma.generate.model",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for, so that `import calumma` needs no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'calumma' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
