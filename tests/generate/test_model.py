"""Model: parts in, parts and events out."""

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch

from calumma.checkpoints.model_folder import ModelComponents, save_model
from calumma.documents.document import Image, Text, Turn
from calumma.errors import DocumentError, GenerationError
from calumma.generate.events import End, Event, ImageBegun, ImageCodes, ImageDone, ImageProgress, TextPiece
from calumma.generate.model import Model, load
from calumma.generate.params import EngineConfig, TextSampling
from calumma.model.bfloat16_products import BFloat16Linear
from calumma.model.decoder import Decoder
from calumma.tokens.sequence import encode_image_codes
from tests.checkpoints.random_models import without_image_decoder
from tests.images import noise, png

WILD = TextSampling(temperature=5.0, top_p=1.0)


@pytest.fixture(scope="module")
def model(model_parts: ModelComponents) -> Model:
    return Model(model_parts)


def test_repr_is_a_line_of_facts(model: Model) -> None:
    count = sum(each.numel() for each in model.decoder.parameters())
    size, codes = model.vocabulary.size, model.image.config.codes_per_image
    assert repr(model) == (
        f"Model({count:,} parameters, vocabulary of {size:,} tokens, {codes} codes per image, cpu, float32)"
    )


def test_decode_inverts_encode(model: Model) -> None:
    image = noise(3)
    codes = model.encode_image(image)
    text = model.text.encode
    expected = [0, *text("see "), *encode_image_codes(codes, model.vocabulary), *text("a <s>")]
    assert model.encode(["see ", image, {"type": "text", "text": "a <s>"}]) == expected
    first, decoded, last = model.decode(expected)
    assert (first, last) == ("see ", "a <s>")
    assert isinstance(decoded, PIL.Image.Image)
    assert decoded.tobytes() == model.decode_image(codes).tobytes()


def test_images_of_documents_are_encoded(model: Model) -> None:
    part = {"type": "image", "bytes": png(3)}
    assert model.encode([part]) == model.encode([noise(3)])


def test_a_path_in_a_prompt_is_refused(model: Model) -> None:
    with pytest.raises(DocumentError, match="has no folder to start from"):
        model.encode([{"type": "image", "path": "1.png"}])


def test_logits_are_not_masked(model: Model) -> None:
    ids = [0, 20, 30, 40]
    logits = model.logits(ids)
    assert logits.shape == (1, 4, model.vocabulary.size)
    assert torch.equal(logits, model.decoder(torch.tensor([ids])))
    assert torch.allclose(model.logits([ids, ids])[1], logits[0], atol=1e-5)
    assert torch.equal(model.logits(torch.tensor([ids])), logits)
    assert torch.isfinite(logits).all()


def test_a_saved_model_generates_the_same(model: Model, model_parts: ModelComponents, tmp_path: Path) -> None:
    save_model(tmp_path, model_parts)
    again = load(tmp_path)
    options: dict[str, Any] = {"max_new_tokens": 20, "seed": 3, "text": WILD, "image_first": True}
    one, other = (m.generate(["a red", noise(1)], **options) for m in (model, again))
    assert one.token_ids == other.token_ids
    assert one.prompt_token_ids == [*model.encode(["a red", noise(1)], resize_mode="pad"), model.vocabulary.end_turn]


def test_a_batch_gets_the_tokens_of_each_prompt_alone(model: Model) -> None:
    prompts = [["a red"], ["see ", noise(1), "?"], [noise(2)]]
    options: dict[str, Any] = {"max_new_tokens": 16, "text": WILD}
    batch = model.generate_batch(prompts, seeds=[5, 6, 7], **options)
    for prompt, seed, sample in zip(prompts, (5, 6, 7), batch, strict=True):
        alone = model.generate(prompt, seed=seed, **options)
        assert alone.token_ids == sample.token_ids
        assert alone.logprobs == pytest.approx(sample.logprobs, abs=1e-4)
        assert 0 < sample.timings["time_to_first_token"] <= sample.timings["latency"]


def test_the_finish_reason_is_stop_or_length(model: Model) -> None:
    for seed in range(20):
        sample = model.generate(["a"], max_new_tokens=30, seed=seed, text=WILD, add_generation_prompt=False)
        ended = sample.token_ids[-1] == model.vocabulary.eos
        assert sample.finish_reason == ("stop" if ended else "length")
        assert ended or len(sample.token_ids) == 30
        assert sample.prompt_token_ids == model.encode(["a"])


