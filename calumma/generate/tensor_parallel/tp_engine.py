"""A model that several processes hold together, asked as any other.

This process leads: it alone has tokenizers, and is asked. Its engine tells the followers before
each step what it was given, so that all ranks take the same steps.

    with SharedLive(folder, size=2) as live:
        answer = live.ask(["a large red circle"], seed=1)
"""

from __future__ import annotations

from pathlib import Path

from calumma.generate.async_engine import AsyncEngine
from calumma.generate.engine import Engine
from calumma.generate.model import Model
from calumma.generate.params import EngineConfig, Request
from calumma.generate.request import RequestState
from calumma.generate.tensor_parallel.launcher import STEP_TIMEOUT_SECONDS, WorkerGroup
from calumma.generate.tensor_parallel.worker import StepCommand


class TensorParallelModel(Model):
    """A model whose decoder is one part of a whole; it has one engine, its group's."""

    def __init__(self, group: WorkerGroup, *, dtype: str = "float32") -> None:
        super().__init__(group.components, device=group.device, dtype=dtype)
        self._group = group

    def new_engine(self, budget: EngineConfig) -> Engine:
        """The group's engine. Raises as `Group.begin` does."""
        self._group.start_engines(budget)
        return TensorParallelEngine(self, self._group, budget)


class TensorParallelEngine(Engine):
    """An engine whose followers do as it does."""

    def __init__(self, model: Model, group: WorkerGroup, budget: EngineConfig) -> None:
        codes = model.image.config.codes_per_image
        super().__init__(model.decoder, model.vocabulary, codes, config=budget)
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
        super().add_request(work)

    def cancel(self, work: RequestState) -> None:
        """Stop a request between two steps; the followers do before the next one."""
        number = self._numbers.pop(work, None)
        if number is not None and not work.is_finished:
            self._dropped.append(number)
        super().abort(work)

    def step(self) -> list[tuple[RequestState, int]]:
        """One step of everything that runs, by all ranks.

        Raises:
            RankError: a rank has ended, or could not finish it; the group has ended.
        """
        orders = StepCommand(
            new_requests=self._asked, aborted=self._dropped, last_token_ids=self._chosen
        )
        self._asked, self._dropped = {}, []
        try:
            self._group.send(orders)
            chosen = super().step()
        except Exception as error:
            raise self._group.step_failed(error) from error
        self._chosen = [id_ for _, id_ in chosen]
        self._numbers = {work: n for work, n in self._numbers.items() if not work.is_finished}
        return chosen


class TensorParallelAsyncEngine(AsyncEngine):
    """`Live` around a model that several processes hold together."""

    def __init__(
        self,
        folder: Path,
        tp_size: int,
        *,
        device: str = "auto",
        dtype: str = "float32",
        config: EngineConfig | None = None,
        timeout_seconds: float = STEP_TIMEOUT_SECONDS,
    ) -> None:
        """Start a group and its engine. Arguments and errors are those of `Group` and `Live`."""
        self.worker_group = WorkerGroup(
            folder, tp_size, device=device, dtype=dtype, timeout_seconds=timeout_seconds
        )
        try:
            self.model = TensorParallelModel(self.worker_group, dtype=dtype)
            """Its tokenizers, for prompts and pictures."""

            super().__init__(self.model, config)
        except BaseException:
            self.worker_group.close()
            raise
        self.worker_group.on_failure(self.fail)

    def close(self, *, finish: bool = True) -> None:
        """Take no more requests, and end the thread and the followers."""
        super().close(finish=finish)
        self.worker_group.close()

    def __enter__(self) -> TensorParallelAsyncEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close(finish=False)
