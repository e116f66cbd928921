"""A model that several processes hold together, asked as any other.

This process leads: it alone has tokenizers, and is asked. Its engine tells the followers before
each step what it was given, so that all ranks take the same steps.

    with SharedLive(folder, size=2) as live:
        answer = live.ask(["a large red circle"], seed=1)
"""

from __future__ import annotations

from pathlib import Path

from calumma.generate.async_engine import Live
from calumma.generate.engine import Engine
from calumma.generate.model import Model
from calumma.generate.params import EngineConfig, Request
from calumma.generate.request import RequestState
from calumma.generate.tensor_parallel.launcher import SECONDS, Group
from calumma.generate.tensor_parallel.worker import Orders


class SharedModel(Model):
    """A model whose decoder is one part of a whole; it has one engine, its group's."""

    def __init__(self, group: Group, *, dtype: str = "float32") -> None:
        super().__init__(group.parts, device=group.device, dtype=dtype)
        self._group = group

    def new_engine(self, budget: EngineConfig) -> Engine:
        """The group's engine. Raises as `Group.begin` does."""
        self._group.begin(budget)
        return LeadingEngine(self, self._group, budget)


class LeadingEngine(Engine):
    """An engine whose followers do as it does."""

    def __init__(self, model: Model, group: Group, budget: EngineConfig) -> None:
        codes = model.image.config.codes_per_image
        super().__init__(model.decoder, model.vocabulary, codes, budget=budget)
        self._group = group
        self._numbers: dict[RequestState, int] = {}
        """Of all requests that are not done."""

        self._count = 0
        self._asked: dict[int, Request] = {}
        self._dropped: list[int] = []
        self._chosen: list[int] = []

    def enqueue(self, work: RequestState) -> None:
        """Take in what `prepare` made; the followers do before the next step."""
        if not work.is_finished:
            self._numbers[work] = self._count
            self._asked[self._count] = work.request
            self._count += 1
        super().enqueue(work)

    def cancel(self, work: RequestState) -> None:
        """Stop a request between two steps; the followers do before the next one."""
        number = self._numbers.pop(work, None)
        if number is not None and not work.is_finished:
            self._dropped.append(number)
        super().cancel(work)

    def step(self) -> list[tuple[RequestState, int]]:
        """One step of everything that runs, by all ranks.

        Raises:
            RankError: a rank has ended, or could not finish it; the group has ended.
        """
        orders = Orders(asked=self._asked, dropped=self._dropped, chosen=self._chosen)
        self._asked, self._dropped = {}, []
        try:
            self._group.send(orders)
            chosen = super().step()
        except Exception as error:
            raise self._group.failed(error) from error
        self._chosen = [id_ for _, id_ in chosen]
        self._numbers = {work: n for work, n in self._numbers.items() if not work.is_finished}
        return chosen


class SharedLive(Live):
    """`Live` around a model that several processes hold together."""

    def __init__(
        self,
        folder: Path,
        size: int,
        *,
        device: str = "auto",
        dtype: str = "float32",
        budget: EngineConfig | None = None,
        seconds: float = SECONDS,
    ) -> None:
        """Start a group and its engine. Arguments and errors are those of `Group` and `Live`."""
        self.group = Group(folder, size, device=device, dtype=dtype, seconds=seconds)
        try:
            self.model = SharedModel(self.group, dtype=dtype)
            """Its tokenizers, for prompts and pictures."""

            super().__init__(self.model, budget)
        except BaseException:
            self.group.close()
            raise
        self.group.watch(self.fail)

    def close(self, *, finish: bool = True) -> None:
        """Take no more requests, and end the thread and the followers."""
        super().close(finish=finish)
        self.group.close()

    def __enter__(self) -> SharedLive:
        return self

    def __exit__(self, *_: object) -> None:
        self.close(finish=False)
