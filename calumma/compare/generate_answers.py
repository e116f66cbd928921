"""Our own answers to a set of prompts, and our drawings of other systems' captions."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import PIL.Image

from calumma.compare.caption_to_image import GenerateImage
from calumma.documents.document import Document, Image, Text, document_from_json, document_to_json
from calumma.documents.image_formats import encode_png
from calumma.files import make_folder, os_errors_as_output_errors
from calumma.generate.model import Model
from calumma.runtime import STOP

PROMPT_BATCH_SIZE = 8
"""Prompts that are answered at once."""


def generate_answers(
    model: Model,
    prompts: Sequence[Document],
    cache_file: Path,
    on_progress: Callable[[int], None] = lambda count: None,
    **options: Any,
) -> list[Document]:
    """The model's answers, one document a prompt; what `kept` holds is not asked again.

    Args:
        model: draws too, if it can.
        prompts: each is one user turn.
        kept: a file of JSON lines that grows as answers come.
        tick: hears how many there are.
        options: of `Model.generate_batch`; a prompt's seed is `seed` and its id together.

    Raises:
        GenerationError: a prompt does not fit the model.
        Interrupted: a signal asked to stop; what was answered is kept.
    """
    done = {answer.id: answer for answer in _read(cache_file)}
    seed = options.pop("seed", 0)
    make_folder(cache_file.parent)
    waiting = [prompt for prompt in prompts if prompt.id not in done]
    on_progress(len(done))
    with os_errors_as_output_errors(cache_file), cache_file.open("a", encoding="utf-8") as file:
        for start in range(0, len(waiting), PROMPT_BATCH_SIZE):
            STOP.check(f"{cache_file} holds {len(done)} of {len(prompts)} answers")
            batch = waiting[start : start + PROMPT_BATCH_SIZE]
            for answer in _answers(model, batch, seed, options):
                done[answer.id] = answer
                file.write(json.dumps(document_to_json(answer), ensure_ascii=False) + "\n")
            file.flush()
            on_progress(len(done))
    return [done[prompt.id] for prompt in prompts]


def _answers(
    model: Model, prompts: Sequence[Document], seed: int, options: dict[str, Any]
) -> Iterator[Document]:
    parts = [[_user_part(part) for part in prompt.content] for prompt in prompts]
    seeds = [prompt_seed(prompt.id, seed) for prompt in prompts]
    samples = model.generate_batch(parts, seeds=seeds, **options)
    for prompt, sample in zip(prompts, samples, strict=True):
        yield Document(
            id=prompt.id,
            source="calumma",
            content=tuple(
                Text(part) if isinstance(part, str) else image_part(part) for part in sample.parts
            ),
        )


def make_image_generator(model: Model, **options: Any) -> GenerateImage:
    """Draws captions with a model: the first picture of an answer that must begin with one."""

    def draw(caption: str) -> Image | None:
        sample = model.generate(
            [caption], image_first=True, max_images=1, seed=prompt_seed(caption, 0), **options
        )
        drawn = [part for part in sample.parts if not isinstance(part, str)]
        return image_part(drawn[0]) if drawn else None

    return draw


def prompt_seed(name: str, seed: int) -> int:
    """A seed of its own for each prompt, whatever others are asked.

    >>> seed_of("a", 0) == seed_of("a", 0), seed_of("a", 0) == seed_of("b", 0)
    (True, False)
    """
    return zlib.crc32(f"{seed}:{name}".encode())


def image_part(image: PIL.Image.Image) -> Image:
    """A drawn picture as a part of a document."""
    return Image(data=encode_png(image), name="a drawn picture")


def _user_part(part: Text | Image) -> str | PIL.Image.Image:
    return part.text if isinstance(part, Text) else part.open().convert("RGB")


def _read(kept: Path) -> Iterator[Document]:
    """The whole lines of a file that may end in a half one."""
    lines = kept.read_text(encoding="utf-8").splitlines(keepends=True) if kept.is_file() else []
    whole = [line for line in lines if line.endswith("\n")]
    if len(whole) < len(lines):
        kept.write_text("".join(whole), encoding="utf-8")
    for number, line in enumerate(whole, start=1):
        yield document_from_json(json.loads(line), None, f"{kept}, line {number}")
