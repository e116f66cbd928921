"""Request handler: admission control, and the way of a request from its body to its tokens.

event loop   submit --> GenerationBackend.submit          OutputProcessor --> ResponseStream
               |                 |                          ^         |
threads        | prompt encoder  | engine, one for all -----+         | images, content filters
                 (when needed)                  (token ids)             (executor, one per core)
"""

import asyncio
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import chain

from calumma.generate.best_of import Reward
from calumma.generate.loglikelihood import SequenceLogprobs
from calumma.serve.api_errors import APIError, queue_full, server_stopping, timed_out
from calumma.serve.backends.generation_backend import GenerationBackend
from calumma.serve.config import ServeConfig
from calumma.serve.moderation import ContentFilter
from calumma.serve.output_processor import Finished, ImageFileEncoder
from calumma.serve.prometheus_metrics import PrometheusMetrics
from calumma.serve.prompt_encoder import EncodedPrompt, Prompt, PromptEncoder
from calumma.serve.provenance.signing import ImageSigner
from calumma.serve.request_context import RequestContext
from calumma.serve.request_params import GenerationParams
from calumma.serve.response_stream import CompletedOutput, ResponseStream
from calumma.serve.served_rewards import DEFAULT_REWARDS, require_reward, score_outputs
from calumma.vocabulary import TokenCounts

_ENCODER_THREADS = 32
"""Prompts encoded at the same time: most of them wait for image decoders or remote hosts."""


