"""The data loader: an endless, resumable stream of packed batches from a mixture of sources.

The batches are a function of the seed and of the state alone, for any number of ranks and workers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from calumma.batches.batch import Batch
from calumma.batches.packing import BestFitBins, collate_rows
from calumma.batches.sampler import SequenceRef, SequenceSampler
from calumma.errors import ConfigError
from calumma.shards.reader import ShardReader
from calumma.text_format import quote


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
        if (self.num_workers != "auto" and self.num_workers < 0) or self.max_deferred < 0:
            raise ConfigError(
                f"data.num_workers={self.num_workers} and data.max_deferred={self.max_deferred}; expected at least 0 "
                "of each."
            )
        if not (0 <= self.image_first_prob <= 1 and 0 <= self.cond_dropout_prob <= 1):
            raise ConfigError(
                f"data.image_first_prob={self.image_first_prob} and data.cond_dropout_prob={self.cond_dropout_prob}; "
                "expected probabilities, from 0 to 1."
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
                f"data.global_batch_size={rows} does not divide into data.micro_batch_size={micro} rows on each of "
                f"{num_ranks} data-parallel ranks; the nearest that does is data.global_batch_size={nearest}."
            )
        return micro


@dataclass
class LoaderState:
    """The position of a loader; plain numbers, saved with every checkpoint.

    It is the same on every rank, and valid for any number of ranks and workers.
    """

    sequences_drawn: dict[str, int] = field(default_factory=dict)
    """Number of sequences drawn from each source for earlier windows."""

    rows_consumed: int = 0
    """Rows consumed from the current window, by all ranks together."""

    weights: dict[str, float] = field(default_factory=dict)
    """Weight of each source in the current window; they sum to 1."""

    deferred: list[list[int]] = field(default_factory=list)
    """Sequences drawn but not packed yet, as [index, epoch]; the window starts with them."""

    tokens_drawn: dict[str, int] = field(default_factory=dict)
    """Number of tokens drawn from each source under these weights, if they are in tokens."""


@dataclass(frozen=True)
class PackedWindow:
    """Rows that were packed together."""

    rows: list[list[tuple[SequenceRef, int]]]
    """The contents of each row: sequences, each with the number of its chunk."""

    end: LoaderState
    """The state at the start of the next window."""


class PackedLoader:
    """Batches of packed sequences from a mixture of sources.

    Sources are mixed by weighted fair queueing: the next sequence comes from the source with the
    smallest (count + 1) / weight, so the counts of two sources stay within one sequence of their
    shares (k - 1 for k sources). Each source is reshuffled every epoch. A window of batches is
    packed at a time, by best fit.
    """

    def __init__(self, reader: ShardReader, config: DataConfig, *, rank: int = 0, world_size: int = 1) -> None:
        """Create a loader; call `set_mixture` before the first batch.

        Args:
            reader: the shards.
            config: settings of packing and augmentation.
            rank: data-parallel rank of this process: it takes every `world_size`-th row.
            world_size: number of data-parallel ranks.

        Raises:
            ConfigError: a row is too short for the shards' images, or there are fewer rows than
                ranks.
        """
        codes = reader.manifest.codes_per_image
        needed = reader.manifest.vocabulary.max_image_tokens(codes)
        if codes and config.seq_len < needed:
            raise ConfigError(
                f"data.seq_len={config.seq_len} does not hold the images in {reader.folder}, "
                f"which take up to {needed} tokens each; expected at least that. Raise data.seq_len."
            )
        config.micro_batch_rows(world_size)  # raises if the rows cannot be divided
        self.reader = reader
        self.config = config
        self.rank, self.world_size = rank, world_size
        self.vocabulary = reader.manifest.vocabulary
        self.state = LoaderState()
        self._sampler = SequenceSampler(
            reader,
            seq_len=config.seq_len,
            image_first_prob=config.image_first_prob,
            cond_dropout_prob=config.cond_dropout_prob,
            seed=config.seed,
        )
        self._window: PackedWindow | None = None

    def set_mixture(self, weights: Mapping[str, float]) -> None:
        """Set the weights of the sources; if they change, a new window begins.

        Raises:
            ConfigError: a source is unknown or empty, or no weight is positive.
        """
        sources = self.reader.manifest.sources
        for name in weights:
            if name not in sources:
                raise ConfigError(
                    f"the mixture names source {quote(name)}, but {self.reader.folder} holds "
                    f"{', '.join(map(quote, sources))}. Fix the name, or build shards that hold it."
                )
        # Sorted by name: the order in a config must not decide how ties are broken.
        weights = dict(sorted(weights.items()))
        total = sum(weights.values())
        if total <= 0 or min(weights.values()) < 0:
            raise ConfigError(f"the mixture's weights are {dict(weights)}; expected none negative and one positive.")
        normalized = {name: weight / total for name, weight in weights.items() if weight > 0}
        if normalized != self.state.weights:
            start = self._current_window().end if self.state.rows_consumed else self.state
            self.restore(LoaderState(start.sequences_drawn, 0, normalized, start.deferred))

    @property
    def rows_in_window(self) -> int:
        """Number of rows that are packed together."""
        return self.config.global_batch_size * self.config.pack_window

    def next(self) -> Batch:
        """Return this rank's rows of the next batch."""
        batch = self.build_batch()
        self.state.rows_consumed += self.config.global_batch_size
        return batch

    def skip(self, num_batches: int) -> None:
        """Skip batches without reading them."""
        state = copy_state(self.state)
        for _ in range(num_batches):
            if state.rows_consumed == self.rows_in_window:
                state = copy_state(self._current_window().end)
                self.restore(state)
            state.rows_consumed += self.config.global_batch_size
        self.restore(state)

    def build_batch(self) -> Batch:
        """Return the batch that `next` would return, without advancing."""
        rows = [[self._sampler.load(ref)[n] for ref, n in row] for row in self.plan_rows()]
        return collate_rows(rows, self.config.seq_len, self.vocabulary.pad)

    def plan_rows(self) -> list[list[tuple[SequenceRef, int]]]:
        """Return the contents of this rank's rows of the batch that `next` would return.

        Returns:
            For each row its sequences in order of their document ids, each with the number of the
            chunk that is in the row.
        """
        if self.state.rows_consumed == self.rows_in_window:
            self.restore(self._current_window().end)
        start = self.state.rows_consumed
        stop = start + self.config.global_batch_size
        rows = self._current_window().rows
        return [rows[row] for row in range(start + self.rank, stop, self.world_size)]

    def end_state(self) -> LoaderState:
        """Return the state at the start of the next window."""
        return copy_state(self._current_window().end)

    def restore(self, state: LoaderState) -> None:
        """Continue from a saved state."""
        if _window_start(state) != _window_start(self.state):
            self._window = None
        self.state = copy_state(state)

    def _current_window(self) -> PackedWindow:
        if self._window is None:
            self._window = self._pack(copy_state(self.state))
        return self._window

    def _pack(self, state: LoaderState) -> PackedWindow:
        """Draw sequences until the rows are full; those that fit nowhere are deferred."""
        assert state.weights, "set_mixture() comes before next()"
        num_rows = self.rows_in_window
        bins = BestFitBins(num_rows, self.config.seq_len)
        rows: list[list[tuple[SequenceRef, int]]] = [[] for _ in range(num_rows)]
        deferred: list[SequenceRef] = []

        def insert(ref: SequenceRef, lengths: list[int]) -> bool:
            found = bins.insert(lengths)
            for chunk, row in enumerate(found or ()):
                rows[row].append((ref, chunk))
            return found is not None

        for ref in (SequenceRef(*pair) for pair in state.deferred):
            if not insert(ref, self._sampler.lengths(ref)):
                deferred.append(ref)
        schedule = _SourceSchedule(state, self.config.mixture_unit)
        while True:
            source = schedule.next_source()
            ref = self._sampler.sample(source, schedule.num_drawn[source])
            lengths = self._sampler.lengths(ref)
            if not insert(ref, lengths):
                if not any(rows):
                    raise self._too_long(ref, num_rows)
                if len(deferred) >= self.config.max_deferred:
                    break
                deferred.append(ref)
            schedule.advance(source, sum(lengths))
        # Early rows are filled first and best; shuffled, all batches of a window are alike.
        order = np.random.default_rng([self.config.seed, schedule.start]).permutation(num_rows)
        end = LoaderState(schedule.num_drawn, 0, state.weights, [list(ref) for ref in deferred], schedule.tokens_drawn)
        return PackedWindow([rows[row] for row in order], end)

    def _too_long(self, ref: SequenceRef, num_rows: int) -> ConfigError:
        return ConfigError(
            f"a sequence of source {self.reader.source_of(ref.sequence)!r} is longer than {num_rows} rows of "
            f"{self.config.seq_len} tokens; expected a larger data.seq_len or data.pack_window."
        )