def parts_of(events: list[Event]) -> Iterator[str | PIL.Image.Image]:
    """Yield the parts that events describe."""
    text = ""
    for event in events:
        if isinstance(event, TextPiece):
            text += event.text
        elif isinstance(event, ImageDone):
            yield event.image
        elif isinstance(event, ImageBegun) and text:
            yield text
            text = ""
    if text:
        yield text


@pytest.mark.parametrize("seed", range(8))
def test_the_events_describe_the_sample(model: Model, seed: int) -> None:
    options: dict[str, Any] = {"max_new_tokens": 40, "seed": seed, "text": WILD}
    options["image_first"] = seed % 2 == 0
    events = list(model.stream(["a red"], **options))
    assert isinstance(events[-1], End)
    sample = events[-1].sample
    assert sample.token_ids == model.generate(["a red"], **options).token_ids
    found = list(parts_of(events))
    assert [p if isinstance(p, str) else p.tobytes() for p in found] == [
        p if isinstance(p, str) else p.tobytes() for p in sample.parts
    ]
    kinds = [type(event) for event in events if not isinstance(event, TextPiece)]
    decoded = sample.token_ids.count(model.vocabulary.begin_image)
    assert kinds == [ImageBegun, ImageProgress, ImageProgress, ImageDone] * decoded + [End]
    counts = [event.num_codes for event in events if isinstance(event, ImageProgress)]
    assert counts == [2, 4] * decoded


def test_partial_images_have_the_interval_asked_for(model: Model) -> None:
    events = model.stream(["a"], max_new_tokens=6, image_first=True, partial_image_interval=1)
    counts = [event.num_codes for event in events if isinstance(event, ImageProgress)]
    assert counts == [1, 2, 3, 4]


def test_an_image_left_open_by_the_prompt_is_finished(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    image = encode_image_codes([3, 1, 4, 15], model.vocabulary)
    monkeypatch.setattr(model, "encode_chat", lambda messages: [0, 30, *image[:3]])
    sample = model.generate(["x"], max_new_tokens=3)
    codes = [model.vocabulary.id_to_code(id_) for id_ in sample.token_ids[:2]]
    assert sample.token_ids[2] == model.vocabulary.end_image
    (decoded,) = sample.parts
    assert isinstance(decoded, PIL.Image.Image)
    assert decoded.tobytes() == model.decode_image([3, 1, *codes]).tobytes()


def test_a_stop_string_ends_an_output(model: Model) -> None:
    options: dict[str, Any] = {"max_new_tokens": 40, "text": WILD, "max_images": 0, "seed": 2}
    (text,) = model.generate(["a"], **options).parts
    assert isinstance(text, str)
    stop = text[10:12]
    end = text.index(stop)
    plain, stopped = model.generate_requests(
        [model.request(["a"], **options), model.request(["a"], stop=(stop,), **options)]
    )
    assert plain.parts == [text]
    assert stopped.parts == [text[:end]]
    assert stopped.finish_reason == "stop"
    assert stopped.token_ids == plain.token_ids[: len(stopped.token_ids)]
    assert len(stopped.logprobs) == len(stopped.token_ids) < len(plain.token_ids)
    assert stop in model.text.decode(stopped.token_ids)
    assert stop not in model.text.decode(stopped.token_ids[:-1])
    *events, last = model.stream(["a"], stop=(stop,), **options)
    assert "".join(e.text for e in events if isinstance(e, TextPiece)) == text[:end]
    assert isinstance(last, End)
    assert last.sample.token_ids == stopped.token_ids
    assert last.sample.finish_reason == "stop"


def test_stop_strings_must_not_be_empty(model: Model) -> None:
    for stop in ("END", ("", "END")):
        with pytest.raises(GenerationError) as caught:
            model.generate(["a"], stop=stop)
        assert str(caught.value) == (f"stop={stop!r}; expected a tuple of stop strings, none of them empty.")


def test_progress_counts_finished_requests(model: Model) -> None:
    found: list[tuple[int, int]] = []
    requests = [model.request(["a"], max_new_tokens=n, max_images=0) for n in (0, 3, 1)]
    tokens: list[int] = []
    samples = model.generate_requests(
        requests, lambda state, id_: tokens.append(id_), lambda *counts: found.append(counts)
    )
    assert found == [(1, 3), (2, 3), (3, 3)]
    assert sorted(tokens) == sorted(id_ for sample in samples for id_ in sample.token_ids)


def test_a_chat_is_encoded_turn_by_turn_with_images_as_in_shards(model: Model) -> None:
    v, text, wide = model.vocabulary, model.text.encode, noise(1, 40, 20)
    padded, cropped = (encode_image_codes(model.encode_image(wide, resize_mode=mode), v) for mode in ("pad", "crop"))
    messages: list[Turn | dict[str, Any]] = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": ["a", wide]},
        Turn("assistant", (Text("b"), Image(data=png(1, 40, 20)))),
        {"role": "user", "content": "c"},
    ]
    prompt = [v.bos, *text("be brief"), *text("a"), *padded, v.end_turn]
    answer = [*text("b"), *cropped]
    assert model.encode_chat(messages) == [*prompt, *answer, v.eos, *text("c"), v.end_turn]
    assert model.encode_chat(messages[:3]) == [*prompt, *answer]
    with pytest.raises(DocumentError) as caught:
        model.encode_chat([{"role": "tool", "content": "a"}])
    assert str(caught.value) == ("message 1 has the role 'tool'; expected one of system, user, assistant.")


