"""The catalog of corpora that public packages ship.

The counts are those of exactly these package versions; `fetch` compares them. Most packages are for
Debian 12.
"""

from calumma.corpora.catalog_entry import Corpus
from calumma.corpora.catalog_images import IMAGE_CORPORA, VQA_CORPORA
from calumma.corpora.catalog_instructions import INSTRUCTION_CORPORA
from calumma.corpora.catalog_texts import TEXT_CORPORA
from calumma.errors import CorpusError
from calumma.text_format import closest_match

CORPORA: tuple[Corpus, ...] = (*IMAGE_CORPORA, *VQA_CORPORA, *TEXT_CORPORA, *INSTRUCTION_CORPORA)
"""All corpora."""


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
