"""The catalog of corpora that public packages ship.

The counts are those of exactly these package versions; `fetch` compares them. Most packages are for
Debian 12.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial

from calumma.corpora.catalog_entry import Corpus, PackageFolders
from calumma.corpora.catalog_images import IMAGE_CORPORA, VQA_CORPORA
from calumma.corpora.catalog_texts import TEXT_CORPORA
from calumma.corpora.instructions import image_conversations, text_conversations
from calumma.corpora.instructions.safety_prompts import dangerous_word_questions, safety_conversations
from calumma.corpora.instructions.text_conversations import stable_hash
from calumma.documents.document import Document
from calumma.errors import CorpusError
from calumma.text_format import closest_match

_KNOWN = {corpus.name: corpus for corpus in (*IMAGE_CORPORA, *VQA_CORPORA, *TEXT_CORPORA)}

_EMOJI = ("fluent-flat", "noto", "fluent-3d")
_PYTHON = ("python-skimage-doc", "python-sklearn-doc", "python-scipy-doc", "python-astropy-doc")

WORDS_ONE_IN = 4
"""One WordNet gloss in this many becomes a question."""

SourceReaders = Mapping[str, Callable[[], Iterator[Document]]]
"""Readers of the corpora from which a category is built, by name."""


def find_corpus(name: str) -> Corpus:
    """Return the corpus of that name.

    Raises:
        CorpusError: the name is unknown.
    """
    for corpus in CORPORA:
        if corpus.name == name:
            return corpus
    names = [corpus.name for corpus in CORPORA]
    match = closest_match(name, names)
    expected = f"perhaps {match}" if match else f"one of {', '.join(names)}"
    raise CorpusError(f"there is no corpus {name!r}; expected {expected}. See `calumma corpus list`.")


def _category(
    name: str, of: tuple[str, ...], make: Callable[[SourceReaders], Iterable[Document]], counts: list[int]
) -> Corpus:
    """Build the catalog entry of a category.

    Args:
        name: name of the category, with hyphens; the corpus is "sft-" + name.
        of: names of the corpora from which it is built.
        make: converts them to conversations.
        counts: expected numbers of documents and images.
    """
    parts = [_KNOWN[part] for part in of]
    packages = tuple(dict.fromkeys(package for part in parts for package in part.packages))

    def read(folders: PackageFolders) -> Iterator[Document]:
        for document in make({part.name: partial(part.read, folders) for part in parts}):
            category = name.replace("-", "_")
            yield replace(document, attributes={**document.attributes, "category": category})

    notices = [part.notice for part in parts if part.notice]
    return Corpus(
        name=f"sft-{name}",
        kind="instructions",
        packages=packages,
        license=" and ".join(dict.fromkeys(part.license for part in parts)),
        notice=" ".join([*dict.fromkeys(notices), "Prompts and answers are made by templates."]),
        redistributable=all(part.redistributable for part in parts),
        num_documents=counts[0],
        num_images=counts[1],
        reader=read,
    )


def _pairs(parts: SourceReaders) -> Iterator[Document]:
    for name in _EMOJI:
        yield from parts[name]()


def _text(parts: SourceReaders) -> Iterator[Document]:
    for page in parts["wordnet"]():
        yield from (d for d in text_conversations.gloss_conversations(page) if stable_hash(d.id) % WORDS_ONE_IN == 0)


def _code(parts: SourceReaders) -> Iterator[Document]:
    for name in _PYTHON:
        for page in parts[name]():
            yield from text_conversations.code_conversations(page)


def _visual_chat(parts: SourceReaders) -> Iterator[Document]:
    for pair in _pairs(parts):
        yield from image_conversations.visual_chat(pair)
    yield from parts["easy-vqa"]()


def _image_generation(parts: SourceReaders) -> Iterator[Document]:
    yield from map(image_conversations.image_request, _pairs(parts))


def _interleaved_generation(parts: SourceReaders) -> Iterator[Document]:
    yield from image_conversations.interleaved_conversations(
        _pairs(parts), image_conversations.noun_glosses(parts["wordnet"]())
    )


def _safety(parts: SourceReaders) -> Iterator[Document]:
    yield from safety_conversations()
    yield from dangerous_word_questions(
        image_conversations.noun_glosses(parts["wordnet"]()), image_conversations.GLOSSES_LICENSE
    )


INSTRUCTION_CORPORA: tuple[Corpus, ...] = (
    _category("text", ("wordnet",), _text, [29_535, 0]),
    _category("code", _PYTHON, _code, [3_740, 0]),
    _category("visual-chat", (*_EMOJI, "easy-vqa"), _visual_chat, [15_242, 15_242]),
    _category("image-generation", _EMOJI, _image_generation, [10_242, 10_242]),
    _category("interleaved-generation", (*_EMOJI, "wordnet"), _interleaved_generation, [7_707, 12_828]),
    _category("safety", ("wordnet",), _safety, [2189, 0]),
)
"""All six categories, with the counts of these package versions."""

CORPORA: tuple[Corpus, ...] = (*IMAGE_CORPORA, *VQA_CORPORA, *TEXT_CORPORA, *INSTRUCTION_CORPORA)
"""All corpora."""
