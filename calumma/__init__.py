"""Calumma: mixed-modal early-fusion models, from raw documents to text and image generation."""

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from calumma.generate.events import Sample
    from calumma.generate.model import Model, load
    from calumma.generate.params import ImageSampling, TextSampling

# A library configures no logging of its own; the command prints this logger's warnings.
logging.getLogger("calumma").addHandler(logging.NullHandler())

__version__ = "0.1.0"

__all__ = ["ImageSampling", "Model", "Sample", "TextSampling", "__version__", "load"]

_MODULE_OF = {
    "ImageSampling": "calumma.generate.params",
    "Model": "calumma.generate.model",
    "Sample": "calumma.generate.events",
    "TextSampling": "calumma.generate.params",
    "load": "calumma.generate.model",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `import calumma` imports no torch."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'calumma' has no attribute {name!r}")
    import sys
    from importlib import import_module

    from calumma.runtime import limit_thread_spinning

    if "torch" not in sys.modules:
        limit_thread_spinning()
    return getattr(import_module(_MODULE_OF[name]), name)
