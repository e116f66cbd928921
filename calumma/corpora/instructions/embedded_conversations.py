"""The six fine-tuning categories from the embedded corpus, without a network."""

from collections.abc import Iterator

from calumma.corpora.captions import Split
from calumma.corpora.embedded import load_embedded
from calumma.corpora.instructions import image_conversations, text_conversations
from calumma.corpora.instructions.safety_prompts import dangerous_word_questions, safety_conversations
from calumma.documents.document import Document

SPLITS: tuple[Split, Split] = ("train", "held-out")


def embedded_conversations(category: str) -> Iterator[Document]:
    """Yield all conversations of a category, of both splits; attribute "split" has which.

    Args:
        category: text, code, visual_chat, image_generation, interleaved_generation or safety.
    """
    if category == "text":
        for page in _glosses():
            yield from text_conversations.gloss_conversations(page)
    elif category == "code":
        for split in SPLITS:
            for page in load_embedded("documentation", split):
                yield from text_conversations.code_conversations(page)
    elif category == "visual_chat":
        for pair in _pairs():
            yield from image_conversations.visual_chat(pair)
    elif category == "image_generation":
        yield from map(image_conversations.image_request, _pairs())
    elif category == "interleaved_generation":
        yield from image_conversations.interleaved_conversations(
            _pairs(), image_conversations.noun_glosses(_glosses())
        )
    else:
        assert category == "safety", category
        yield from safety_conversations()
        yield from dangerous_word_questions(
            image_conversations.noun_glosses(_glosses()), image_conversations.GLOSSES_LICENSE
        )


def _glosses() -> list[Document]:
    pages = [page for split in SPLITS for page in load_embedded("text", split)]
    return [page for page in pages if page.source == "wordnet"]


def _pairs() -> Iterator[Document]:
    for split in SPLITS:
        yield from load_embedded("emoji", split)
        yield from load_embedded("clip-art", split)
