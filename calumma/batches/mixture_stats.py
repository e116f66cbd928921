"""What a mixture comes to in rows: how full they are, and whose ids of which kind they hold."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from calumma.batches.batch import CONTROL, IMAGE, PADDING, TEXT
from calumma.batches.loader import PackedLoader

_KINDS = {TEXT: "text", IMAGE: "codes", CONTROL: "control"}


@dataclass
class MixtureStats:
    """Counts over some rows of a stream."""

    num_rows: int = 0
    seq_len: int = 0
    num_tokens: int = 0
    """Places of rows that are no padding."""

    num_loss_tokens: int = 0
    """Targets that count."""

    sequences: Counter[str] = field(default_factory=Counter)
    """Sequences, or pieces of long ones, by source."""

    labels: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Targets by source and kind: text, codes or control."""

    max_length: int = 0
    """Most places that one owner takes."""

    @property
    def non_padding_fraction(self) -> float:
        """Share of the places that is no padding."""
        return self.num_tokens / max(1, self.num_rows * self.seq_len)

    def label_fraction(self, kind: str) -> float:
        """Share of the targets that are of a kind."""
        of_kind = sum(n for (_, k), n in self.labels.items() if k == kind)
        return of_kind / max(1, self.num_tokens)


def measure_mixture(stream: PackedLoader, rows: int) -> MixtureStats:
    """Count over at least so many rows, from where the stream stands."""
    found = MixtureStats(seq_len=stream.config.seq_len)
    while found.num_rows < rows:
        planned = stream.plan_rows()
        batch = stream.next()
        kinds = batch.modalities(stream.vocabulary)
        found.num_rows += len(planned)
        found.num_tokens += int((batch.document_ids != PADDING).sum())
        found.num_loss_tokens += batch.num_loss_tokens
        for row, owners in enumerate(planned):
            for owner, (draw, _) in enumerate(owners):
                source = stream.reader.source_of(draw.sequence)
                mine = kinds[row][batch.document_ids[row] == owner]
                found.sequences[source] += 1
                found.max_length = max(found.max_length, len(mine))
                for kind, name in _KINDS.items():
                    found.labels[source, name] += int(np.count_nonzero(mine == kind))
    return found


def format_mixture_stats(found: MixtureStats) -> list[str]:
    """A survey, told in lines."""
    sources = sorted(found.sequences)
    width = max([len("source"), *map(len, sources)])
    lines = [
        f"{found.num_rows:,} rows of {found.seq_len:,}: {found.non_padding_fraction:.1%} full, "
        f"{found.num_loss_tokens / max(1, found.num_tokens):.1%} of it counted, "
        f"{found.label_fraction('codes'):.1%} codes of images; longest sequence {found.max_length:,}",
        f"{'source':{width}}" + "".join(f"{c:>12}" for c in ("sequences", "ids", "share")),
    ]
    for name in sources:
        ids = sum(n for (source, _), n in found.labels.items() if source == name)
        share = f"{ids / max(1, found.num_tokens):.1%}"
        lines.append(f"{name:{width}}{found.sequences[name]:>12,}{ids:>12,}{share:>12}")
    return lines