def _window_start(state: LoaderState) -> tuple[object, ...]:
    return state.sequences_drawn, state.weights, state.deferred, state.tokens_drawn


def copy_state(state: LoaderState) -> LoaderState:
    """Copy a state deeply."""
    return LoaderState(
        dict(state.sequences_drawn),
        state.rows_consumed,
        dict(state.weights),
        [list(pair) for pair in state.deferred],
        dict(state.tokens_drawn),
    )


class _SourceSchedule:
    """Weighted fair queueing of the sources."""

    def __init__(self, state: LoaderState, unit: Literal["sequences", "tokens"]) -> None:
        self.weights = state.weights
        self.num_drawn = dict.fromkeys(state.weights, 0) | state.sequences_drawn
        self.start = sum(state.sequences_drawn.values())
        self.by_tokens = unit == "tokens"
        self.tokens_drawn: dict[str, int] = {}
        if self.by_tokens:
            self.tokens_drawn = dict.fromkeys(state.weights, 0) | state.tokens_drawn
        self._count = self.tokens_drawn if self.by_tokens else dict.fromkeys(state.weights, 0)

    def next_source(self) -> str:
        """Return the source that is furthest below its share."""
        offset = 0 if self.by_tokens else 1
        return min(self.weights, key=lambda n: (self._count[n] + offset) / self.weights[n])

    def advance(self, source: str, num_tokens: int) -> None:
        """Count a sequence that was drawn from a source."""
        self.num_drawn[source] += 1
        self._count[source] += num_tokens if self.by_tokens else 1
