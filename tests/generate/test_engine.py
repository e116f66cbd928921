"""The engine against a reference without KV cache, batch and scheduling."""

from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate

import numpy as np
import pytest
import torch

from calumma.errors import GenerationError
from calumma.generate.engine import Engine
from calumma.generate.grammar import Grammar, TokenKind, allowed_ids
from calumma.generate.params import EngineConfig, ImageSampling, Request, SamplingParams, TextSampling
from calumma.generate.request import RequestState
from calumma.generate.sampling_ops import uniform_from_seed
from calumma.model.decoder import Decoder
from calumma.model.kv_cache import KVCache
from calumma.tokens.sequence import encode_image_codes
from calumma.tokens.text import TextTokenizer
from calumma.vocabulary import Vocabulary

CODES = 4


@pytest.fixture
def engine(decoder: Decoder, text_tokenizer: TextTokenizer) -> Engine:
    return Engine(decoder, text_tokenizer.vocabulary, CODES)


@pytest.fixture
def prompts(text_tokenizer: TextTokenizer) -> list[list[int]]:
    """Return prompts of text, text and an image, an image, and an image left open."""
    v = text_tokenizer.vocabulary
    words, image = text_tokenizer.encode("a red circle"), encode_image_codes([3, 1, 4, 15], v)
    return [
        [0, *words, v.end_turn],
        [0, *words, *image, v.end_turn],
        [0, *image],
        [0, *words, *image[:3]],
        [0, *words, *image[:5]],
    ]


@torch.no_grad()
def reference(decoder: Decoder, v: Vocabulary, request: Request) -> list[int]:
    """Generate one request without KV cache or batch, filtering the guidance contexts per step."""
    ids, num_prompt = list(request.prompt_token_ids), len(request.prompt_token_ids)
    images = ids.count(v.begin_image) + (request.modality != "text") * request.max_images
    grammar = Grammar(v, CODES, max_remaining_tokens=num_prompt + request.max_new_tokens, max_images=images)
    for id_ in ids:
        grammar.consume(id_)
    grammar.images_only = request.modality == "image"
    grammar.image_first = grammar.num_codes_remaining is None and (request.image_first or grammar.images_only)

    def last(context: list[int]) -> torch.Tensor:
        return decoder(torch.tensor([context]))[0, -1, : v.size].float()

    while grammar.max_remaining_tokens > 0 and v.eos not in ids[num_prompt:]:
        if grammar.forced_token is not None:
            ids.append(grammar.forced_token)
            grammar.accept_token(ids[-1])
            continue
        logits, sampling = last(ids), request.text
        if grammar.next_kind is TokenKind.IMAGE_CODE:
            sampling = request.image  # type: ignore[assignment]
            kept = [i for i in ids if i in v.codes or i in (v.bos, v.begin_image, v.end_image)]
            begun = max(index for index, id_ in enumerate(ids) if id_ == v.begin_image)
            none = last([v.bos, *ids[begun:]])
            image = last(kept) if v.end_image in ids else none
            text_scale, image_scale = (request.image.guidance_scale, request.image.image_guidance_scale)
            logits = none + image_scale * (image - none) + text_scale * (logits - image)
        else:
            by = request.text.repetition_penalty
            seen = torch.tensor(sorted(set(ids)))
            old = logits[seen]
            logits[seen] = torch.where(old > 0, old / by, old * by)
        allowed = torch.zeros(v.size, dtype=torch.bool)
        for range_ in allowed_ids(grammar.next_kind, v):
            allowed[list(range_)] = True
        logits = logits.masked_fill(~allowed, -torch.inf)
        chance = uniform_from_seed(torch.tensor([request.seed]), torch.tensor([len(ids) - num_prompt])).item()
        ids.append(slow_sample(logits, sampling, chance))
        grammar.accept_token(ids[-1])
    return ids[num_prompt:]


