"""What a mixture comes to in rows: how full they are, and whose ids of which kind they hold."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from calumma.batches.batch import CONTROL, IMAGE, PADDING, TEXT
from calumma.batches.loader import Stream

_KINDS = {TEXT: "text", IMAGE: "codes", CONTROL: "control"}


@dataclass
class Survey:
    """Counts over some rows of a stream."""

    rows: int = 0
    row_length: int = 0
    placed: int = 0
    """Places of rows that are no padding."""

    counted: int = 0
    """Targets that count."""

    sequences: Counter[str] = field(default_factory=Counter)
    """Sequences, or pieces of long ones, by source."""

    targets: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Targets by source and kind: text, codes or control."""

    longest: int = 0
    """Most places that one owner takes."""

    @property
    def fill(self) -> float:
        """Share of the places that is no padding."""
        return self.placed / max(1, self.rows * self.row_length)

    def share(self, kind: str) -> float:
        """Share of the targets that are of a kind."""
        of_kind = sum(n for (_, k), n in self.targets.items() if k == kind)
        return of_kind / max(1, self.placed)


def survey(stream: Stream, rows: int) -> Survey:
    """Count over at least so many rows, from where the stream stands."""
    found = Survey(row_length=stream.config.seq_len)
    while found.rows < rows:
        planned = stream.planned()
        batch = stream.next()
        kinds = batch.modalities(stream.vocabulary)
        found.rows += len(planned)
        found.placed += int((batch.document_ids != PADDING).sum())
        found.counted += batch.num_loss_tokens
        for row, owners in enumerate(planned):
            for owner, (draw, _) in enumerate(owners):
                source = stream.reader.source(draw.number)
                mine = kinds[row][batch.document_ids[row] == owner]
                found.sequences[source] += 1
                found.longest = max(found.longest, len(mine))
                for kind, name in _KINDS.items():
                    found.targets[source, name] += int(np.count_nonzero(mine == kind))
    return found


def survey_lines(found: Survey) -> list[str]:
    """A survey, told in lines."""
    sources = sorted(found.sequences)
    width = max([len("source"), *map(len, sources)])
    lines = [
        f"{found.rows:,} rows of {found.row_length:,}: {found.fill:.1%} full, "
        f"{found.counted / max(1, found.placed):.1%} of it counted, "
        f"{found.share('codes'):.1%} codes of images; longest sequence {found.longest:,}",
        f"{'source':{width}}" + "".join(f"{c:>12}" for c in ("sequences", "ids", "share")),
    ]
    for name in sources:
        ids = sum(n for (source, _), n in found.targets.items() if source == name)
        share = f"{ids / max(1, found.placed):.1%}"
        lines.append(f"{name:{width}}{found.sequences[name]:>12,}{ids:>12,}{share:>12}")
    return lines
