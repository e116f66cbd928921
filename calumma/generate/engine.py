"""Engine: continuous batching of many requests through one decoder.

Each step schedules tokens (`scheduler`), computes them (`model_runner`), and samples the next token
of every request (`sampler`). A request has one KV-cached sequence for its full context. While it
generates an image with classifier-free guidance it has one or two more, for the images of the
prompt alone and for no prompt; they are prefilled when the image begins, get the same codes, and
are dropped when it ends.

With async scheduling a step is launched before the host knows the tokens of the previous one. If a
sampled token is not of the predicted kind, the step launched after it is discarded for that
request: its sequences are rolled back by one token and continue from the actual token.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

import torch

from calumma.errors import GenerationError
from calumma.generate.engine_defaults import resolve_engine_config
from calumma.generate.events import FinishReason
from calumma.generate.model_runner import ModelRunner
from calumma.generate.params import EngineConfig, EngineStats, Request
from calumma.generate.request import RequestState
from calumma.generate.scheduler import ScheduledTokens, Scheduler
from calumma.generate.step_output import StepOutput
from calumma.generate.token_sampler import HeadSlices, Sampler
from calumma.model.attention_backends import CachedAttention
from calumma.model.decoder import Decoder
from calumma.model.lora import AdapterBatch, require_adapter
from calumma.vocabulary import Vocabulary

NewToken = tuple[RequestState, int]
"""A request and a token that was appended to its output."""


class Engine:
    """Runs requests, first come, first served. One thread may use it at a time."""

    def __init__(
        self,
        decoder: Decoder,
        vocabulary: Vocabulary,
        codes_per_image: int,
        *,
        config: EngineConfig = EngineConfig(),  # noqa: B008  (frozen)
        adapters: AdapterBatch | None = None,
    ) -> None:
        """Start without requests; `adapters` are those attached to the decoder."""
        self.vocabulary = vocabulary
        self.codes_per_image = codes_per_image
        self._adapters = adapters
        self.config = config = resolve_engine_config(config, decoder, has_adapters=adapters is not None)
        self.sampler = Sampler(HeadSlices(decoder, vocabulary, adapters), config.max_num_seqs)
        last_token_ids = self.sampler.last_token_ids
        self.model_runner = ModelRunner(
            decoder, config.capacity, last_token_ids, cuda_graphs=bool(config.cuda_graphs), adapters=adapters
        )
        self.scheduler = Scheduler(config, self.model_runner.kv_cache)
        self._is_async = bool(config.async_scheduling)
        self._in_flight = StepOutput()
        """Tokens of the launched step that the host has not processed."""

        self._max_model_len = decoder.config.max_seq_len
        self._has_downward_head = decoder.downward_head is not None and decoder.tp_size == 1

    @property
    def is_idle(self) -> bool:
        """Whether no request runs or waits."""
        return self.scheduler.is_idle

    @property
    def stats(self) -> EngineStats:
        """Current load."""
        return self.scheduler.stats

    def warm_up(self) -> None:
        """Capture the CUDA graphs that steps may need, if any: seconds, minutes with compilation."""
        self.model_runner.warm_up(self.config.max_num_seqs)

    def submit(self, request: Request) -> RequestState:
        """Queue a request; raises as `make_request` does."""
        state = self.make_request(request)
        self.add_request(state)
        return state

    def make_request(self, request: Request) -> RequestState:
        """Check a request without queueing it; any thread may.

        Raises:
            GenerationError: the prompt is empty, too long, or its last image is broken; the
                request exceeds the engine's capacity; or its adapter is not loaded.
        """
        require_adapter(request.adapter, self._adapters)
        if request.image_decoding == "diagonal" and not self._has_downward_head:
            raise GenerationError(
                "image_decoding='diagonal' of a model without a downward head, or on several ranks; expected "
                "'raster'. Train such a head with downward_head = 'head' in the config of `calumma finetune`."
            )
        state = RequestState.from_request(request, self.vocabulary, self.codes_per_image, self._max_model_len)
        num_slots, num_sequences = state.reservation.num_slots, state.reservation.num_sequences
        max_slots, max_num_seqs = self.config.capacity, self.config.max_num_seqs
        if num_slots > max_slots or num_sequences > max_num_seqs:
            raise GenerationError(
                f"the request may need a KV cache of {num_slots} tokens in {num_sequences} "
                f"sequences; expected at most {max_slots} in {max_num_seqs}. Shorten it, ask for "
                "fewer new tokens or less guidance, or raise max_cached_tokens and max_num_seqs."
            )
        return state

    def add_request(self, state: RequestState) -> None:
        """Queue a request that `make_request` has made."""
        if not state.is_finished:
            self.scheduler.add_request(state)

    def submit_all(self, requests: Sequence[Request]) -> list[RequestState]:
        """Queue all requests, or none if one of them raises."""
        states = [self.make_request(request) for request in requests]
        for state in states:
            self.add_request(state)
        return states

    def abort(self, state: RequestState, reason: FinishReason = "abort") -> None:
        """Finish a request between two steps and free its capacity at once."""
        if state.is_finished:
            return
        state.finish(reason)
        if state in self._in_flight.requests:
            self._in_flight.requests.remove(state)
        self.scheduler.free(state)

    @torch.inference_mode()
    def step(self) -> list[NewToken]:
        """Run one step; returns the tokens that have reached the host, none during prefill."""
        new_tokens: list[NewToken] = []
        if any(state.is_speculating for state in self._in_flight.requests):
            self._process_outputs(new_tokens)
        self._admit_waiting(new_tokens)
        for state in self._in_flight.requests:
            state.append_placeholder()
        launched = self._launch()
        self._process_outputs(new_tokens)
        # Uncomputed tokens here mean a misprediction: drop the request's token in flight.
        launched.requests = [s for s in launched.requests if not (s.is_finished or s.cond.num_uncomputed_tokens)]
        self._in_flight = launched
        if not self._is_async:
            self._process_outputs(new_tokens)
        return new_tokens

    def _launch(self) -> StepOutput:
        """Compute and sample the scheduled tokens, without waiting for the device."""
        for state in self.scheduler.running:
            state.append_drafts()
        plan, ready = self.scheduler.schedule()
        if not plan:
            return StepOutput()
        hidden = self.model_runner.execute(plan)
        rows = dict(zip((sequence for sequence, _ in plan), _last_rows(plan), strict=True))
        return self.sampler.sample(ready, hidden, rows)

    def _process_outputs(self, new_tokens: list[NewToken]) -> None:
        """Append the sampled tokens of the step in flight to their requests."""
        output, self._in_flight = self._in_flight, StepOutput()
        for state, token_ids, logprobs, top_logprobs in output.get_output():
            sampled = list(zip(token_ids, logprobs, top_logprobs, strict=True))
            for id_, logprob, top in state.accept_samples(sampled):
                state.append_token(id_, logprob, top)
                new_tokens.append((state, id_))
            self._append_forced_tokens(state, new_tokens)

    def _admit_waiting(self, new_tokens: list[NewToken]) -> None:
        while (state := self.scheduler.admit()) is not None:
            self.sampler.add_request(state)
            self._append_forced_tokens(state, new_tokens)

    def _append_forced_tokens(self, state: RequestState, new_tokens: list[NewToken]) -> None:
        """Append tokens that the grammar leaves no choice of, and free a finished request."""
        while not state.is_finished and (id_ := state.grammar.forced_token) is not None:
            state.append_token(id_, 0.0, {id_: 0.0} if state.request.num_logprobs else None)
            self.sampler.mark_seen(state, [id_])
            new_tokens.append((state, id_))
        if state.is_finished:
            self.scheduler.free(state)

    def stream_tokens(self, states: Sequence[RequestState]) -> Iterator[NewToken]:
        """Step until these requests are finished, and yield their tokens; closing aborts them."""
        num_yielded = dict.fromkeys(states, 0)
        try:
            while True:
                are_finished = all(state.is_finished for state in states)
                # Not the result of `step`: another iterator on this engine may have stepped too.
                for state in states:
                    new = state.output_token_ids[num_yielded[state] :]
                    num_yielded[state] += len(new)
                    yield from ((state, id_) for id_ in new)
                if are_finished:
                    return
                self.step()
        finally:
            for state in states:
                self.abort(state)

    def generate(
        self,
        requests: Sequence[Request],
        on_token: Callable[[RequestState, int], None] | None = None,
        on_finished: Callable[[RequestState], None] | None = None,
    ) -> list[RequestState]:
        """Run requests until all are finished; raises as `make_request` does.

        Args:
            requests: run together; all or none are queued.
            on_token: called with every token as it is sampled; may abort its request.
            on_finished: called with every request after its last token.
        """
        states = self.submit_all(requests)
        num_seen = dict.fromkeys(states, 0)
        for state, id_ in self.stream_tokens(states):
            num_seen[state] += 1
            if on_token is not None:
                on_token(state, id_)
            if state.is_finished and num_seen[state] == len(state.output_token_ids):
                del num_seen[state]
                if on_finished is not None:
                    on_finished(state)
        for state in num_seen:  # finished without a token
            if on_finished is not None:
                on_finished(state)
        return states


def _last_rows(plan: ScheduledTokens) -> Iterator[int]:
    """Yield the row of each sequence's last token among the computed tokens."""
    return (stop - 1 for stop in accumulate(count for _, count in plan))


def compile_blocks(decoder: Decoder, *, backend: str = "inductor") -> None:
    """Compile a decoder's blocks when they are first called.

    One compiled block serves all layers, batches and sequence lengths: it is compiled for one token
    and for several, with each attention backend. With `EngineConfig.cuda_graphs` a step is compiled
    in the call before its capture. `CachedAttention`, one call per sequence, is not compiled.
    """
    if not hasattr(CachedAttention.__call__, "_torchdynamo_disable"):
        # It loops over sequences, whose lengths differ in every step. Disabled here and not in its
        # module, because the compiler takes seconds to import.
        CachedAttention.__call__ = torch.compiler.disable(  # type: ignore[method-assign]
            CachedAttention.__call__
        )
    for block in decoder.blocks:
        block.compile(backend=backend, dynamic=True)
