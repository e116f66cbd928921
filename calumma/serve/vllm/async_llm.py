"""Backend of a vLLM engine that this process starts (`calumma serve --backend vllm`).

An event loop in a thread of its own awaits the outputs of vLLM's `AsyncLLM`, whose engine is a
child process.
"""

import asyncio
import itertools
import math
import threading
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from calumma.errors import ConfigError, GenerationError
from calumma.generate.async_engine import RequestOutputStream
from calumma.generate.params import EngineConfig, EngineStats, Request
from calumma.generate.request import RequestState
from calumma.runtime import dtype_name, prepare_for_vllm
from calumma.serve.api_errors import APIError, server_stopping
from calumma.serve.vllm.extra_args import num_blocks_of, vllm_extra_args
from calumma.serve.vllm.frontend_model import FrontendModel
from calumma.serve.vllm.gateway import num_vllm_logprobs, put_token
from calumma.serve.vllm.plugin import require_vllm

LOGITS_PROCESSOR = "calumma.serve.vllm.logits_processor:GrammarLogitsProcessor"
SCHEDULER = "calumma.serve.vllm.guidance_scheduler.GuidanceScheduler"

_MAX_CACHED_TOKENS_ON_CPU = 16_384
"""Capacity of the KV cache on a CPU, as this package's engine has it."""

_MAX_LOGPROBS = 21
"""Tokens of a request whose log probabilities are returned, at most: 20 of the API and the sampled one."""


