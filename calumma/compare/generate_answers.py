"""Generate our model's answers to prompts, and images in place of other systems' captions.

Source: arXiv:2405.09818, section 4.1, the "+" baselines: every caption of an answer is replaced by
an image that another model generates for it.
"""

import json
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import PIL.Image

from calumma.documents.document import Document, Image, Part, Text, document_from_json, document_to_json
from calumma.documents.image_formats import encode_png
from calumma.files import make_folder, os_errors_as_output_errors
from calumma.generate.model import Model
from calumma.runtime import STOP

PROMPT_BATCH_SIZE = 8
"""Prompts answered at a time."""

_CAPTION = re.compile(r"<caption>(.*?)</caption>", re.DOTALL | re.IGNORECASE)

GenerateImage = Callable[[str], Image | None]
"""Maps a caption to an image; None where none could be generated."""


def generate_answers(
    model: Model,
    prompts: Sequence[Document],
    cache_file: Path,
    on_progress: Callable[[int], None] = lambda count: None,
    **options: Any,
) -> list[Document]:
    """Return the model's answers, one document per prompt; cached answers are reused.

    Args:
        model: generates images too, if it has an image decoder.
        prompts: each is one user turn.
        cache_file: JSON lines, to which answers are appended as they are generated.
        on_progress: called with the number of answers.
        options: options of `Model.generate_batch`; a prompt's seed is derived from `seed` and
            its id.

    Raises:
        GenerationError: a prompt does not fit the model.
        Interrupted: a signal requested a stop; generated answers are in the cache.
    """
    done = {answer.id: answer for answer in _read_cache(cache_file)}
    seed = options.pop("seed", 0)
    make_folder(cache_file.parent)
    remaining = [prompt for prompt in prompts if prompt.id not in done]
    on_progress(len(done))
    with os_errors_as_output_errors(cache_file), cache_file.open("a", encoding="utf-8") as file:
        for start in range(0, len(remaining), PROMPT_BATCH_SIZE):
            STOP.check(f"{cache_file} holds {len(done)} of {len(prompts)} answers")
            batch = remaining[start : start + PROMPT_BATCH_SIZE]
            for answer in _answer_batch(model, batch, seed, options):
                done[answer.id] = answer
                file.write(json.dumps(document_to_json(answer), ensure_ascii=False) + "\n")
            file.flush()
            on_progress(len(done))
    return [done[prompt.id] for prompt in prompts]


def _answer_batch(model: Model, prompts: Sequence[Document], seed: int, options: dict[str, Any]) -> Iterator[Document]:
    seeds = [prompt_seed(prompt.id, seed) for prompt in prompts]
    samples = model.generate_batch([prompt.content for prompt in prompts], seeds=seeds, **options)
    for prompt, sample in zip(prompts, samples, strict=True):
        yield Document(
            id=prompt.id,
            source="calumma",
            content=tuple(Text(part) if isinstance(part, str) else image_part(part) for part in sample.decoded_parts),
        )


def make_image_generator(model: Model, **options: Any) -> GenerateImage:
    """Return a function that generates an image for a caption with a model."""

    def generate(caption: str) -> Image | None:
        sample = model.generate([caption], image_first=True, max_images=1, seed=prompt_seed(caption, 0), **options)
        images = [part for part in sample.decoded_parts if not isinstance(part, str)]
        return image_part(images[0]) if images else None

    return generate


def prompt_seed(name: str, seed: int) -> int:
    """Return a prompt's own seed, independent of other prompts.

    >>> prompt_seed("a", 0) == prompt_seed("a", 0), prompt_seed("a", 0) == prompt_seed("b", 0)
    (True, False)
    """
    return zlib.crc32(f"{seed}:{name}".encode())


def image_part(image: PIL.Image.Image) -> Image:
    """Return a generated image as a part of a document."""
    return Image(data=encode_png(image), name="a generated image")


def _read_cache(path: Path) -> Iterator[Document]:
    """Yield the answers in a file, and remove an incomplete last line."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    complete = [line for line in lines if line.endswith("\n")]
    if len(complete) < len(lines):
        path.write_text("".join(complete), encoding="utf-8")
    for number, line in enumerate(complete, start=1):
        yield document_from_json(json.loads(line), None, f"{path}, line {number}")


def captions_to_images(answer: Document, generate: GenerateImage) -> Document:
    """Return the answer with captions replaced by images; a caption without an image is kept."""
    parts = [new for part in answer.parts() for new in _replace_captions(part, generate)]
    return replace(answer, content=tuple(parts), messages=())


def _replace_captions(part: Part, generate: GenerateImage) -> Iterator[Part]:
    if not isinstance(part, Text):
        yield part
        return
    end = 0
    for match in _CAPTION.finditer(part.text):
        image = generate(match.group(1).strip())
        if image is None:
            continue
        if before := part.text[end : match.start()].strip("\n"):
            yield Text(before)
        yield image
        end = match.end()
    if rest := part.text[end:].strip("\n") if end else part.text:
        yield Text(rest)
