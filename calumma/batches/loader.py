"""Rows without end, in an order that is a function of the seed and of how far one has come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from calumma.batches.batch import Batch
from calumma.batches.packing import BestFitBins, collate_rows
from calumma.batches.sampler import SequenceRef, SequenceSampler
from calumma.errors import ConfigError
from calumma.shards.reader import ShardReader


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How sequences become batches."""

    seq_len: int = 256
    """Tokens of a packed sequence, one row of a batch."""

    global_batch_size: int = 16
    """Rows of one optimizer step, on all ranks together."""

    micro_batch_size: int | Literal["auto"] = "auto"
    """Rows that a data-parallel rank passes through the model at once; "auto" is its whole share.
    With fewer, gradients are accumulated: less memory, the same step but for rounding."""

    pack_window: int = 8
    """Batches that are packed together; a larger window leaves less padding."""

    max_deferred: int = 16
    """Sequences that may fit into no row of a window and be deferred to the next one before the
    window counts as full; more leaves less padding."""

    mixture_unit: Literal["sequences", "tokens"] = "sequences"
    """Unit of the mixture's weights."""

    image_first_prob: float = 0.5
    """Probability that an image-text pair comes image first (the paper's half)."""

    cond_dropout_prob: float = 0.0
    """Probability that the text before an image is dropped, which trains the unconditional branch
    of classifier-free guidance."""

    num_workers: int | Literal["auto"] = "auto"
    """Processes that prepare batches in advance; the batches do not depend on it. "auto" is 2 on a
    GPU and 0 on a CPU, where a step is slow and needs the cores."""

    seed: int = 0
    """Seed of the order, the augmentation and the packing."""

    def __post_init__(self) -> None:
        sizes = (self.seq_len, self.global_batch_size, self.micro_batch_size, self.pack_window)
        if any(size != "auto" and size < 1 for size in sizes):
            raise ConfigError(
                f"data.seq_len={self.seq_len}, data.global_batch_size={self.global_batch_size}, "
                f"data.micro_batch_size={self.micro_batch_size} and data.pack_window="
                f"{self.pack_window}; expected at least 1 of each."
            )

    def micro_batch_rows(self, num_ranks: int) -> int:
        """Return the most rows that a rank passes through the model at once.

        Args:
            num_ranks: data-parallel ranks.

        Raises:
            ConfigError: there are fewer rows than ranks, or the rows do not divide.
        """
        rows, micro = self.global_batch_size, self.micro_batch_size
        if rows < num_ranks:
            raise ConfigError(
                f"data.global_batch_size={rows} for {num_ranks} data-parallel ranks; expected at "
                "least one row for each. Raise data.global_batch_size."
            )
        if micro == "auto":
            return -(-rows // num_ranks)
        at_once = micro * num_ranks
        if rows % at_once:
            nearest = max(1, round(rows / at_once)) * at_once
            raise ConfigError(
                f"data.global_batch_size={rows} does not divide into data.micro_batch_size={micro} "
                f"rows on each of {num_ranks} data-parallel ranks; the nearest that does is "
                f"data.global_batch_size={nearest}."
            )
        return micro


@dataclass
class LoaderState:
    """How far a stream has come; plain numbers, saved with every checkpoint.

    It is the same on every rank, and holds for any number of ranks and workers.
    """

    sequences_drawn: dict[str, int] = field(default_factory=dict)
    """Sequences of each source that were drawn for the windows used up."""

    rows_consumed: int = 0
    """Rows taken, by all ranks together, from the window that begins there."""

    weights: dict[str, float] = field(default_factory=dict)
    """Share of each source in that window; they sum to 1."""

    deferred: list[list[int]] = field(default_factory=list)
    """Drawn sequences that found no room yet, as [number, epoch]; the window begins with them."""

    tokens_drawn: dict[str, int] = field(default_factory=dict)
    """Ids of each source under these weights, where weights are shares of ids."""


@dataclass(frozen=True)
class PackedWindow:
    """Rows that were packed together."""

    rows: list[list[tuple[SequenceRef, int]]]
    """In each row the draws, with which of its items a draw has there."""

    end: LoaderState
    """Where the next window begins."""


class PackedLoader:
    """Batches from a mixture of sources.

    In every window the sources take turns so that two have their shares to within one sequence,
    and more of them to within one for each further source;
    inside a source every sequence comes once an epoch, in an order of the epoch's own.
    """

    def __init__(
        self, reader: ShardReader, config: DataConfig, *, rank: int = 0, world_size: int = 1
    ) -> None:
        """Open a stream; `mix` comes before the first batch.

        Args:
            reader: the shards.
            config: how sequences become batches.
            rank: which rows of every batch are ours: `rank`, `rank + size`, ...
            size: how many share the rows.

        Raises:
            ConfigError: a row is too short for one of the shards' images, or there are fewer rows
                than ranks.
        """
        codes = reader.manifest.codes_per_image
        if codes and config.seq_len < codes + 2:
            raise ConfigError(
                f"data.seq_len={config.seq_len} holds none of the images in {reader.folder}, "
                f"which take {codes + 2} tokens each; expected at least that. Raise data.seq_len."
            )
        config.micro_batch_rows(world_size)  # refuses what cannot be shared
        self.reader = reader
        self.config = config
        self.rank, self.world_size = rank, world_size
        self.vocabulary = reader.manifest.vocabulary
        self.state = LoaderState()
        self._sampler = SequenceSampler(
            reader,
            row_length=config.seq_len,
            image_first=config.image_first_prob,
            cond_dropout_prob=config.cond_dropout_prob,
            seed=config.seed,
        )
        self._window: PackedWindow | None = None

    def set_mixture(self, weights: Mapping[str, float]) -> None:
        """Draw by these weights; where they differ from before, a new window begins.

        Raises:
            ConfigError: a source is unknown or empty, or no weight is positive.
        """
        filled = self.reader.manifest.sources
        for name in weights:
            if name not in filled:
                raise ConfigError(
                    f"the mixture names source {name!r}, but {self.reader.folder} holds "
                    f"{', '.join(filled)}. Fix the name, or build shards that hold it."
                )
        # In the order of names: how a config spells its table must not decide how ties fall.
        weights = dict(sorted(weights.items()))
        total = sum(weights.values())
        if total <= 0 or min(weights.values()) < 0:
            raise ConfigError(
                f"the mixture's weights are {dict(weights)}; expected none negative and one positive."
            )
        wanted = {name: weight / total for name, weight in weights.items() if weight > 0}
        if wanted != self.state.weights:
            begin = self._current_window().end if self.state.rows_consumed else self.state
            self.restore(LoaderState(begin.sequences_drawn, 0, wanted, begin.deferred))

    @property
    def rows_in_window(self) -> int:
        """Rows that are packed together."""
        return self.config.global_batch_size * self.config.pack_window

    def next(self) -> Batch:
        """Our rows of the next batch."""
        batch = self.build_batch()
        self.state.rows_consumed += self.config.global_batch_size
        return batch

    def skip(self, batches: int) -> None:
        """Pass over so many batches, without reading them."""
        state = copy_state(self.state)
        for _ in range(batches):
            if state.rows_consumed == self.rows_in_window:
                state = copy_state(self._current_window().end)
                self.restore(state)
            state.rows_consumed += self.config.global_batch_size
        self.restore(state)

    def build_batch(self) -> Batch:
        """Our rows of the batch that `next` gives."""
        items = [
            [self._sampler.load(draw)[which] for draw, which in row] for row in self.plan_rows()
        ]
        return collate_rows(items, self.config.seq_len, self.vocabulary.pad)

    def plan_rows(self) -> list[list[tuple[SequenceRef, int]]]:
        """What stands in our rows of the batch that `next` gives.

        Returns:
            For each row its owners in order: a draw, and which of the draw's items it is, from 0.
        """
        if self.state.rows_consumed == self.rows_in_window:
            self.restore(self._current_window().end)
        start = self.state.rows_consumed
        ours = range(start + self.rank, start + self.config.global_batch_size, self.world_size)
        return [self._current_window().rows[row] for row in ours]

    def end_state(self) -> LoaderState:
        """Where the window after the one that the state stands in begins."""
        return copy_state(self._current_window().end)

    def restore(self, state: LoaderState) -> None:
        """Go on from a saved state."""
        begins = (state.sequences_drawn, state.weights, state.deferred, state.tokens_drawn)
        known = (
            self.state.sequences_drawn,
            self.state.weights,
            self.state.deferred,
            self.state.tokens_drawn,
        )
        if begins != known:
            self._window = None
        self.state = copy_state(state)

    def _current_window(self) -> PackedWindow:
        """The window that the state stands in."""
        if self._window is None:
            self._window = self._pack(copy_state(self.state))
        return self._window

    def _pack(self, at: LoaderState) -> PackedWindow:
        """Draw until the rows are full; what found no room opens the next window."""
        assert at.weights, "mix() comes before next()"
        num_rows = self.rows_in_window
        rooms = BestFitBins(num_rows, self.config.seq_len)
        rows: list[list[tuple[SequenceRef, int]]] = [[] for _ in range(num_rows)]
        waiting: list[SequenceRef] = []
        for draw in (SequenceRef(*pair) for pair in at.deferred):
            if not self._insert(draw, self._sampler.lengths(draw), rooms, rows):
                waiting.append(draw)
        turns = _SourceSchedule(at, self.config.mixture_unit)
        while True:
            name = turns.next_source()
            draw = self._sampler.sample(name, turns.drawn[name])
            lengths = self._sampler.lengths(draw)
            if not self._insert(draw, lengths, rooms, rows):
                self._require_room(draw, rows)
                if len(waiting) >= self.config.max_deferred:
                    break
                waiting.append(draw)
            turns.advance(name, sum(lengths))
        # Early rows fill first and best; shuffled, all batches of a window look alike.
        order = np.random.default_rng([self.config.seed, turns.begun]).permutation(num_rows)
        end = LoaderState(turns.drawn, 0, at.weights, [list(d) for d in waiting], turns.amounts)
        return PackedWindow([rows[row] for row in order], end)

    def _insert(
        self,
        draw: SequenceRef,
        lengths: list[int],
        rooms: BestFitBins,
        rows: list[list[tuple[SequenceRef, int]]],
    ) -> bool:
        """Put all items of a draw into rows, or none."""
        found = rooms.insert(lengths)
        for which, row in enumerate(found or ()):
            rows[row].append((draw, which))
        return found is not None

    def _require_room(self, draw: SequenceRef, rows: list[list[tuple[SequenceRef, int]]]) -> None:
        """Refuse a sequence that found no room even in empty rows."""
        if not any(rows):
            raise ConfigError(
                f"a sequence of source {self.reader.source_of(draw.sequence)!r} is longer than "
                f"{len(rows)} rows of {self.config.seq_len} tokens; expected a larger data.seq_len or "
                "data.pack_window."
            )


def copy_state(state: LoaderState) -> LoaderState:
    """A state that does not change with this one."""
    return LoaderState(
        dict(state.sequences_drawn),
        state.rows_consumed,
        dict(state.weights),
        [list(pair) for pair in state.deferred],
        dict(state.tokens_drawn),
    )


class _SourceSchedule:
    """Whose turn it is."""

    def __init__(self, at: LoaderState, mixture_unit: Literal["sequences", "tokens"]) -> None:
        self.weights = at.weights
        self.drawn = dict.fromkeys(at.weights, 0) | at.sequences_drawn
        self.begun = sum(at.sequences_drawn.values())
        self.by_ids = mixture_unit == "tokens"
        self.amounts = dict.fromkeys(at.weights, 0) | at.tokens_drawn if self.by_ids else {}
        self._count = self.amounts if self.by_ids else dict.fromkeys(at.weights, 0)

    def next_source(self) -> str:
        """The source that is furthest behind its share."""
        ahead = 0 if self.by_ids else 1
        return min(self.weights, key=lambda n: (self._count[n] + ahead) / self.weights[n])

    def advance(self, name: str, num_ids: int) -> None:
        """A sequence of so many ids was drawn."""
        self.drawn[name] += 1
        self._count[name] += num_ids if self.by_ids else 1
