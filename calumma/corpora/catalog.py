"""The corpora that packages ship, as a table.

The counts are those that the readers find in exactly these versions; `fetch` compares.
"""

from __future__ import annotations

from calumma.corpora.catalog_entry import Corpus
from calumma.corpora.catalog_images import IMAGE_CORPORA, VQA_CORPORA
from calumma.corpora.catalog_instructions import INSTRUCTION_CORPORA
from calumma.corpora.catalog_texts import TEXT_CORPORA
from calumma.errors import CorpusError
from calumma.text_format import closest_match

CORPORA: tuple[Corpus, ...] = (*IMAGE_CORPORA, *VQA_CORPORA, *TEXT_CORPORA, *INSTRUCTION_CORPORA)
"""All corpora."""


def find_corpus(name: str) -> Corpus:
    """The corpus of that name.

    Raises:
        CorpusError: there is none.
    """
    for corpus in CORPORA:
        if corpus.name == name:
            return corpus
    names = [corpus.name for corpus in CORPORA]
    near = closest_match(name, names)
    wanted = f"perhaps {near}" if near else f"one of {', '.join(names)}"
    raise CorpusError(f"there is no corpus {name!r}; expected {wanted}. See `calumma corpus list`.")
