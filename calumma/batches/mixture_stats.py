"""Statistics of a mixture: packing efficiency, and tokens by source and modality."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from calumma.batches.batch import PADDING, TokenModality
from calumma.batches.loader import PackedLoader

_MODALITIES = {TokenModality.TEXT: "text", TokenModality.IMAGE: "image", TokenModality.CONTROL: "control"}


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
