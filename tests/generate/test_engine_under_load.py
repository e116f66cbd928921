"""The engine with a decoder of noise: nothing malformed, nothing lost, no request starved."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from calumma.errors import GenerationError
from calumma.generate.engine import Engine
from calumma.generate.params import EngineConfig, ImageSampling, Modality, Request, TextSampling
from calumma.generate.request import RequestState
from calumma.model.attention_backends import AttentionMetadata, CachedAttention
from calumma.model.config import DecoderConfig
from calumma.model.decoder import LMHead
from calumma.vocabulary import Vocabulary

V = Vocabulary(num_codes=4, num_text=6)
CODES = 3
CONFIG = DecoderConfig(
    vocabulary_size=V.size, model_dim=4, num_layers=1, num_heads=1, num_kv_heads=1, feed_forward_dim=4, max_seq_len=64
)
SCALES = [(1.0, 1.0), (3.0, 1.2), (2.0, 2.0), (3.0, 1.0)]
MODALITIES: tuple[Modality, ...] = ("any", "text", "image")


class NoiseDecoder(nn.Module):
    """A decoder of random hidden states that checks that sequences share no slots."""

    def __init__(self) -> None:
        super().__init__()
        self.config, self.tp_size, self.downward_head = CONFIG, 1, None
        self.embedding = nn.Embedding(V.size, CONFIG.model_dim)
        self.head = LMHead(CONFIG.model_dim, V.size, bias=False)
        nn.init.normal_(self.head.weight, std=2.0)

    def hidden_states(self, token_ids: Tensor, metadata: AttentionMetadata) -> Tensor:
        assert isinstance(metadata.attention_fn, CachedAttention)
        chunks = metadata.attention_fn.chunks
        slots = [n for chunk in chunks for n in range(chunk.start_slot, chunk.start_slot + chunk.seq_len)]
        assert len(slots) == len(set(slots)), "two sequences share a slot"
        assert sum(chunk.num_new_tokens for chunk in chunks) == token_ids.shape[1]
        return torch.randn(1, token_ids.shape[1], CONFIG.model_dim)


def noise_engine(**config: Any) -> Engine:
    torch.manual_seed(0)
    decoder: Any = NoiseDecoder().requires_grad_(False)
    return Engine(decoder, V, CODES, config=EngineConfig(**config))


def any_request(random: np.random.Generator, number: int, longest: int = 30) -> Request:
    """Return a random request, long or short, with an image in its prompt or without."""
    image = [V.begin_image, 4, 5, 6, V.end_image]
    parts: list[list[int]] = [[V.bos], list(random.choice(list(V.text), random.integers(0, 20)))]
    parts += [image] * random.integers(0, 2) + [image[:2]] * random.integers(0, 2)
    scales = SCALES[random.integers(len(SCALES))]
    modality = MODALITIES[random.integers(3)]
    return Request(
        prompt_token_ids=tuple(int(id_) for part in parts for id_ in part),
        max_new_tokens=int(random.integers(5, longest)),
        seed=number,
        modality=modality,
        max_images=int(random.integers(modality == "image", 4)),
        image_first=bool(random.integers(2)),
        text=TextSampling(temperature=float(random.integers(3)), top_p=0.95),
        image=ImageSampling(guidance_scale=scales[0], image_guidance_scale=scales[1]),
    )


def require_well_formed(state: RequestState) -> None:
    """Check complete images, no codes outside, no text inside, and the limits of the request."""
    request, ids = state.request, list(state.output_token_ids)
    assert len(ids) == len(state.logprobs) <= request.max_new_tokens
    marks = [id_ for id_ in request.prompt_token_ids if id_ in (V.begin_image, V.end_image)]
    if marks[-1:] == [V.begin_image]:
        opened = request.prompt_token_ids[::-1].index(V.begin_image)
        ids = [*request.prompt_token_ids[len(request.prompt_token_ids) - 1 - opened :], *ids]
    num_images = state.output_token_ids.count(V.begin_image)
    index = 0
    while index < len(ids):
        if ids[index] == V.begin_image:
            assert all(id_ in V.codes for id_ in ids[index + 1 : index + 1 + CODES])
            assert ids[index + 1 + CODES] == V.end_image
            index += CODES + 2
            continue
        last = index == len(ids) - 1
        assert (ids[index] in V.text and request.modality != "image") or (ids[index] == V.eos and last)
        index += 1
    assert num_images <= (request.modality != "text") * request.max_images
    needs_image = request.modality == "image" or (request.image_first and request.max_images)
    if needs_image and request.modality != "text" and ids == state.output_token_ids:
        fits = request.max_new_tokens >= CODES + 2
        assert not fits or ids[0] == V.begin_image
    assert state.finish_reason in ("stop", "length")


def test_10_000_outputs_of_random_logits_are_well_formed() -> None:
    engine = noise_engine(max_cached_tokens=20_000, max_num_seqs=256, enable_prefix_caching=False)
    random = np.random.default_rng(0)
    states = engine.submit_all([any_request(random, n, longest=12) for n in range(10_000)])
    while not engine.is_idle:
        engine.step()
    for state in states:
        require_well_formed(state)
    kinds = {state.request.modality for state in states if V.begin_image in state.output_token_ids}
    assert kinds == {"any", "image"}


def test_1_000_requests_through_a_small_cache_leave_nothing_allocated() -> None:
    engine = noise_engine(max_cached_tokens=300, max_num_seqs=12, prefill_chunk_size=16)
    random = np.random.default_rng(1)
    states: list[RequestState] = []
    waited: dict[RequestState, int] = {}
    while len(states) < 1000 or not engine.is_idle:
        if len(states) < 1000:  # submitted while others run
            states.append(engine.submit(any_request(random, len(states))))
        before = [state for state in states if state.cond.start_slot < 0 and not state.is_finished]
        engine.step()
        stats = engine.stats
        assert stats.num_reserved_tokens <= stats.max_cached_tokens == 300
        assert stats.num_sequences <= 12
        assert stats.num_running + stats.num_waiting == sum(not state.is_finished for state in states)
        admitted = [state for state in before if state.cond.start_slot >= 0 or state.is_finished]
        assert admitted == before[: len(admitted)], "a request was overtaken"
        for state in admitted:
            waited[state] = len(states)
    assert all(state.is_finished and state.finish_reason != "abort" for state in states)
    assert len(waited) == 1000
    assert engine.stats.num_reserved_tokens == engine.stats.num_sequences == 0
    assert engine.scheduler._allocator.num_used == sum(
        row.num_computed_tokens for row in engine.scheduler._prefix_cache
    )
    for state in states:
        require_well_formed(state)


def test_a_request_beyond_capacity_is_refused_at_once() -> None:
    engine = noise_engine(max_cached_tokens=40, max_num_seqs=2)
    with pytest.raises(GenerationError) as caught:
        engine.submit(Request(prompt_token_ids=(0, 12), max_new_tokens=39, max_images=0))
    assert str(caught.value) == (
        "the request may need a KV cache of 41 tokens in 1 sequences; expected at most 40 in 2. "
        "Shorten it, ask for fewer new tokens or less guidance, or raise max_cached_tokens and "
        "max_num_seqs."
    )
    with pytest.raises(GenerationError, match="in 3 sequences; expected at most 40 in 2"):
        engine.submit(Request(prompt_token_ids=(0, 12), max_new_tokens=10))
    assert engine.is_idle


def test_a_long_prompt_does_not_delay_other_requests() -> None:
    engine = noise_engine(max_cached_tokens=1000, max_num_seqs=12, prefill_chunk_size=4)
    short = engine.submit(Request(prompt_token_ids=(0, 12), max_new_tokens=30, max_images=0))
    engine.step()
    long = engine.submit(Request(prompt_token_ids=(0, *[13] * 50), max_new_tokens=4, max_images=0))
    steps = 0
    while not long.output_token_ids:
        length = len(short.output_token_ids)
        engine.step()
        steps += 1
        assert short.is_finished or len(short.output_token_ids) == length + 1
    assert steps == 12  # 11 of 4 tokens, and the last 7 count as decoding


@pytest.mark.parametrize("seed", range(4))
def test_aborting_at_any_step_frees_everything(seed: int) -> None:
    engine = noise_engine(max_cached_tokens=400, max_num_seqs=20, prefill_chunk_size=8, async_scheduling=seed % 2 == 1)
    random = np.random.default_rng(seed)
    states = engine.submit_all([any_request(random, number) for number in range(60)])
    while not engine.is_idle:
        engine.step()
        used = engine.stats.num_reserved_tokens
        state = states[random.integers(len(states))]
        held = 0 if state.is_finished or state.cond.start_slot < 0 else state.reservation.num_slots
        ended = state.is_finished
        engine.abort(state)
        assert state.is_finished
        assert ended or state.finish_reason == "abort"
        assert engine.stats.num_reserved_tokens == used - held
    assert engine.stats.num_reserved_tokens == engine.stats.num_sequences == 0
    for state in states:
        if state.finish_reason != "abort":
            require_well_formed(state)