def test_without_an_image_decoder_everything_else_works(model_parts: ModelComponents) -> None:
    model = Model(replace(model_parts, tokenizers=without_image_decoder(model_parts.tokenizers)))
    assert model.generate(["a", noise(1)], max_images=0, max_new_tokens=4).token_ids
    assert model.encode([noise(1)])
    with pytest.raises(GenerationError) as caught:
        model.decode_image([1, 2, 3, 4])
    assert str(caught.value) == (
        "this model folder has no vq_decoder.safetensors, so codes cannot become images; expected "
        "the decoder of its image tokenizer. Put that file into the folder, or ask for text only "
        "(max_images=0)."
    )


def test_without_an_image_decoder_an_image_is_a_part_of_codes_and_said_so_once(
    model: Model, model_parts: ModelComponents, caplog: pytest.LogCaptureFixture
) -> None:
    blind = Model(replace(model_parts, tokenizers=without_image_decoder(model_parts.tokenizers)))
    options: dict[str, Any] = {"modality": "image", "max_images": 1, "max_new_tokens": 6, "seed": 1}
    expected = model.generate(["a"], **options)
    found = blind.generate(["a"], **options)
    v = model.vocabulary
    codes = tuple(v.id_to_code(id_) for id_ in expected.token_ids if id_ in v.codes)
    assert found.token_ids == expected.token_ids
    assert found.parts == [ImageCodes(codes)]
    events = list(blind.stream(["a"], **options))
    assert [type(event) for event in events] == [ImageBegun, ImageDone, End]
    assert events[1] == ImageDone(ImageCodes(codes))
    assert [record.getMessage() for record in caplog.records] == [
        "this model folder has no vq_decoder.safetensors: a generated image is a part that holds "
        "its codes. Put that file into the folder, or ask for text only."
    ]


@pytest.mark.parametrize(
    "options",
    [{"dtype": "bfloat16"}, {"dtype": "float16"}, {"quantization": "int8"}],
    ids=["bfloat16", "float16", "int8"],
)
def test_smaller_dtypes_and_int8_generate(model_parts: ModelComponents, options: dict[str, Any]) -> None:
    small = Model(copy.deepcopy(model_parts), **options)
    samples = small.generate_batch(
        [["a red"], [noise(1)]], seeds=[1, 2], max_new_tokens=20, image_first=True, text=WILD
    )
    for sample in samples:
        assert sample.token_ids.count(small.vocabulary.begin_image) >= 1
        assert all(math.isfinite(logprob) for logprob in sample.logprobs)


