"""Rows without end, in an order that is a function of the seed and of how far one has come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from calumma.batches.batch import Batch
from calumma.batches.order import drop_condition, turn_round
from calumma.batches.pack import Item, Packer, cut
from calumma.errors import ConfigError
from calumma.shards.reader import ShardReader


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """How sequences become batches."""

    row_length: int = 256
    """Ids in a row."""

    num_rows: int = 16
    """Rows in a batch."""

    window: int = 8
    """Batches that are packed together: a larger window fills rows better."""

    image_first: float = 0.5
    """Probability that an image-text pair comes image first (the paper's half)."""

    drop_condition: float = 0.0
    """Probability that an image loses the text before it, so that guidance has a base."""

    seed: int = 0


@dataclass
class StreamState:
    """How far a stream has come; plain numbers, saved with every checkpoint."""

    drawn: dict[str, int] = field(default_factory=dict)
    """Sequences of each source that stood in rows of the windows used up."""

    rows_used: int = 0
    """Rows taken from the window that begins there."""

    weights: dict[str, float] = field(default_factory=dict)
    """Share of each source in that window; they sum to 1."""


class Stream:
    """Batches from a mixture of sources.

    In every window the sources take turns so that two have their shares to within one sequence,
    and more of them to within one for each further source;
    inside a source every sequence comes once an epoch, in an order of the epoch's own.
    """

    def __init__(self, reader: ShardReader, config: StreamConfig) -> None:
        """Open a stream; `mix` comes before the first batch.

        Raises:
            ConfigError: a row is too short for one of the shards' images.
        """
        codes = reader.manifest.codes_per_image
        if codes and config.row_length < codes + 2:
            raise ConfigError(
                f"row_length={config.row_length} holds none of the images in {reader.folder}, "
                f"which take {codes + 2} ids each; wanted at least that. Raise stream.row_length."
            )
        self.reader = reader
        self.config = config
        self.vocabulary = reader.manifest.vocabulary
        self.state = StreamState()
        self._numbers = {n: reader.of_source(n) for n in reader.manifest.sources}
        self._orders: dict[str, tuple[int, NDArray[np.int64]]] = {}
        self._window: tuple[Batch, dict[str, int]] | None = None

    def mix(self, weights: Mapping[str, float]) -> None:
        """Draw by these weights; where they differ from before, a new window begins.

        Raises:
            ConfigError: a source is unknown or empty, or no weight is positive.
        """
        filled = [name for name, numbers in self._numbers.items() if len(numbers)]
        for name in weights:
            if name not in filled:
                raise ConfigError(
                    f"the mixture names source {name!r}, but {self.reader.folder} holds "
                    f"{', '.join(filled)}. Mend the name, or build shards that hold it."
                )
        # In the order of names: how a config spells its table must not decide how ties fall.
        weights = dict(sorted(weights.items()))
        total = sum(weights.values())
        if total <= 0 or min(weights.values()) < 0:
            raise ConfigError(
                f"the mixture's weights are {dict(weights)}; wanted none negative and one positive."
            )
        wanted = {name: weight / total for name, weight in weights.items() if weight > 0}
        if wanted != self.state.weights:
            drawn = self._rows()[1] if self.state.rows_used else self.state.drawn
            self.restore(StreamState(drawn, 0, wanted))

    def next(self) -> Batch:
        """The next batch."""
        size = self.config.num_rows
        if self.state.rows_used == size * self.config.window:
            self.restore(StreamState(self._rows()[1], 0, self.state.weights))
        rows, _ = self._rows()
        start = self.state.rows_used
        self.state.rows_used += size
        return rows.rows(slice(start, start + size))

    def restore(self, state: StreamState) -> None:
        """Go on from a saved state."""
        self.state = StreamState(dict(state.drawn), state.rows_used, dict(state.weights))
        self._window = None

    def _rows(self) -> tuple[Batch, dict[str, int]]:
        """The window's rows, and what will have been drawn when they are used up."""
        if self._window is None:
            self._window = self._fill(self.state.drawn, self.state.weights)
        return self._window

    def _fill(
        self, drawn: Mapping[str, int], weights: Mapping[str, float]
    ) -> tuple[Batch, dict[str, int]]:
        """Draw until a sequence finds no room; that one opens the next window."""
        assert weights, "mix() comes before next()"
        packer = Packer(self.config.window * self.config.num_rows, self.config.row_length)
        counts = dict.fromkeys(weights, 0) | dict(drawn)
        begun = dict(counts)
        while True:
            name = min(weights, key=lambda n: (counts[n] - begun[n] + 1) / weights[n])
            if not packer.add(self._sequence(name, counts[name])):
                break
            counts[name] += 1
        if counts == begun:
            raise ConfigError(
                f"a sequence of source {name!r} is longer than {len(packer.room)} rows of "
                f"{self.config.row_length} ids; wanted a larger row_length or window."
            )
        # Early rows fill first and best; shuffled, all batches of a window look alike.
        seed = [self.config.seed, sum(begun.values())]
        order = np.random.default_rng(seed).permutation(len(packer.room))
        return packer.batch(self.vocabulary.pad).rows(order), counts

    def _sequence(self, source: str, draw: int) -> list[Item]:
        """The `draw`-th sequence of a source, turned and cut as its number and epoch decide."""
        numbers = self._numbers[source]
        epoch, place = divmod(draw, len(numbers))
        number = int(numbers[self._order(source, epoch)[place]])
        ids, counted = self.reader.read(number)
        random = np.random.default_rng([self.config.seed, number, epoch])
        image_first = bool(random.random() < self.config.image_first)
        dropped = bool(random.random() < self.config.drop_condition)
        turned = turn_round(ids, self.vocabulary, image_first=image_first)
        if dropped:
            bare = drop_condition(turned, counted, self.vocabulary)
            if bare is not None:
                return [(bare, np.ones(len(bare), dtype=np.bool_))]
        return cut((turned, counted), self.config.row_length, self.vocabulary)

    def _order(self, source: str, epoch: int) -> NDArray[np.int64]:
        if source not in self._orders or self._orders[source][0] != epoch:
            seed = [self.config.seed, self.reader.manifest.sources.index(source), epoch]
            order = np.random.default_rng(seed).permutation(len(self._numbers[source]))
            self._orders[source] = (epoch, order)
        return self._orders[source][1]
