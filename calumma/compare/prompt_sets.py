"""Prompt sets: plain documents, or the released format of the paper's evaluation.

A line of the released format has text with `<img>` in the positions of its images:

    {"id": 1, "prompt": "What is this? <img>", "task_type": "Identification", "image_urls": [...]}
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from calumma.documents.document import Document, Image, Part, Text
from calumma.documents.readers import read_documents
from calumma.errors import DocumentError

CATEGORY_ATTRIBUTE = "category"
"""Attribute of a prompt with its kind of task."""

_PLACEHOLDER = "<img>"

CAPTION_REQUEST = (
    "Wherever your answer needs a picture, write instead a caption that describes it, "
    "between <caption> and </caption>."
)
"""Added to the prompts of a text-only system, so that its captions can be replaced by images."""


def read_prompts(path: Path) -> list[Document]:
    """Read a set of prompts; of a document with messages, the first user turn is the prompt.

    Raises:
        DocumentError: the file cannot be read, an image is missing, or an id is not unique.
    """
    prompts = list(_released(path) if _is_released(path) else map(_plain, read_documents([path])))
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.id in seen:
            raise DocumentError(
                f"{path}: two prompts have the id {prompt.id!r}; expected unique ids. Give one of them another id."
            )
        seen.add(prompt.id)
    return prompts


def with_caption_request(prompts: Iterable[Document]) -> Iterator[Document]:
    """Yield the prompts for a text-only system, which is to write captions."""
    for prompt in prompts:
        yield replace(prompt, content=(*prompt.content, Text(f"\n{CAPTION_REQUEST}")))


def prompt_modality(prompt: Document) -> str:
    """Return "mixed" for a prompt with an image, else "text"."""
    return "mixed" if prompt.images else "text"


def _plain(document: Document) -> Document:
    user_turns = [turn for turn in document.messages if turn.role != "assistant"][:1]
    content = user_turns[0].parts if user_turns else document.content
    attributes = document.attributes
    category = attributes.get(CATEGORY_ATTRIBUTE) or attributes.get("task_type", "")
    return replace(document, content=content, messages=(), attributes={CATEGORY_ATTRIBUTE: category})


def _is_released(path: Path) -> bool:
    if path.suffix != ".jsonl" or not path.is_file():
        return False
    with path.open(encoding="utf-8", errors="replace") as file:
        first = file.readline()
    try:
        record = json.loads(first)
    except ValueError:
        return False
    return isinstance(record, dict) and isinstance(record.get("prompt"), str)


def _released(path: Path) -> Iterator[Document]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _released_prompt(line, path, number)


def _released_prompt(line: str, path: Path, number: int) -> Document:
    where = f"{path}, line {number}"
    try:
        record: Any = json.loads(line)
        text, urls = record["prompt"], record.get("image_urls") or []
        texts = text.split(_PLACEHOLDER)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DocumentError(
            f'{where}: no prompt can be read ({error!r}); expected an object with "id", "prompt", '
            '"task_type" and "image_urls". Fix the line, or leave it out.'
        ) from error
    if len(texts) - 1 != len(urls):
        raise DocumentError(
            f"{where}: {len(texts) - 1} placeholders {_PLACEHOLDER} and {len(urls)} image_urls; "
            "expected the same number. Fix the line, or leave it out."
        )
    return Document(
        id=str(record.get("id", number)),
        source=path.name,
        content=tuple(_interleave(texts, [_local_image(url, path, where) for url in urls])),
        attributes={CATEGORY_ATTRIBUTE: str(record.get("task_type") or "")},
    )


def _interleave(texts: Sequence[str], images: Sequence[Image]) -> Iterator[Part]:
    for number, text in enumerate(texts):
        if text.strip():
            yield Text(text)
        if number < len(images):
            yield images[number]


def _local_image(url: str, path: Path, where: str) -> Image:
    """Return the local copy of an image: under the path in the URL, or by its name in `images/`."""
    url_path = PurePosixPath(unquote(urlsplit(url).path).lstrip("/"))
    folder = path.parent.resolve()
    for candidate in (folder / url_path, folder / "images" / url_path.name):
        target = candidate.resolve()
        if target.is_relative_to(folder) and target.is_file():
            return Image(path=target)
    raise DocumentError(
        f"{where}: the image {url} is missing; expected it as images/{url_path.name} next to the "
        "file, as nothing is downloaded. Copy it there, or leave the line out."
    )
