"""Visual chat, drawing, and text with pictures: conversations from pictures with captions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import cast

from calumma.corpora.captions import Split, caption_group, group_split, normalize_caption
from calumma.corpora.instructions.conversation_templates import (
    SourceInfo,
    make_conversation,
    pick_template,
)
from calumma.documents.document import Document, Part

DESCRIBE_PROMPTS = ("What is this?", "What does the picture show?", "Describe the picture.")
COLOR_PROMPTS = ("Which colour is most of it?", "What is its main colour?")
DRAW_PROMPTS = ("Draw {caption}.", "Draw me a picture of {caption}.", "Make an image of {caption}.")
EXPLAIN_PROMPTS = ("Tell me about {caption}, with a picture.", "Explain {caption} and show it.")
SHOW_PROMPTS = (
    "Show {first} and {second}.",
    "Show me {first} and then {second}, with their names.",
)


GLOSSES_LICENSE = "WordNet-3.0"


def document_caption(document: Document) -> str:
    """Return the caption of an image: the attribute, or the document's text."""
    return document.attributes.get("caption") or document.text


def _source_info(document: Document) -> SourceInfo:
    attributes = document.attributes
    split = attributes.get("split") or group_split(caption_group(document_caption(document)))
    return SourceInfo(name=document.id, license=document.license, split=cast("Split", split))


def visual_chat(document: Document) -> Iterator[Document]:
    """Questions about a picture: what it is, and where it is known, its main colour."""
    of, image = _source_info(document), document.images[0]
    asked = pick_template(DESCRIBE_PROMPTS, of.name)
    yield make_conversation(
        "visual_chat", "describe", [image, asked], [document_caption(document)], of
    )
    colour = document.attributes.get("colour")
    if colour:
        yield make_conversation(
            "visual_chat", "colour", [image, pick_template(COLOR_PROMPTS, of.name)], [colour], of
        )


def image_request(document: Document) -> Document:
    """Build a request for the image of a caption."""
    of = _source_info(document)
    asked = pick_template(DRAW_PROMPTS, of.name).format(caption=document_caption(document))
    return make_conversation("image_generation", "draw", [asked], [document.images[0]], of)


def explain_with_image(document: Document, glosses: Mapping[str, str]) -> Document | None:
    """A caption asks for words and a picture; None where the words are not known.

    Args:
        document: a picture with its caption.
        glosses: what a thing is, by its `normalised` name.
    """
    caption = document_caption(document)
    gloss = glosses.get(normalize_caption(caption))
    if gloss is None:
        return None
    licence = " and ".join(filter(None, (document.license, GLOSSES_LICENSE)))
    of = replace(_source_info(document), license=licence)
    asked = pick_template(EXPLAIN_PROMPTS, of.name).format(caption=caption)
    told: list[Part | str] = [f"{caption}: {gloss}", document.images[0]]
    return make_conversation("interleaved_generation", "tell", [asked], told, of)


def show_pairs(documents: Iterable[Document]) -> Iterator[Document]:
    """Each two neighbours of one split: both are asked for, and come with their captions."""
    before: dict[str, Document] = {}
    for document in documents:
        shown = _shown(document, before)
        if shown is not None:
            yield shown


def interleaved_conversations(
    documents: Iterable[Document], glosses: Mapping[str, str]
) -> Iterator[Document]:
    """What `telling` and `showing` make of some pictures, in one pass."""
    before: dict[str, Document] = {}
    for document in documents:
        yield from filter(None, (explain_with_image(document, glosses), _shown(document, before)))


def _shown(document: Document, before: dict[str, Document]) -> Document | None:
    """A picture with the one of its split that waits in `before`; None where it has to wait."""
    of = _source_info(document)
    first = before.pop(of.split, None)
    if first is None:
        before[of.split] = document
        return None
    names = {"first": document_caption(first), "second": document_caption(document)}
    licence = " and ".join(sorted({first.license, document.license} - {""}))
    both = SourceInfo(name=f"{first.id}+{document.id}", license=licence, split=of.split)
    shown: list[Part | str] = [
        f"{names['first']}:", first.images[0], f"{names['second']}:", document.images[0]
    ]  # fmt: skip
    asked = pick_template(SHOW_PROMPTS, both.name).format(**names)
    return make_conversation("interleaved_generation", "show", [asked], shown, both)


def noun_glosses(pages: Iterable[Document]) -> dict[str, str]:
    """What each noun means, by its `normalised` name: its first sense in pages of WordNet."""
    found: dict[str, str] = {}
    for page in pages:
        for line in page.text.splitlines():
            words, marked, gloss = line.partition(" (noun): ")
            if marked:
                for word in words.split(", "):
                    found.setdefault(normalize_caption(word), gloss.split("; ")[0])
    return found
