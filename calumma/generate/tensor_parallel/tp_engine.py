"""Tensor-parallel engine: a model sharded over several processes, used like any other.

This process is rank 0: it alone has the tokenizers and takes requests. Before each step
its engine sends the workers what it was given, so that all ranks take the same steps.

    with TensorParallelAsyncEngine(folder, tp_size=2) as engine:
        stream = engine.generate(["a large red circle"], seed=1)
"""

from collections.abc import Sequence
from pathlib import Path

from calumma.errors import GenerationError
from calumma.generate.async_engine import AsyncEngine
from calumma.generate.engine import Engine, NewToken
from calumma.generate.engine_defaults import resolve_engine_config
from calumma.generate.events import FinishReason
from calumma.generate.loglikelihood import SequenceLogprobs
from calumma.generate.model import Model
from calumma.generate.params import EngineConfig, Request
from calumma.generate.request import RequestState
from calumma.generate.tensor_parallel.launcher import STEP_TIMEOUT_SECONDS, WorkerGroup
from calumma.generate.tensor_parallel.worker import StepCommand


class TensorParallelModel(Model):
    """A model whose decoder is sharded; it has one engine, that of its worker group."""

    def __init__(self, group: WorkerGroup, *, dtype: str = "float32") -> None:
        super().__init__(group.components, device=group.device, dtype=dtype)
        self._group = group

    def new_engine(self, config: EngineConfig) -> Engine:
        """Start the group's engine; raises as `WorkerGroup.start_engines` does."""
        # Rank 0 has the least free memory, because it has the image tokenizer as well.
        config = resolve_engine_config(config, self.decoder)
        self._group.start_engines(config)
        return TensorParallelEngine(self, self._group, config)

    def prompt_logprobs(
        self, prompts: Sequence[Sequence[int]], num_top: int = 0, adapter: str = ""
    ) -> list[SequenceLogprobs]:
        """Raise `GenerationError`: the workers compute no logits of whole prompts."""
        raise GenerationError(
            "log probabilities of prompts are not computed with tensor parallelism; expected a server "
            "without --tensor-parallel-size, or no echo."
        )


class TensorParallelEngine(Engine):
    """An engine that commands the workers of a group."""

    def __init__(self, model: Model, group: WorkerGroup, config: EngineConfig) -> None:
        codes = model.image.config.codes_per_image
        super().__init__(model.decoder, model.vocabulary, codes, config=config)
        self._group = group
        self._numbers: dict[RequestState, int] = {}
        """Of all requests that are not finished."""

        self._count = 0
        self._new_requests: dict[int, Request] = {}
        self._aborted: list[int] = []
        self._last_token_ids: list[int] = []

    def add_request(self, state: RequestState) -> None:
        """Queue a request here, and on the workers before the next step."""
        if not state.is_finished:
            self._numbers[state] = self._count
            self._new_requests[self._count] = state.request
            self._count += 1
        super().add_request(state)

    def abort(self, state: RequestState, reason: FinishReason = "abort") -> None:
        """Finish a request here, and on the workers before the next step."""
        number = self._numbers.pop(state, None)
        if number is not None and not state.is_finished:
            self._aborted.append(number)
        super().abort(state, reason)

    def step(self) -> list[NewToken]:
        """Run one step on all ranks.

        Raises:
            RankError: a worker has exited, or the ranks could not finish the step; the group ends.
        """
        command = StepCommand(
            new_requests=self._new_requests, aborted=self._aborted, last_token_ids=self._last_token_ids
        )
        self._new_requests, self._aborted = {}, []
        try:
            self._group.send(command)
            new_tokens = super().step()
        except Exception as error:
            raise self._group.step_failed(error) from error
        self._last_token_ids = [id_ for _, id_ in new_tokens]
        self._numbers = {s: number for s, number in self._numbers.items() if not s.is_finished}
        return new_tokens


class TensorParallelAsyncEngine(AsyncEngine):
    """`AsyncEngine` of a model that is sharded over several processes."""

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
        """Start a group and its engine; arguments and errors as of `WorkerGroup`."""
        self.worker_group = WorkerGroup(folder, tp_size, device=device, dtype=dtype, timeout_seconds=timeout_seconds)
        try:
            self.model = TensorParallelModel(self.worker_group, dtype=dtype)
            """The tokenizers, for prompts and images."""

            super().__init__(self.model, config)
        except BaseException:
            self.worker_group.close()
            raise
        self.worker_group.on_failure(self.fail)

    def close(self, *, finish: bool = True) -> None:
        """Take no more requests, and end the thread and the workers."""
        super().close(finish=finish)
        self.worker_group.close()

    def __enter__(self) -> "TensorParallelAsyncEngine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close(finish=False)
