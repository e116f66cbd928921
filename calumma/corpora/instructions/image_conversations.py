"""Visual chat, drawing, and text with pictures: conversations from pictures with captions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import cast

from calumma.corpora.captions import Split, group_of, normalised, split_of
from calumma.corpora.instructions.conversation_templates import Origin, chosen, instruction
from calumma.documents.document import Document, Part

WHAT = ("What is this?", "What does the picture show?", "Describe the picture.")
COLOUR = ("Which colour is most of it?", "What is its main colour?")
DRAW = ("Draw {caption}.", "Draw me a picture of {caption}.", "Make an image of {caption}.")
TELL = ("Tell me about {caption}, with a picture.", "Explain {caption} and show it.")
SHOW = ("Show {first} and {second}.", "Show me {first} and then {second}, with their names.")


GLOSSES_LICENCE = "WordNet-3.0"


def caption_of(document: Document) -> str:
    """The caption of a picture: its attribute, or the document's text."""
    return document.attributes.get("caption") or document.text


def _origin(document: Document) -> Origin:
    attributes = document.attributes
    split = attributes.get("split") or split_of(group_of(caption_of(document)))
    return Origin(name=document.id, licence=document.licence, split=cast("Split", split))


def chat(document: Document) -> Iterator[Document]:
    """Questions about a picture: what it is, and where it is known, its main colour."""
    of, image = _origin(document), document.images[0]
    asked = chosen(WHAT, of.name)
    yield instruction("visual_chat", "describe", [image, asked], [caption_of(document)], of)
    colour = document.attributes.get("colour")
    if colour:
        yield instruction("visual_chat", "colour", [image, chosen(COLOUR, of.name)], [colour], of)


def drawing(document: Document) -> Document:
    """A caption asks for its picture."""
    of = _origin(document)
    asked = chosen(DRAW, of.name).format(caption=caption_of(document))
    return instruction("image_generation", "draw", [asked], [document.images[0]], of)


def telling(document: Document, glosses: Mapping[str, str]) -> Document | None:
    """A caption asks for words and a picture; None where the words are not known.

    Args:
        document: a picture with its caption.
        glosses: what a thing is, by its `normalised` name.
    """
    caption = caption_of(document)
    gloss = glosses.get(normalised(caption))
    if gloss is None:
        return None
    licence = " and ".join(filter(None, (document.licence, GLOSSES_LICENCE)))
    of = replace(_origin(document), licence=licence)
    asked = chosen(TELL, of.name).format(caption=caption)
    told: list[Part | str] = [f"{caption}: {gloss}", document.images[0]]
    return instruction("interleaved_generation", "tell", [asked], told, of)


def showing(documents: Iterable[Document]) -> Iterator[Document]:
    """Each two neighbours of one split: both are asked for, and come with their captions."""
    before: dict[str, Document] = {}
    for document in documents:
        shown = _shown(document, before)
        if shown is not None:
            yield shown


def interleaved(documents: Iterable[Document], glosses: Mapping[str, str]) -> Iterator[Document]:
    """What `telling` and `showing` make of some pictures, in one pass."""
    before: dict[str, Document] = {}
    for document in documents:
        yield from filter(None, (telling(document, glosses), _shown(document, before)))


def _shown(document: Document, before: dict[str, Document]) -> Document | None:
    """A picture with the one of its split that waits in `before`; None where it has to wait."""
    of = _origin(document)
    first = before.pop(of.split, None)
    if first is None:
        before[of.split] = document
        return None
    names = {"first": caption_of(first), "second": caption_of(document)}
    licence = " and ".join(sorted({first.licence, document.licence} - {""}))
    both = Origin(name=f"{first.id}+{document.id}", licence=licence, split=of.split)
    shown: list[Part | str] = [
        f"{names['first']}:", first.images[0], f"{names['second']}:", document.images[0]
    ]  # fmt: skip
    asked = chosen(SHOW, both.name).format(**names)
    return instruction("interleaved_generation", "show", [asked], shown, both)


def glosses_of(pages: Iterable[Document]) -> dict[str, str]:
    """What each noun means, by its `normalised` name: its first sense in pages of WordNet."""
    found: dict[str, str] = {}
    for page in pages:
        for line in page.text.splitlines():
            words, marked, gloss = line.partition(" (noun): ")
            if marked:
                for word in words.split(", "):
                    found.setdefault(normalised(word), gloss.split("; ")[0])
    return found