def test_on_a_cpu_bfloat16_is_the_dtype_of_products_alone(
    model_parts: ModelComponents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    for name, is_preferred in (("bfloat16", False), ("auto", True), ("auto", False)):
        monkeypatch.setattr("calumma.model.bfloat16_products.MIN_MODEL_DIM", 1 if is_preferred else 10_000)
        model = Model(copy.deepcopy(model_parts), dtype=name)
        has_products = name == "bfloat16" or is_preferred
        assert isinstance(model.decoder.blocks[0].feed_forward.up, BFloat16Linear) == has_products
        assert model.engine.model_runner.kv_cache.keys.dtype == model.decoder.head.weight.dtype == torch.float32
        assert repr(model).endswith("cpu, bfloat16)" if has_products else "cpu, float32)")


def test_all_of_an_int4_model_is_bfloat16_where_products_are(
    model_parts: ModelComponents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr("calumma.model.bfloat16_products.MIN_MODEL_DIM", 1)
    decoder = Decoder(replace(model_parts.decoder.config, feed_forward_dim=64))
    decoder.init_weights(0)
    for dtype, expected in (("auto", torch.bfloat16), ("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        parts = replace(model_parts, decoder=copy.deepcopy(decoder))
        model = Model(parts, dtype=dtype, quantization="int4")
        assert {parameter.dtype for parameter in model.decoder.parameters()} == {expected}
        assert model.generate(["a red "], max_new_tokens=4, modality="text").token_ids


def test_an_unknown_quantization_is_refused(model_parts: ModelComponents) -> None:
    with pytest.raises(GenerationError) as caught:
        Model(model_parts, quantization="int3")  # type: ignore[arg-type]
    assert str(caught.value) == "quantization='int3' is not known; expected None, int8, int4 or fp8."


def test_the_most_likely_tokens_are_returned_with_each_token(model: Model) -> None:
    """They are those of the sampler's logits, so the sampled token has the same probability."""
    options: dict[str, Any] = {"max_new_tokens": 24, "text": WILD, "seed": 3}
    plain = model.generate(["a red "], **options)
    assert plain.top_logprobs == [{}] * len(plain.token_ids)
    sample = model.generate(["a red "], num_logprobs=3, **options)
    assert (sample.token_ids, sample.logprobs) == (plain.token_ids, plain.logprobs)
    v = model.vocabulary
    for id_, logprob, top in zip(sample.token_ids, sample.logprobs, sample.top_logprobs, strict=True):
        values = list(top.values())
        assert values == sorted(values, reverse=True) and len(top) in (1, 3)
        assert logprob <= values[0] + 1e-6
        assert top.get(id_, logprob) == pytest.approx(logprob, abs=1e-5)
        allowed = v.codes if id_ in v.codes else [v.eos, v.begin_image, v.end_image, *v.text]
        assert set(top) <= set(allowed)
    everything = model.generate(["a red "], num_logprobs=10**6, max_new_tokens=1, modality="text")
    (top,) = everything.top_logprobs
    assert set(top) == {v.eos, *v.text}
    assert sum(map(math.exp, top.values())) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("async_scheduling", [False, True])
def test_stop_tokens_end_an_output_and_min_tokens_prolong_it(
    model_parts: ModelComponents, async_scheduling: bool
) -> None:
    model = Model(model_parts, engine_config=EngineConfig(async_scheduling=async_scheduling))
    options: dict[str, Any] = {"max_new_tokens": 30, "text": WILD, "modality": "text"}
    samples = model.generate_batch([["a red "]] * 8, seeds=range(8), ignore_eos=True, **options)
    assert [len(sample.token_ids) for sample in samples] == [30] * 8
    plain = samples[0]
    stop = plain.token_ids[9]
    first = plain.token_ids.index(stop)
    for more in ({}, {"num_logprobs": 2}):
        several = model.generate_batch(
            [["a red "]] * 3, seeds=[0] * 3, stop_token_ids=(stop,), ignore_eos=True, **options, **more
        )
        for sample in several:
            assert sample.token_ids == plain.token_ids[: first + 1]
            assert sample.finish_reason == "stop"
            assert "".join(map(str, sample.parts)) == model.text.decode(sample.token_ids[:-1])
    everything = tuple(model.vocabulary.text)
    sample = model.generate(["a red "], stop_token_ids=everything[1:], min_tokens=5, **options)
    assert sample.token_ids[:5] == [everything[0]] * 5
    sample = model.generate(["a red "], stop=(" ", "e", "a"), min_tokens=12, **options)
    assert len(sample.token_ids) > 12


def test_stop_tokens_and_min_tokens_are_checked(model: Model) -> None:
    code = model.vocabulary.codes[0]
    with pytest.raises(GenerationError, match=rf"^stop_token_ids has {code}; expected ids of text"):
        model.generate(["a"], stop_token_ids=(code,))
    with pytest.raises(GenerationError, match=r"^stop_token_ids has all 300 text tokens, so min"):
        model.generate(["a"], stop_token_ids=tuple(model.vocabulary.text), min_tokens=1)
    with pytest.raises(GenerationError, match=r"^min_tokens=9 and num_logprobs=0; expected at"):
        model.generate(["a"], min_tokens=9, max_new_tokens=8)
    with pytest.raises(GenerationError, match="min_tokens and ignore_eos prolong text, but modality="):
        model.generate(["a"], min_tokens=9, modality="image")
