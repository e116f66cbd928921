"""Mixtures of sources: the weights of stage two, and statistics of packing, sources and modalities."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from calumma.batches.batch import PADDING, TokenModality
from calumma.batches.loader import PackedLoader
from calumma.errors import ConfigError

_MODALITIES = {TokenModality.TEXT: "text", TokenModality.IMAGE: "image", TokenModality.CONTROL: "control"}


def stage_two_weights(
    stage_one: Mapping[str, float], added: Mapping[str, float], *, stage_one_fraction: float = 0.5
) -> dict[str, float]:
    """Mix the stage-one weights with added sources.

    Args:
        stage_one: weights of stage one; they need not sum to 1.
        added: weights of the added sources; they may be in `stage_one` too.
        stage_one_fraction: fraction of stage two that is stage one's mixture (the paper's half).

    Returns:
        Weights that sum to 1.

    Raises:
        ConfigError: weights are negative or sum to 0, or the fraction is not in [0, 1].

    >>> stage_two_weights({"web": 3.0, "pairs": 1.0}, {"best": 1.0, "pairs": 1.0})
    {'web': 0.375, 'pairs': 0.375, 'best': 0.25}
    """
    if not 0.0 <= stage_one_fraction <= 1.0:
        raise ConfigError(f"stage_one_fraction={stage_one_fraction}; expected a fraction from 0 to 1.")
    weights: dict[str, float] = {}
    for part, fraction in ((stage_one, stage_one_fraction), (added, 1.0 - stage_one_fraction)):
        total = sum(part.values())
        if total <= 0 or min(part.values()) < 0:
            raise ConfigError(f"a stage's weights are {dict(part)}; expected none negative and one positive.")
        for name, weight in part.items():
            weights[name] = weights.get(name, 0.0) + fraction * weight / total
    return weights


@dataclass
class MixtureStats:
    """Counts over some rows of a loader."""

    num_rows: int = 0
    seq_len: int = 0
    num_tokens: int = 0
    """Number of inputs that are not padding."""

    num_loss_tokens: int = 0
    """Number of labels that count in the loss."""

    sequences: Counter[str] = field(default_factory=Counter)
    """Number of sequences, or chunks of long ones, by source."""

    labels: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Number of labels by source and modality: text, image or control."""

    max_length: int = 0
    """Length of the longest sequence in a row."""

    @property
    def non_padding_fraction(self) -> float:
        """Fraction of the inputs that is not padding."""
        return self.num_tokens / max(1, self.num_rows * self.seq_len)

    def label_fraction(self, modality: str) -> float:
        """Return the fraction of the labels with a modality."""
        count = sum(n for (_, name), n in self.labels.items() if name == modality)
        return count / max(1, self.num_tokens)


def measure_mixture(loader: PackedLoader, num_rows: int) -> MixtureStats:
    """Count over at least `num_rows` rows, from the loader's current state on."""
    stats = MixtureStats(seq_len=loader.config.seq_len)
    while stats.num_rows < num_rows:
        planned = loader.plan_rows()
        batch = loader.next()
        modalities = batch.modalities(loader.vocabulary)
        stats.num_rows += len(planned)
        stats.num_tokens += int((batch.document_ids != PADDING).sum())
        stats.num_loss_tokens += batch.num_loss_tokens
        for row, documents in enumerate(planned):
            for document, (ref, _) in enumerate(documents):
                source = loader.reader.source_of(ref.sequence)
                found = modalities[row][batch.document_ids[row] == document]
                stats.sequences[source] += 1
                stats.max_length = max(stats.max_length, len(found))
                for modality, name in _MODALITIES.items():
                    stats.labels[source, name] += int(np.count_nonzero(found == modality))
    return stats


def format_mixture_stats(stats: MixtureStats) -> list[str]:
    """Format a summary and a table of the sources."""
    sources = sorted(stats.sequences)
    width = max([len("source"), *map(len, sources)])
    lines = [
        f"{stats.num_rows:,} rows of {stats.seq_len:,} tokens: {stats.non_padding_fraction:.1%} "
        f"full, {stats.num_loss_tokens / max(1, stats.num_tokens):.1%} of it in the loss, "
        f"{stats.label_fraction('image'):.1%} image codes; longest sequence {stats.max_length:,}",
        f"{'source':{width}}" + "".join(f"{c:>12}" for c in ("sequences", "tokens", "fraction")),
    ]
    for name in sources:
        tokens = sum(n for (source, _), n in stats.labels.items() if source == name)
        fraction = f"{tokens / max(1, stats.num_tokens):.1%}"
        lines.append(f"{name:{width}}{stats.sequences[name]:>12,}{tokens:>12,}{fraction:>12}")
    return lines