def slow_sample(logits: torch.Tensor, sampling: SamplingParams, chance: float) -> int:
    """Sample token by token in Python floats."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    probs = (logits / sampling.temperature).double().softmax(0).tolist()
    ranked = sorted(range(len(probs)), key=lambda id_: -probs[id_])
    kept = [id_ for id_ in ranked if probs[id_] > 0][: sampling.top_k or None]
    kept = [id_ for id_ in kept if probs[id_] >= sampling.min_p * probs[kept[0]]]
    mass = sum(probs[id_] for id_ in kept)
    sums = accumulate(probs[id_] for id_ in kept)
    before = [0.0, *sums]
    nucleus = sorted(id_ for id_, sum_ in zip(kept, before, strict=False) if sum_ < sampling.top_p * mass)
    line = list(accumulate(probs[id_] for id_ in nucleus))
    return next(id_ for id_, sum_ in zip(nucleus, line, strict=True) if sum_ > chance * line[-1])


def requests(prompts: list[list[int]]) -> list[Request]:
    """Return a different request for each prompt, with text and images likely."""
    return [
        Request(
            prompt_token_ids=tuple(ids),
            max_new_tokens=14 + number,
            seed=number,
            text=TextSampling(temperature=1.0 + number / 4, top_p=0.95, min_p=number / 100),
            image=ImageSampling(
                temperature=1.0, guidance_scale=1.0 + number, image_guidance_scale=1.5, top_k=number * 3
            ),
            image_first=number % 2 == 0,
            modality="image" if number == 2 else "any",
        )
        for number, ids in enumerate(prompts)
    ]


def greedy(request: Request) -> Request:
    """Return the request with greedy decoding."""
    return replace(request, text=replace(request.text, temperature=0.0), image=replace(request.image, temperature=0.0))


def run(engine: Engine, batch: list[Request]) -> list[list[int]]:
    states = engine.submit_all(batch)
    list(engine.stream_tokens(states))
    return [state.output_token_ids for state in states]


@pytest.mark.parametrize("chosen", [greedy, replace])
def test_the_engine_generates_the_tokens_of_the_reference(
    chosen: Callable[[Request], Request], engine: Engine, decoder: Decoder, prompts: list[list[int]]
) -> None:
    batch = [chosen(request) for request in requests(prompts)]
    asynchronous = Engine(decoder, engine.vocabulary, CODES, config=EngineConfig(async_scheduling=True))
    slow = [reference(decoder, engine.vocabulary, request) for request in batch]
    assert run(engine, batch) == run(asynchronous, batch) == slow


@pytest.mark.parametrize(("chunk", "asynchronous"), [(1, True), (3, False), (10, True)])
def test_chunked_prefill_changes_nothing(
    chunk: int, asynchronous: bool, engine: Engine, decoder: Decoder, prompts: list[list[int]]
) -> None:
    batch = requests(prompts)
    small = Engine(
        decoder, engine.vocabulary, CODES, config=EngineConfig(prefill_chunk_size=chunk, async_scheduling=asynchronous)
    )
    assert run(small, batch) == run(engine, batch)


def test_captured_decode_steps_change_nothing(engine: Engine, decoder: Decoder, prompts: list[list[int]]) -> None:
    batch = requests(prompts)
    captured = Engine(decoder, engine.vocabulary, CODES, config=EngineConfig(cuda_graphs=True))
    assert run(captured, batch) == run(engine, batch)


def test_equal_prompts_are_computed_once(engine: Engine, decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = tuple(range(24, 64))
    batch = [Request(prompt_token_ids=ids, max_new_tokens=9, seed=seed, image_first=True) for seed in range(4)]
    copied: list[int] = []
    copy = KVCache.copy_prefix
    monkeypatch.setattr(KVCache, "copy_prefix", lambda *args, count: (copied.append(count), copy(*args, count=count)))
    found = run(engine, batch)
    assert found == [reference(decoder, engine.vocabulary, request) for request in batch]
    assert copied == [40, 40, 40]

    # The next turn shares the prefix of the previous one, but for its last token, never computed.
    longer = Request(prompt_token_ids=(*ids, *found[3], 24, 25), max_new_tokens=20, seed=7, max_images=0)
    assert run(engine, [longer]) == [reference(decoder, engine.vocabulary, longer)]
    assert copied[3:] == [40 + len(found[3]) - 1]


def test_the_prefix_cache_is_evicted_for_new_requests(decoder: Decoder, engine: Engine) -> None:
    small = Engine(decoder, engine.vocabulary, CODES, config=EngineConfig(max_cached_tokens=100))
    batch = [
        Request(prompt_token_ids=(24 + number, *range(30, 60)), max_new_tokens=9, seed=number, max_images=0)
        for number in range(8)
    ]
    found = [run(small, [request])[0] for request in batch]
    assert found == [reference(decoder, engine.vocabulary, request) for request in batch]
    # 8 sequences of 39 tokens exceed 100: the oldest are evicted. All slots can be allocated.
    assert (
        sum(row.num_computed_tokens for row in small.scheduler._prefix_cache)
        == small.scheduler._allocator.num_used
        <= 100
    )
    full = Request(prompt_token_ids=(0,), max_new_tokens=99, max_images=0, text=TextSampling(temperature=9.0))
    run(small, [full])
    assert len(small.scheduler._prefix_cache) <= 1


def test_without_prefix_caching_nothing_is_kept(decoder: Decoder, engine: Engine) -> None:
    small = Engine(decoder, engine.vocabulary, CODES, config=EngineConfig(enable_prefix_caching=False))
    run(small, [Request(prompt_token_ids=tuple(range(24, 64)), max_new_tokens=9)])
    assert (small.scheduler._allocator.num_used, len(small.scheduler._prefix_cache)) == (0, 0)


def test_requests_do_not_depend_on_the_batch(engine: Engine, prompts: list[list[int]]) -> None:
    batch = requests(prompts)
    together = run(engine, [*batch, *batch[::-1]])
    alone = [run(engine, [request])[0] for request in batch]
    assert together == [*alone, *alone[::-1]]


def test_waiting_for_capacity_changes_nothing(engine: Engine, decoder: Decoder, prompts: list[list[int]]) -> None:
    batch = requests(prompts)
    narrow = Engine(decoder, engine.vocabulary, CODES, config=EngineConfig(max_num_seqs=3, max_cached_tokens=140))
    states = narrow.submit_all(batch * 2)
    max_running = 0
    while not narrow.is_idle:
        narrow.step()
        max_running = max(max_running, narrow.stats.num_running)
        assert narrow.stats.num_sequences <= 3
    assert max_running < len(states)
    assert [state.output_token_ids for state in states] == run(engine, batch) * 2


@pytest.mark.parametrize("scales", [(1.0, 1.0), (1.0, 2.0), (2.0, 1.0)])
def test_guidance_scales_are_those_of_the_reference(
    scales: tuple[float, float], engine: Engine, decoder: Decoder, prompts: list[list[int]]
) -> None:
    image = ImageSampling(temperature=1.0, guidance_scale=scales[0], image_guidance_scale=scales[1])
    batch = [Request(prompt_token_ids=tuple(ids), max_new_tokens=9, image=image, image_first=True) for ids in prompts]
    assert run(engine, batch) == [reference(decoder, engine.vocabulary, r) for r in batch]


def test_100_aborted_requests_leave_the_others_as_they_were(
    engine: Engine, decoder: Decoder, prompts: list[list[int]]
) -> None:
    random = np.random.default_rng(0)
    pool = requests(prompts)
    undisturbed = run(engine, pool)
    left: list[tuple[int, RequestState]] = []
    for trial in range(100):
        if trial == 50:
            list(engine.stream_tokens([state for _, state in left]))
            engine = Engine(decoder, engine.vocabulary, CODES, config=EngineConfig(async_scheduling=True))
        victim, *others = random.integers(len(pool), size=3)
        states = engine.submit_all([pool[number] for number in (victim, *others)])
        left += zip(others, states[1:], strict=True)
        for _ in range(random.integers(12)):
            engine.step()
        is_finished = states[0].is_finished
        engine.abort(states[0])
        assert states[0].output_token_ids == undisturbed[victim][: len(states[0].output_token_ids)]
        assert states[0].finish_reason == "abort" or is_finished
    list(engine.stream_tokens([state for _, state in left]))
    assert [state.output_token_ids for _, state in left] == [undisturbed[number] for number, _ in left]
    assert engine.stats.num_reserved_tokens == 0


def test_closing_the_iterator_aborts(engine: Engine, prompts: list[list[int]]) -> None:
    states = engine.submit_all(requests(prompts))
    for _ in engine.stream_tokens(states):
        break
    assert engine.is_idle
    assert {state.finish_reason for state in states} == {"abort"}


def test_several_iterators_may_share_an_engine(engine: Engine, prompts: list[list[int]]) -> None:
    batch = requests(prompts)
    alone = run(engine, batch)
    one = engine.stream_tokens(engine.submit_all(batch[:2]))
    next(one)
    # The steps of one iterator advance the requests of the other: none of their tokens is lost.
    assert run(engine, batch[2:]) == alone[2:]
    assert len(list(one)) == sum(map(len, alone[:2])) - 1


def test_all_requests_are_queued_or_none(engine: Engine) -> None:
    with pytest.raises(GenerationError):
        engine.submit_all([Request(prompt_token_ids=(0,)), Request(prompt_token_ids=())])
    assert engine.is_idle


def test_a_longer_output_is_that_of_the_reference(engine: Engine, decoder: Decoder, prompts: list[list[int]]) -> None:
    text = TextSampling(temperature=5.0, top_p=1.0)
    long = Request(prompt_token_ids=tuple(prompts[1]), max_new_tokens=90, seed=4, text=text, max_images=20)
    (ids,) = run(engine, [long])
    assert ids == reference(decoder, engine.vocabulary, long)
    assert len(ids) > 64


def test_limits_are_kept(engine: Engine, prompts: list[list[int]]) -> None:
    v = engine.vocabulary
    text = TextSampling(temperature=20.0, top_p=1.0)
    for seed in range(6):
        one = Request(prompt_token_ids=tuple(prompts[1]), max_new_tokens=30, seed=seed, text=text)
        for images in (0, 1):
            limited = replace(one, max_images=images, image_first=True)
            (ids,) = run(engine, [limited])
            assert ids.count(v.begin_image) == images
            assert ids.count(v.begin_image) == ids.count(v.end_image)
            assert len(ids) <= 30
    (ids,) = run(engine, [Request(prompt_token_ids=(0,), max_new_tokens=5, image_first=True)])
    assert v.begin_image not in ids
    assert run(engine, [Request(prompt_token_ids=(0,), max_new_tokens=0)]) == [[]]


def test_max_model_len_is_kept(engine: Engine) -> None:
    text = TextSampling(temperature=20.0, top_p=1.0)
    (ids,) = run(engine, [Request(prompt_token_ids=(0,) * 120, max_new_tokens=100, text=text)])
    assert 120 + len(ids) <= 128


def test_forced_tokens_have_logprob_zero(engine: Engine, prompts: list[list[int]]) -> None:
    batch = replace(requests(prompts)[0], text=TextSampling(repetition_penalty=1.0))
    state = engine.submit(batch)
    list(engine.stream_tokens([state]))
    assert len(state.logprobs) == len(state.output_token_ids)
    assert all(logprob <= 0 for logprob in state.logprobs)
    begun = state.output_token_ids.index(engine.vocabulary.begin_image)
    assert (state.logprobs[begun], state.logprobs[begun + CODES + 1]) == (0.0, 0.0)


def test_rows_beyond_the_vocabulary_are_never_sampled(
    decoder: Decoder, prompts: list[list[int]], text_tokenizer: TextTokenizer
) -> None:
    wider = Decoder(replace(decoder.config, vocabulary_size=decoder.config.vocabulary_size + 8))
    wider.init_weights(0)
    v = text_tokenizer.vocabulary
    found = run(Engine(wider.eval(), v, CODES), requests(prompts))
    assert all(id_ < v.size for ids in found for id_ in ids)


def test_the_caller_s_grad_mode_is_left_alone(engine: Engine, prompts: list[list[int]]) -> None:
    for _ in engine.stream_tokens(engine.submit_all(requests(prompts))):
        assert not torch.is_inference_mode_enabled()


def refusal(engine: Engine, request: Request) -> str:
    with pytest.raises(GenerationError) as caught:
        engine.submit(request)
    return str(caught.value)


@pytest.mark.parametrize("length", [0, 128])
def test_a_prompt_of_invalid_length_is_refused(engine: Engine, length: int) -> None:
    assert refusal(engine, Request(prompt_token_ids=(0,) * length)) == (
        f"the prompt has {length} tokens; expected between 1 and 127, the most this model reads. "
        "Shorten it, or leave an image out."
    )


def test_an_open_image_that_does_not_fit_is_refused(engine: Engine, prompts: list[list[int]]) -> None:
    assert refusal(engine, Request(prompt_token_ids=tuple(prompts[3]), max_new_tokens=2)) == (
        "an open image still needs 3 tokens, but max_new_tokens leaves 2; expected enough for the "
        "complete image. Raise max_new_tokens."
    )


def test_an_open_image_with_too_many_codes_is_refused(engine: Engine) -> None:
    ids = (0, engine.vocabulary.begin_image, 4, 5, 6, 7, 8)
    assert refusal(engine, Request(prompt_token_ids=ids)) == (
        "the prompt's last image is open with 5 codes; expected at most 4, the number of this model. Leave codes out."
    )
