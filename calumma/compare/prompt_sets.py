"""Sets of prompts: plain documents, or the released format of the paper's evaluation.

A line of the released format has text with `<img>` where its pictures stand:

    {"id": 1, "prompt": "What is this? <img>", "task_type": "Identification", "image_urls": [...]}
"""

from __future__ import annotations

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
"""The attribute of a prompt that says what kind of task it is."""

_PLACEHOLDER = "<img>"

CAPTION_REQUEST = (
    "Wherever your answer needs a picture, write instead a caption that describes it, "
    "between <caption> and </caption>."
)
"""What a system without pictures is asked besides, so that its captions can be drawn."""


def read_prompts(path: Path) -> list[Document]:
    """Read a set of prompts; each id once, each prompt in one piece.

    A turn of a user in a document with messages is the prompt; what others say in it is not read.

    Raises:
        DocumentError: nothing can be read, a picture is not there, or an id stands twice.
    """
    prompts = list(_released(path) if _is_released(path) else map(_plain, read_documents([path])))
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.id in seen:
            raise DocumentError(
                f"{path}: two prompts have the id {prompt.id!r}; expected each once. Give one of "
                "them another id."
            )
        seen.add(prompt.id)
    return prompts


def with_caption_request(prompts: Iterable[Document]) -> Iterator[Document]:
    """The prompts as a system without pictures is to be asked."""
    for prompt in prompts:
        yield replace(prompt, content=(*prompt.content, Text(f"\n{CAPTION_REQUEST}")))


def prompt_modality(prompt: Document) -> str:
    """What goes into a prompt: "mixed" where it holds a picture, else "text"."""
    return "mixed" if prompt.images else "text"


def _plain(document: Document) -> Document:
    asked = [turn for turn in document.messages if turn.role != "assistant"][:1]
    content = asked[0].parts if asked else document.content
    category = document.attributes.get(CATEGORY_ATTRIBUTE) or document.attributes.get(
        "task_type", ""
    )
    return replace(
        document, content=content, messages=(), attributes={CATEGORY_ATTRIBUTE: category}
    )


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
        pieces = text.split(_PLACEHOLDER)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DocumentError(
            f'{where}: no prompt can be read ({error!r}); expected an object with "id", "prompt", '
            '"task_type" and "image_urls". Fix the line, or leave it out.'
        ) from error
    if len(pieces) - 1 != len(urls):
        raise DocumentError(
            f"{where}: {len(pieces) - 1} places {_PLACEHOLDER} and {len(urls)} image_urls; expected "
            "one for the other. Fix the line, or leave it out."
        )
    return Document(
        id=str(record.get("id", number)),
        source=path.name,
        content=tuple(_interleaved(pieces, [_picture(url, path, where) for url in urls])),
        attributes={CATEGORY_ATTRIBUTE: str(record.get("task_type") or "")},
    )


def _interleaved(pieces: Sequence[str], pictures: Sequence[Image]) -> Iterator[Part]:
    for number, piece in enumerate(pieces):
        if piece.strip():
            yield Text(piece)
        if number < len(pictures):
            yield pictures[number]


def _picture(url: str, path: Path, where: str) -> Image:
    """The local copy of a picture: under the path in the URL, or by its name in `images/`."""
    inside = PurePosixPath(unquote(urlsplit(url).path).lstrip("/"))
    folder = path.parent.resolve()
    for candidate in (folder / inside, folder / "images" / inside.name):
        target = candidate.resolve()
        if target.is_relative_to(folder) and target.is_file():
            return Image(path=target)
    raise DocumentError(
        f"{where}: the picture {url} is not here; expected it as images/{inside.name} beside the "
        "file, as nothing is fetched. Download it there, or leave the line out."
    )
