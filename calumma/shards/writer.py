"""Writing one piece of shards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from calumma.files import replacing, sha256
from calumma.shards.format import COUNTED, DTYPES, ENDS, IDS, SOURCES, ids_dtype
from calumma.shards.manifest import Piece
from calumma.vocabulary import Vocabulary


@dataclass
class PieceWriter:
    """Gathers the sequences of one piece, then writes its four files."""

    vocabulary: Vocabulary
    ids: list[int] = field(default_factory=list)
    counted: list[bool] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)

    skipped: dict[str, str] = field(default_factory=dict)
    """Documents left out, and why."""

    def add(self, ids: Sequence[int], counted: Sequence[bool], source: int) -> None:
        """Append a sequence of the source at this place in the manifest."""
        assert len(ids) == len(counted)
        self.ids += ids
        self.counted += counted
        self.ends.append(len(self.ids))
        self.sources.append(source)

    def write(self, folder: Path, name: str) -> Piece:
        """Write the files; each is whole or not there."""
        arrays = {
            IDS: np.asarray(self.ids, dtype=ids_dtype(self.vocabulary.size)),
            COUNTED: np.asarray(self.counted, dtype=DTYPES[COUNTED]),
            ENDS: np.asarray(self.ends, dtype=DTYPES[ENDS]),
            SOURCES: np.asarray(self.sources, dtype=DTYPES[SOURCES]),
        }
        for suffix, array in arrays.items():
            with replacing(folder / (name + suffix)) as temporary:
                temporary.write_bytes(array.tobytes())
        ids = arrays[IDS]
        codes = self.vocabulary.codes
        return Piece(
            name=name,
            num_sequences=len(self.ends),
            num_ids=len(ids),
            num_codes=int(((ids >= codes.start) & (ids < codes.stop)).sum()),
            num_images=int((ids == self.vocabulary.begin_image).sum()),
            sha256=sha256(folder / (name + IDS)),
            skipped=self.skipped,
        )
