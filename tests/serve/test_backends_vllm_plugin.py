"""Our grammar as vLLM's logits processor, in a stand-in for vLLM's batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from calumma.checkpoints.model_folder import ModelComponents, save_model
from calumma.generate.model import Model
from calumma.generate.params import ImageSampling, Request
from calumma.serve.backends.vllm_plugin import GrammarLogitsProcessor, without_guidance
from calumma.tokens.sequence import split_modalities


class Direction(Enum):
    """How a request moves within the batch."""

    UNIDIRECTIONAL = 0
    SWAP = 1


@dataclass
class Update:
    """What the processor is result of the batch, as vLLM documents it."""

    batch_size: int
    removed: Sequence[int] = ()
    added: Sequence[tuple[int, Any, list[int] | None, list[int]]] = ()
    moved: Sequence[tuple[int, int, Direction]] = ()


@dataclass
class Asked:
    """The fields of vLLM's SamplingParams that count here."""

    max_tokens: int | None = 40
    extra_args: dict[str, Any] | None = field(default_factory=dict)


@pytest.fixture(scope="module")
def folder(model_parts: ModelComponents, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("logits") / "model"
    save_model(path, model_parts)
    return path


@pytest.fixture
def processor(folder: Path) -> GrammarLogitsProcessor:
    config = SimpleNamespace(model_config=SimpleNamespace(model=str(folder)))
    return GrammarLogitsProcessor(config, torch.device("cpu"), False)


def step(processor: GrammarLogitsProcessor, outputs: list[list[int]], seed: int) -> None:
    """One step of the stand-in: logits of noise, masked; the likeliest id of each row is chosen."""
    chance = torch.Generator().manual_seed(seed)
    size = processor.vocabulary.size + 5  # spare rows of the head, never chosen
    logits = torch.randn(len(outputs), size, generator=chance)
    logits[:, processor.vocabulary.begin_image] += 3
    masked = processor.apply(logits)
    assert masked is logits
    for row, output in enumerate(outputs):
        output.append(int(masked[row].argmax()))


def test_whatever_the_engine_would_choose_images_are_whole(
    processor: GrammarLogitsProcessor, model: Model
) -> None:
    v = model.vocabulary
    prompts = [list(model.encode([text])) for text in ("a", "red", "circle")]
    expected = [
        {},
        {"calumma_modality": "text"},
        {"calumma_modality": "image", "calumma_max_images": 2},
    ]
    outputs: list[list[int]] = [[], [], []]
    added = [
        (row, Asked(extra_args=args), prompt, outputs[row])
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


def test_requests_keep_their_grammar_when_they_change_places(
    processor: GrammarLogitsProcessor, model: Model
) -> None:
    v = model.vocabulary
    prompt = list(model.encode(["a"]))
    drawing, writing, other = [v.begin_image], [], [v.begin_image, 4]
    text = Asked(extra_args={"calumma_modality": "text"})
    added = [(0, Asked(), prompt, drawing), (1, text, prompt, writing)]
    processor.update_state(Update(2, added=added))
    processor.update_state(Update(2, moved=[(0, 1, Direction.SWAP)]))

    def kinds(rows: int) -> list[str]:
        masked = processor.apply(torch.zeros(rows, v.size))
        return [
            "code" if row[4] == 0 else "text" if row[v.text.start] == 0 else "?" for row in masked
        ]

    assert kinds(2) == ["text", "code"]
    processor.update_state(Update(2, removed=[0], added=[(0, Asked(), prompt, other)]))
    assert kinds(2) == ["code", "code"]
    processor.update_state(Update(1, removed=[0], moved=[(1, 0, Direction.UNIDIRECTIONAL)]))
    assert list(processor.grammars) == [0]
    assert kinds(1) == ["code"]


def test_what_cannot_be_answered_ends_at_once_and_harms_nobody(
    processor: GrammarLogitsProcessor, model: Model
) -> None:
    v = model.vocabulary
    outputs: list[list[int]] = [[], [], [v.end_image]]
    added = [
        (0, Asked(max_tokens=3, extra_args={"calumma_modality": "image"}), [0], outputs[0]),
        (1, Asked(max_tokens=None, extra_args=None), [0], outputs[1]),
        (2, Asked(), [0], outputs[2]),
    ]
    processor.update_state(Update(3, added=added))
    step(processor, outputs, 0)
    assert outputs[0] == [v.eos]
    assert outputs[1] != [v.eos]
    assert outputs[2] == [v.end_image, v.eos]
    empty = GrammarLogitsProcessor.__new__(GrammarLogitsProcessor)
    empty.grammars = {}
    assert empty.apply(torch.zeros(1, 3)).tolist() == [[0, 0, 0]]


def test_a_request_to_others_has_no_guidance() -> None:
    request = Request(prompt_token_ids=(0,), seed=3, image=ImageSampling(temperature=0.5))
    assert without_guidance(request) == Request(
        prompt_token_ids=(0,),
        seed=3,
        image=ImageSampling(temperature=0.5, guidance_scale=1.0, image_guidance_scale=1.0),
    )