def engine_arguments(
    folder: Path,
    config: EngineConfig,
    *,
    device: torch.device,
    max_seq_len: int,
    dtype: str = "auto",
    quantization: str | None = None,
    tensor_parallel_size: int = 1,
) -> dict[str, Any]:
    """Return the arguments of vLLM's `AsyncEngineArgs`.

    Args:
        folder: the model folder.
        config: of this package's engine, whose settings vLLM's are named after.
        device: the one that vLLM was built for.
        max_seq_len: longest sequence of the model.
        dtype: as in `load`.
        quantization: a method of vLLM's.
        tensor_parallel_size: number of processes that share the decoder.
    """
    is_cpu = device.type == "cpu"
    block_size = 32 if is_cpu else 16
    capacity = config.max_cached_tokens
    if capacity is None and is_cpu:
        capacity = max(_MAX_CACHED_TOKENS_ON_CPU, 2 * max_seq_len)
    compiles = not is_cpu if config.compile is None else config.compile
    arguments: dict[str, Any] = {
        "model": str(folder),
        "skip_tokenizer_init": True,
        "dtype": dtype_name(dtype, device),
        "max_model_len": max_seq_len,
        "max_num_seqs": config.max_num_seqs,
        "block_size": block_size,
        "enable_prefix_caching": config.enable_prefix_caching,
        "enforce_eager": not compiles,
        "gpu_memory_utilization": config.gpu_memory_utilization,
        "async_scheduling": False,
        "scheduler_cls": SCHEDULER,
        "logits_processors": [LOGITS_PROCESSOR],
        "logprobs_mode": "processed_logits",
        "max_logprobs": _MAX_LOGPROBS,
        "tensor_parallel_size": tensor_parallel_size,
        "disable_log_stats": True,
    }
    if capacity is not None:
        # One block more: vLLM reserves one.
        arguments["num_gpu_blocks_override"] = -(-capacity // block_size) + 1
    if quantization is not None:
        arguments["quantization"] = quantization
    return arguments


class AsyncLLMBackend:
    """Runs a vLLM engine; any thread may submit requests and read outputs."""

    def __init__(self, model: FrontendModel, arguments: Mapping[str, Any]) -> None:
        """Start the engine, which takes seconds to minutes.

        Args:
            model: tokenizers of the model folder.
            arguments: see `engine_arguments`.

        Raises:
            ConfigError: vLLM is not installed, is no tested version, or cannot run the model.
        """
        self.model = model
        require_vllm()
        prepare_for_vllm()
        self._running: dict[RequestOutputStream, asyncio.Task[None]] = {}
        self._is_closed = False
        self._request_ids = map("calumma-{}".format, itertools.count(1))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="calumma-vllm", daemon=True)
        self._thread.start()
        try:
            self._llm = self._call(self._start(arguments))
        except Exception as error:
            self._stop_loop()
            raise ConfigError(
                f"vLLM cannot run this model ({_first_sentence(error)}); expected an engine that starts. "
                "See its log above."
            ) from error
        cache = self._llm.vllm_config.cache_config
        self.block_size, self.num_blocks = cache.block_size, cache.num_gpu_blocks - 1

    async def _start(self, arguments: Mapping[str, Any]) -> Any:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        return AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))

    def _call(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    @property
    def error(self) -> BaseException | None:
        """Error that stopped the engine, if any."""
        return self._llm.dead_error if self._llm.errored else None

    @property
    def stats(self) -> EngineStats:
        """Number of running requests, waiting ones among them, and the capacity of the KV cache."""
        count = len(self._running)
        return EngineStats(
            num_running=count,
            num_waiting=0,
            num_sequences=count,
            num_reserved_tokens=0,
            max_cached_tokens=self.num_blocks * self.block_size,
        )

    def submit(self, request: Request, partial_image_interval: int | None = None) -> RequestOutputStream:
        """Start a request.

        Raises:
            GenerationError: it can never be processed.
            APIError: the backend is closed.
        """
        state = self.model.state_of(request)
        if (found := num_blocks_of(state, self.block_size)) > self.num_blocks:
            raise GenerationError(
                f"the request can need {found} blocks of {self.block_size} tokens in vLLM's KV cache, guidance "
                f"included; expected at most {self.num_blocks}. Lower max_tokens, or raise --max-cached-tokens."
            )
        if self._is_closed:
            raise server_stopping()
        decoder = self.model.output_decoder(request, partial_image_interval)
        output: RequestOutputStream = RequestOutputStream(
            self.model, state, decoder, lambda: self._on_loop(self._abort, output)
        )
        self._on_loop(self._launch, output, state)
        return output

    def _on_loop(self, function: Callable[..., None], *arguments: Any) -> None:
        self._loop.call_soon_threadsafe(function, *arguments)

    def _launch(self, output: RequestOutputStream, state: RequestState) -> None:
        task = self._loop.create_task(self._generate(output, state, next(self._request_ids)))
        self._running[output] = task
        task.add_done_callback(partial(self._finish, output, state))

    async def _generate(self, output: RequestOutputStream, state: RequestState, request_id: str) -> None:
        """Put the tokens of a request into its output."""
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        request, eos = state.request, self.model.vocabulary.eos
        params = SamplingParams(
            max_tokens=state.grammar.max_remaining_tokens,
            temperature=0.0,
            stop_token_ids=[eos, *request.stop_token_ids],
            logprobs=num_vllm_logprobs(request),
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            extra_args=vllm_extra_args(request),
        )
        if state.is_finished:
            return
        prompt = TokensPrompt(prompt_token_ids=list(request.prompt_token_ids))
        async for result in self._llm.generate(prompt, params, request_id):
            new = result.outputs[0]
            for id_, tops in zip(new.token_ids, new.logprobs, strict=True):
                if state.is_finished or not state.grammar.allows(id_):
                    raise _engine_failed(f"returned the disallowed token {id_}")
                values = {other: top.logprob for other, top in tops.items() if top.logprob > -math.inf}
                put_token(output, state, id_, values)
            if new.finish_reason == "error":
                raise _engine_failed("rejected a request")

    def _finish(self, output: RequestOutputStream, state: RequestState, task: asyncio.Task[None]) -> None:
        """End an output whose task is done."""
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, APIError):
            error = _engine_failed(f"failed ({type(error).__name__})")
        if not state.is_finished:
            state.finish("abort" if task.cancelled() else None)
        output.finish(error)
        del self._running[output]

    def _abort(self, output: RequestOutputStream) -> None:
        if output in self._running:
            self._running[output].cancel()

    def close(self, *, finish: bool = True) -> None:
        """Accept no more requests; finish the running ones or abort them, and stop the engine."""
        if self._is_closed:
            return
        self._is_closed = True
        self._call(self._drain(finish))
        self._stop_loop()

    async def _drain(self, finish: bool) -> None:
        tasks = list(self._running.values())
        if not finish:
            for task in tasks:
                task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        # On the loop, so that vLLM's reader of outputs ends before its engine does.
        self._llm.shutdown()

    def _stop_loop(self) -> None:
        self._on_loop(self._loop.stop)
        self._thread.join()


def _first_sentence(error: Exception) -> str:
    """Return the first sentence of an error of vLLM, without what pydantic writes around it.

    >>> _first_sentence(ValueError("1 error\\n  Value error, Unknown method: x. Must be y. [type=value_error]"))
    'Unknown method: x'
    """
    lines = str(error).splitlines() or [type(error).__name__]
    line = next((line for line in lines if " [type=" in line), lines[0]).partition(" [type=")[0]
    return line.strip().removeprefix("Value error, ").partition(". ")[0].removesuffix(".")


def _engine_failed(what: str) -> APIError:
    return APIError(
        502, f"the vLLM engine {what}; expected tokens of the image grammar. See its log.", "backend_failed"
    )
