"""The image grammar as vLLM's logits processor, in a stand-in for vLLM's batch."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from calumma.checkpoints.model_folder import ModelComponents, save_model
from calumma.generate.model import Model
from calumma.generate.params import ImageSampling, TextSampling
from calumma.serve.vllm.extra_args import (
    GROUP_KEY,
    ROLE_KEY,
    decode_logprobs,
    guidance_sequences,
    request_state_of,
    vllm_extra_args,
)
from calumma.serve.vllm.logits_processor import GrammarLogitsProcessor
from calumma.tokens.sequence import split_modalities
from tests.images import noise


class Direction(Enum):
    """Direction of a move within the batch."""

    UNIDIRECTIONAL = 0
    SWAP = 1


@dataclass
class Update:
    """A batch update, as vLLM documents it."""

    batch_size: int
    removed: Sequence[int] = ()
    added: Sequence[tuple[int, Any, list[int] | None, list[int]]] = ()
    moved: Sequence[tuple[int, int, Direction]] = ()


@dataclass
class FakeSamplingParams:
    """The fields of vLLM's SamplingParams that the processor reads."""

    max_tokens: int | None = 40
    extra_args: dict[str, Any] | None = field(default_factory=dict)
    temperature: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logprobs: int | None = None


@pytest.fixture(scope="module")
def folder(model_parts: ModelComponents, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("logits") / "model"
    save_model(path, model_parts)
    return path


def new_processor(folder: Path, runner: Any) -> GrammarLogitsProcessor:
    config = SimpleNamespace(
        model_config=SimpleNamespace(model=str(folder), revision=None),
        scheduler_config=SimpleNamespace(max_num_seqs=8, scheduler_cls="calumma.GuidanceScheduler"),
    )
    return GrammarLogitsProcessor(config, runner)


@pytest.fixture
def processor(folder: Path) -> GrammarLogitsProcessor:
    return new_processor(folder, torch.device("cpu"))


def step(processor: GrammarLogitsProcessor, outputs: list[list[int]], seed: int) -> None:
    """Run a step of the stand-in: random logits, masked, and the most likely token of each row."""
    generator = torch.Generator().manual_seed(seed)
    size = processor.vocabulary.size + 5  # padding rows of the head, never sampled
    logits = torch.randn(len(outputs), size, generator=generator)
    logits[:, processor.vocabulary.begin_image] += 3
    masked = processor.apply(logits)
    assert masked is logits
    for row, output in enumerate(outputs):
        output.append(int(masked[row].argmax()))


def test_images_are_complete_whatever_the_logits_are(processor: GrammarLogitsProcessor, model: Model) -> None:
    v = model.vocabulary
    prompts = [list(model.encode([text])) for text in ("a", "red", "circle")]
    expected = [{}, {"calumma_modality": "text"}, {"calumma_modality": "image", "calumma_max_images": 2}]
    outputs: list[list[int]] = [[], [], []]
    added = [
        (row, FakeSamplingParams(extra_args=args), prompt, outputs[row])
        for row, (args, prompt) in enumerate(zip(expected, prompts, strict=True))
    ]
    processor.update_state(Update(3, added=added))
    for number in range(30):
        step(processor, outputs, number)
        processor.update_state(None)
    ended = [out[: out.index(v.eos)] if v.eos in out else out for out in outputs]
    for ids in ended:
        assert all(id_ < v.size for id_ in ids)
        runs = split_modalities(ids, v)
        assert all(len(run) == 4 for kind, run in runs[:-1] if kind == "image")
    assert ended[0].count(v.begin_image) > 1
    assert v.begin_image not in ended[1]
    assert [kind for kind, _ in split_modalities(ended[2], v)] == ["image", "image"]
    assert not processor.is_argmax_invariant()


def test_requests_keep_their_grammar_when_they_move(processor: GrammarLogitsProcessor, model: Model) -> None:
    v = model.vocabulary
    prompt = list(model.encode(["a"]))
    drawing, writing, other = [v.begin_image], [], [v.begin_image, 4]
    text = FakeSamplingParams(extra_args={"calumma_modality": "text"})
    added = [(0, FakeSamplingParams(), prompt, drawing), (1, text, prompt, writing)]
    processor.update_state(Update(2, added=added))
    processor.update_state(Update(2, moved=[(0, 1, Direction.SWAP)]))

    def kinds(rows: int) -> list[str]:
        masked = processor.apply(torch.zeros(rows, v.size))
        return ["code" if row[4] == 0 else "text" if row[v.text.start] == 0 else "?" for row in masked]

    assert kinds(2) == ["text", "code"]
    processor.update_state(Update(2, removed=[0], added=[(0, FakeSamplingParams(), prompt, other)]))
    assert kinds(2) == ["code", "code"]
    processor.update_state(Update(1, removed=[0], moved=[(1, 0, Direction.UNIDIRECTIONAL)]))
    assert list(processor.rows) == [0]
    assert kinds(1) == ["code"]


def test_an_invalid_request_ends_at_once_and_leaves_the_others_alone(
    processor: GrammarLogitsProcessor, model: Model
) -> None:
    v = model.vocabulary
    outputs: list[list[int]] = [[], [], [v.end_image]]
    added = [
        (0, FakeSamplingParams(max_tokens=3, extra_args={"calumma_modality": "image"}), [0], outputs[0]),
        (1, FakeSamplingParams(max_tokens=None, extra_args=None), [0], outputs[1]),
        (2, FakeSamplingParams(), [0], outputs[2]),
    ]
    processor.update_state(Update(3, added=added))
    step(processor, outputs, 0)
    assert outputs[0] == [v.eos]
    assert outputs[1] != [v.eos]
    assert outputs[2] == [v.end_image, v.eos]
    empty = GrammarLogitsProcessor.__new__(GrammarLogitsProcessor)
    empty.rows = {}
    assert empty.apply(torch.zeros(1, 3)).tolist() == [[0, 0, 0]]


def test_sampled_tokens_are_the_engine_s(processor: GrammarLogitsProcessor, model: Model) -> None:
    """Penalty of text alone, sampling of images of its own, and seeds by position."""
    text = TextSampling(temperature=2.0, top_p=0.95, repetition_penalty=1.3)
    image = ImageSampling(temperature=1.0, top_k=9, guidance_scale=1.0, image_guidance_scale=1.0)
    requests = [
        model.request(["a red "], seed=seed, text=text, image=image, max_new_tokens=30, ignore_eos=seed == 0)
        for seed in range(6)
    ]
    outputs: list[list[int]] = [[] for _ in requests]
    added = [
        (row, FakeSamplingParams(30, vllm_extra_args(request)), list(request.prompt_token_ids), outputs[row])
        for row, request in enumerate(requests)
    ]
    processor.update_state(Update(6, added=added))
    for number in range(30):
        ids = [[*request.prompt_token_ids, *output] for request, output in zip(requests, outputs, strict=True)]
        logits = torch.cat([model.logits(row)[:, -1] for row in ids])
        if number == 7:
            # vLLM drops a step, as for a prompt in several chunks or a preempted request.
            processor.apply(logits.clone())
        masked = processor.apply(logits)
        assert ((masked > -torch.inf).sum(1) == 1).all()
        for row, output in enumerate(outputs):
            output.append(int(masked[row].argmax()))
    for output, sample in zip(outputs, model.generate_requests(requests), strict=True):
        assert output[: len(sample.token_ids)] == sample.token_ids
    processor.update_state(Update(0, removed=list(range(6))))
    assert processor.rows == {} and len(processor._free_slots) == 8


def test_guided_codes_are_the_engine_s_or_discarded(processor: GrammarLogitsProcessor, model: Model) -> None:
    """Rows of a group get one token; without one of them, any code, which the scheduler discards."""
    v = model.vocabulary
    image = ImageSampling(temperature=1.0, guidance_scale=3.0, image_guidance_scale=1.2)
    request = model.request([noise(1), "a"], seed=3, image=image, modality="image", max_images=1, max_new_tokens=6)
    output: list[int] = [v.begin_image]
    parent = FakeSamplingParams(6, {**vllm_extra_args(request), GROUP_KEY: "7"})
    prompt = list(request.prompt_token_ids)
    state, _ = request_state_of(parent, prompt, v, 4)
    assert state is not None
    state.append_token(v.begin_image, 0.0)
    sequences = guidance_sequences(state)
    assert list(sequences) == ["image_cond", "uncond"]
    companions: list[list[int]] = [[], []]
    added = [(0, parent, prompt, output)]
    for row, (role, sequence) in enumerate(sequences.items(), start=1):
        params = FakeSamplingParams(4, {GROUP_KEY: "7", ROLE_KEY: role})
        added.append((row, params, list(sequence.token_ids), companions[row - 1]))
    processor.update_state(Update(2, added=added[:2]))
    alone = processor.apply(torch.randn(2, v.size))
    assert alone.argmax(1).tolist() == [v.codes.start] * 2
    processor.update_state(Update(3, added=added[2:]))
    for _ in range(4):
        rows = [[*prompt, *output]] + [[*ids[2], *ids[3]] for ids in added[1:]]
        masked = processor.apply(torch.cat([model.logits(row)[:, -1] for row in rows]))
        ids = masked.argmax(1).tolist()
        assert len(set(ids)) == 1
        for row, own in zip(ids, (output, *companions), strict=True):
            own.append(row)
    assert output == model.generate_requests([request])[0].token_ids[:5]
    processor.update_state(Update(0, removed=[0, 1, 2]))
    assert len(processor._free_slots) == 8


def test_guidance_without_its_scheduler_ends_a_request(processor: GrammarLogitsProcessor, model: Model) -> None:
    processor.has_guidance = False
    args = vllm_extra_args(model.request(["a"]))
    processor.update_state(Update(1, added=[(0, FakeSamplingParams(extra_args=args), [0, 4], [])]))
    assert processor.apply(torch.zeros(1, model.vocabulary.size)).argmax(1).tolist() == [model.vocabulary.eos]


def test_parameters_are_checked_before_a_request_is_accepted() -> None:
    check = GrammarLogitsProcessor.validate_params
    check(FakeSamplingParams(extra_args=None))
    check(FakeSamplingParams(extra_args={"calumma_sampling": '{"seed": 1}'}))
    for args, message in (
        ({"calumma_modality": "film"}, "modality='film' is not known"),
        ({"calumma_max_images": "many"}, "invalid literal"),
        ({"calumma_sampling": "[]"}, "calumma_sampling is no JSON object; expected one. Fix it."),
        ({"calumma_sampling": '{"text": {"heat": 1}}'}, "calumma_sampling is invalid"),
        ({"calumma_sampling": '{"text": {"top_p": 2}}'}, "top_p=2; expected"),
        ({GROUP_KEY: "1"}, "calumma_group and calumma_role are set by the scheduler; expected neither."),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            check(FakeSamplingParams(extra_args=args))
    for more in ({"temperature": 1.0}, {"repetition_penalty": 1.2}, {"presence_penalty": 1.0}):
        with pytest.raises(ValueError, match="expected temperature 0 and no penalty"):
            check(FakeSamplingParams(extra_args={"calumma_sampling": '{"seed": 1}'}, **more))


class FakeTables:
    """The tables of the second runner that the processor reads, for two slots of 64 tokens."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.all_token_ids = SimpleNamespace(gpu=torch.zeros(2, 64, dtype=torch.int32))
        self.prompt_len = SimpleNamespace(np=np.zeros(2, dtype=np.int32))
        self.prefill_len = SimpleNamespace(np=np.zeros(2, dtype=np.int32))

    def put(self, slot: int, prompt: Sequence[int], output: Sequence[int]) -> None:
        ids = [*prompt, *output]
        self.all_token_ids.gpu[slot, : len(ids)] = torch.tensor(ids)
        self.prompt_len.np[slot], self.prefill_len.np[slot] = len(prompt), len(ids)


def test_the_second_runner_samples_the_same_tokens_with_the_engine_s_log_probabilities(
    folder: Path, model: Model
) -> None:
    """Two requests change their places in every step, and one is preempted and resumed."""
    tables = FakeTables()
    processor = new_processor(folder, tables)
    text, image = TextSampling(temperature=2.0, repetition_penalty=1.3), ImageSampling(guidance_scale=1.0)
    options = {"text": text, "image": image, "max_new_tokens": 20, "num_logprobs": 3, "ignore_eos": True}
    requests = [model.request(["a red "], seed=seed, **options) for seed in range(2)]
    outputs: list[list[int]] = [[], []]
    found: list[list[dict[int, float]]] = [[], []]
    for number in range(20):
        for slot, request in enumerate(requests) if number in (0, 9) else ():
            tables.put(slot, request.prompt_token_ids, outputs[slot])
            assert processor.add_request(slot, FakeSamplingParams(20, vllm_extra_args(request), logprobs=4))
        processor.apply_staged_writes()
        slots = [1, 0] if number % 2 else [0, 1]
        ids = [[*requests[slot].prompt_token_ids, *outputs[slot]] for slot in slots]
        context = SimpleNamespace(
            idx_mapping_np=np.array(slots),
            pos=torch.tensor([len(row) - 1 for row in ids]),
            input_ids=torch.tensor([row[-1] for row in ids]),
        )
        logits = processor.apply(torch.cat([model.logits(row)[:, -1] for row in ids]), context)
        for slot, row in zip(slots, logits, strict=True):
            id_ = int(row.argmax())
            values = {token: float(row[token]) for token in row.topk(4).indices.tolist() if row[token] > -torch.inf}
            logprob, top = decode_logprobs(values, id_, 3)
            outputs[slot].append(id_)
            found[slot].append({id_: logprob, **top})
    for slot, sample in enumerate(model.generate_requests(requests)):
        assert outputs[slot] == sample.token_ids
        for got, id_, logprob, top in zip(
            found[slot], sample.token_ids, sample.logprobs, sample.top_logprobs, strict=True
        ):
            assert got == pytest.approx({**top, id_: logprob}, abs=1e-5)


def test_rows_of_no_request_of_the_second_runner_are_left_alone(folder: Path, model: Model) -> None:
    """Before the first request the runner computes dummy batches."""
    processor = new_processor(folder, FakeTables())
    zeros = torch.zeros(2, dtype=torch.int64)
    context = SimpleNamespace(idx_mapping_np=np.array([0, 1]), pos=zeros, input_ids=zeros)
    assert processor.apply(torch.ones(2, model.vocabulary.size), context).min() == 1
