"""Conversations from captioned images: visual chat, image generation, interleaved generation."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import cast

from calumma.corpora.captions import Split, caption_group, group_split, normalize_caption
from calumma.corpora.instructions.text_conversations import SourceInfo, make_conversation, pick_template
from calumma.documents.document import Document, Part

DESCRIBE_PROMPTS = ("What is this?", "What does the picture show?", "Describe the picture.")
COLOR_PROMPTS = ("Which colour is most of it?", "What is its main colour?")
DRAW_PROMPTS = ("Draw {caption}.", "Draw me a picture of {caption}.", "Make an image of {caption}.")
EXPLAIN_PROMPTS = ("Tell me about {caption}, with a picture.", "Explain {caption} and show it.")
SHOW_PROMPTS = ("Show {first} and {second}.", "Show me {first} and then {second}, with their names.")
GLOSSES_LICENSE = "WordNet-3.0"


def document_caption(document: Document) -> str:
    """Return the caption of an image: the attribute, or the document's text."""
    return document.attributes.get("caption") or document.text


def _source_info(document: Document) -> SourceInfo:
    attributes = document.attributes
    split = attributes.get("split") or group_split(caption_group(document_caption(document)))
    return SourceInfo(name=document.id, license=document.license, split=cast("Split", split))


def visual_chat(document: Document) -> Iterator[Document]:
    """Build questions about an image: what it shows, and its main color if that is known."""
    info, image = _source_info(document), document.images[0]
    prompt = pick_template(DESCRIBE_PROMPTS, info.name)
    answer = document_caption(document)
    yield make_conversation("visual_chat", "describe", [image, prompt], [answer], info)
    color = document.attributes.get("colour")
    if color:
        prompt = pick_template(COLOR_PROMPTS, info.name)
        yield make_conversation("visual_chat", "colour", [image, prompt], [color], info)


def image_request(document: Document) -> Document:
    """Build a request for the image of a caption."""
    info = _source_info(document)
    prompt = pick_template(DRAW_PROMPTS, info.name).format(caption=document_caption(document))
    return make_conversation("image_generation", "draw", [prompt], [document.images[0]], info)


def explain_with_image(document: Document, glosses: Mapping[str, str]) -> Document | None:
    """Build a request to explain and show a thing; None if its gloss is not known.

    Args:
        document: an image with its caption.
        glosses: definitions by normalized caption, of `noun_glosses`.
    """
    caption = document_caption(document)
    gloss = glosses.get(normalize_caption(caption))
    if gloss is None:
        return None
    license = " and ".join(filter(None, (document.license, GLOSSES_LICENSE)))
    info = replace(_source_info(document), license=license)
    prompt = pick_template(EXPLAIN_PROMPTS, info.name).format(caption=caption)
    answer: list[Part | str] = [f"{caption}: {gloss}", document.images[0]]
    return make_conversation("interleaved_generation", "tell", [prompt], answer, info)


def show_pairs(documents: Iterable[Document]) -> Iterator[Document]:
    """Build requests to show two things, from each two adjacent documents of one split."""
    waiting: dict[str, Document] = {}
    for document in documents:
        if (pair := _show_pair(document, waiting)) is not None:
            yield pair


def interleaved_conversations(documents: Iterable[Document], glosses: Mapping[str, str]) -> Iterator[Document]:
    """Yield the conversations of `explain_with_image` and `show_pairs`, in one pass."""
    waiting: dict[str, Document] = {}
    for document in documents:
        conversations = (explain_with_image(document, glosses), _show_pair(document, waiting))
        yield from filter(None, conversations)


def _show_pair(document: Document, waiting: dict[str, Document]) -> Document | None:
    """Pair a document with the one of its split in `waiting`; None if it has to wait itself."""
    split = _source_info(document).split
    first = waiting.pop(split, None)
    if first is None:
        waiting[split] = document
        return None
    captions = {"first": document_caption(first), "second": document_caption(document)}
    license = " and ".join(sorted({first.license, document.license} - {""}))
    info = SourceInfo(name=f"{first.id}+{document.id}", license=license, split=split)
    answer: list[Part | str] = [
        f"{captions['first']}:", first.images[0], f"{captions['second']}:", document.images[0]
    ]  # fmt: skip
    prompt = pick_template(SHOW_PROMPTS, info.name).format(**captions)
    return make_conversation("interleaved_generation", "show", [prompt], answer, info)


def noun_glosses(pages: Iterable[Document]) -> dict[str, str]:
    """Return the first definition of each noun in pages of WordNet, by normalized noun."""
    found: dict[str, str] = {}
    for page in pages:
        for line in page.text.splitlines():
            words, separator, gloss = line.partition(" (noun): ")
            if separator:
                for word in words.split(", "):
                    found.setdefault(normalize_caption(word), gloss.split("; ")[0])
    return found
