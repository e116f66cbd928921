"""Calumma: mixed-modal early-fusion models, from raw documents to a model that reads and draws."""

__version__ = "0.1.0"