class RequestHandler:
    """Accepts API requests up to a limit, and runs them on a backend."""

    def __init__(
        self,
        backend: GenerationBackend,
        encoder: PromptEncoder,
        config: ServeConfig,
        *,
        metrics: PrometheusMetrics,
        filters: Sequence[ContentFilter] = (),
        signer: ImageSigner | None = None,
        rewards: Mapping[str, Reward] = DEFAULT_REWARDS,
    ) -> None:
        """Create a handler, which closes the backend and the encoder's decoder pool with itself."""
        self.model, self.backend = backend.model, backend
        self.encoder, self.config = encoder, config
        self.metrics, self.filters, self.signer = metrics, filters, signer
        self.rewards = rewards
        self.executor = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="calumma-output")
        self._encoder_threads = ThreadPoolExecutor(_ENCODER_THREADS, thread_name_prefix="calumma-prompt")
        self._scoring = asyncio.Lock()
        self.num_in_flight = 0
        """Completions admitted and not finished."""

        self.is_stopping = False
        """Whether no more requests are accepted."""

        self._streams: set[ResponseStream] = set()
        self._average_seconds = 1.0

    @property
    def image_size(self) -> str:
        """Size of the model's images, in the format of the images API."""
        side = self.model.image.config.resolution
        return f"{side}x{side}"

    @property
    def image_sizes(self) -> list[str] | None:
        """Sizes that a model of images of any size chooses from, in that format; None for squares."""
        sizes, cell = self.model.vocabulary.image_sizes, self.model.image.config.downsampling
        return None if sizes is None else [f"{columns * cell}x{rows * cell}" for rows, columns in sizes.grids]

    @property
    def model_names(self) -> tuple[str, ...]:
        """Names that a request may give: the model's, then those of its adapters."""
        adapters = self.model.adapters
        return (self.config.served_model_name, *(() if adapters is None else filter(None, adapters.adapters)))

    def adapter_of(self, name: str | None) -> str:
        """Return the adapter that the model name of a request selects; empty for the model itself.

        Raises:
            APIError: no model of that name is served.
        """
        served, *adapters = self.model_names
        if name is None or name == served:
            return ""
        if name not in adapters:
            expected = " or ".join(repr(each) for each in self.model_names)
            raise APIError(
                404,
                f"no model of that name is served here; expected {expected}, as in /v1/models.",
                "model_not_found",
                param="model",
            )
        return name

    async def submit(
        self, context: RequestContext, prompts: Sequence[Prompt], params: GenerationParams
    ) -> ResponseStream:
        """Encode prompts and start `params.num_choices` requests for each.

        Raises:
            APIError: another model or reward is requested, the limit of choices or concurrent requests is
                exceeded, or a prompt is invalid.
            CalummaError: a request can never be processed.
        """
        params = replace(params, adapter=self.adapter_of(params.model))
        context.model_name = params.model or self.config.served_model_name
        require_reward(params.reward, self.rewards)
        num_choices = len(prompts) * params.num_choices
        self._check_num_choices(num_choices)
        stream = self.acquire(context, num_choices)
        encodings = [await self._encode(prompt) for prompt in prompts]
        encoded = [encoding.token_ids for encoding in encodings]
        grid = encodings[0].image_grid
        if encodings[0].known_codes and params.image_grid not in (None, grid):
            message = "size is not that of the edited image; expected auto with a mask. Leave it out."
            raise APIError(400, message, "invalid_size", param="size")
        params = replace(params, known_codes=encodings[0].known_codes, image_grid=params.image_grid or grid)
        if prompts[0].edit is not None:
            num_text = self.model.default_image_sampling.max_edit_text_tokens
            params = replace(params, max_leading_text_tokens=num_text, max_new_tokens=params.max_new_tokens + num_text)
        counts = self.model.vocabulary.count_modalities(chain.from_iterable(encoded))
        self.metrics.prompt_tokens.labels("text").inc(counts.text_tokens)
        self.metrics.prompt_tokens.labels("image").inc(counts.image_tokens)
        context.log_fields |= {"num_choices": num_choices, "prompt_tokens": counts.total}
        text = "\n".join(text for prompt in prompts for text in prompt.texts)
        if self.config.log_prompts:
            context.log_fields["prompt"] = text
        embeds_prompt = params.embed_prompt_metadata or self.config.embed_prompt_metadata
        image_encoder = ImageFileEncoder(context.model_name, text if embeds_prompt else None, self.signer)
        stream.start(encoded, counts, params, image_encoder)
        return stream

    def _check_num_choices(self, count: int) -> None:
        limits = self.config.limits
        max_count = min(limits.max_choices, limits.max_concurrent_requests)
        if count > max_count:
            raise APIError(
                400,
                f"{count} choices are requested; expected 1 to {max_count}. Send several requests.",
                "too_many_choices",
                param="n",
            )

    def acquire(self, context: RequestContext, count: int) -> ResponseStream:
        """Take permits for a number of completions, until the request ends.

        Raises:
            APIError: the limit of concurrent requests is exceeded, or the server is stopping.
        """
        if self.is_stopping:
            raise server_stopping()
        if self.num_in_flight + count > self.config.limits.max_concurrent_requests:
            raise queue_full(self.num_in_flight, self._retry_after_seconds())
        self._set_in_flight(self.num_in_flight + count)
        stream = ResponseStream(self, context, count)
        context.cleanup.callback(stream.close)
        self._streams.add(stream)
        return stream

    def _retry_after_seconds(self) -> float:
        """Estimate when a permit is free: the usual latency, shared by the running requests."""
        num_running = max(1, self.backend.stats.num_running)
        return min(60.0, max(1.0, self._average_seconds * self.num_in_flight / num_running / 2))

    def release(self, count: int) -> None:
        """Return permits."""
        self._set_in_flight(self.num_in_flight - count)

    def _set_in_flight(self, count: int) -> None:
        self.num_in_flight = count
        self.metrics.requests_in_flight.set(count)

    def discard(self, stream: ResponseStream) -> None:
        """Remove a closed stream."""
        self._streams.discard(stream)

    async def encode(self, prompt: Prompt) -> list[int]:
        """Encode a prompt in a thread as token ids.

        Raises:
            APIError: it is invalid, or its images take too long.
        """
        return (await self._encode(prompt)).token_ids

    async def _encode(self, prompt: Prompt) -> EncodedPrompt:
        limits = self.config.limits
        seconds = limits.request_timeout_seconds
        seconds += limits.image_timeout_seconds * max(1, prompt.num_images)
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.get_running_loop().run_in_executor(
                    self._encoder_threads, self.encoder.encode_edit, prompt
                )
        except TimeoutError as error:
            raise timed_out("encoding the prompt", seconds, 504) from error

    async def prompt_logprobs(
        self, prompts: Sequence[list[int]], num_top: int, model: str | None = None
    ) -> list[SequenceLogprobs]:
        """Score the tokens of text prompts in a thread, for one request at a time.

        `model` is the model name of the request.

        Raises:
            APIError: a prompt has an image.
            GenerationError: the backend cannot score prompts.
        """
        for prompt in prompts:
            if self.model.vocabulary.count_modalities(prompt).image_tokens:
                message = "the prompt has an image; expected text or token ids of text with echo. Remove it."
                raise APIError(400, message, "invalid_value", param="echo")
        async with self._scoring:
            return await asyncio.get_running_loop().run_in_executor(
                self._encoder_threads, self.model.prompt_logprobs, prompts, num_top, self.adapter_of(model)
            )

    async def score(
        self, prompts: Sequence[list[int]], outputs: Sequence[CompletedOutput], params: GenerationParams
    ) -> list[float]:
        """Compute the reward of each output in a thread; the outputs of a prompt are consecutive.

        Raises:
            GenerationError: the likelihood of a prompt is not defined, or the backend cannot score it.
        """
        score = partial(score_outputs, self.model, self.rewards[params.reward], params.adapter, prompts, outputs)
        async with self._scoring:
            return await asyncio.get_running_loop().run_in_executor(self._encoder_threads, score)

    def record_finished(self, finished: Finished, first_token_seconds: float, seconds: float) -> TokenCounts:
        """Count a finished output and its tokens."""
        if finished.tokens.token_ids:
            self.metrics.time_to_first_token.observe(first_token_seconds)
        self.metrics.e2e_request_latency.observe(seconds)
        self.metrics.request_success.labels(finished.reason).inc()
        counts = self.model.vocabulary.count_modalities(finished.tokens.token_ids)
        self.metrics.generation_tokens.labels("text").inc(counts.text_tokens)
        self.metrics.generation_tokens.labels("image").inc(counts.image_tokens)
        self._average_seconds += (seconds - self._average_seconds) / 8
        return counts

    def drain(self) -> None:
        """Accept no more requests; the running ones go on."""
        self.is_stopping = True

    def abort_all(self) -> None:
        """Abort the running requests; their clients get a 503."""
        self.is_stopping = True
        for stream in list(self._streams):
            stream.abort(server_stopping())

    def close(self) -> None:
        """Abort everything and join all threads and processes."""
        self.abort_all()
        self.backend.close(finish=False)
        for threads in (self.executor, self._encoder_threads):
            threads.shutdown(wait=True)
        self.encoder.decoder_pool.close()
