"""The corpora that packages ship, as a table.

The counts are those that the readers find in exactly these versions; `fetch` compares.
"""

from __future__ import annotations

from calumma.corpora.corpus import Corpus, Package
from calumma.corpora.sources import clip_art, emoji, flags, glosses, novels, pages
from calumma.errors import CorpusError

_UNICODE = Package("apt", "unicode-data", "15.0.0-1")
_CLDR = Package("npm", "cldr-annotations-full", "48.2.0")


_EMOJI_WORDS = (
    "Names and groups of the emoji are from Unicode's emoji-test.txt, keywords from Unicode's CLDR "
    "(Unicode licence), both changed in form."
)


def _emoji_icons(
    name: str, licence: str, package: Package, *, documents: int, notice: str
) -> Corpus:
    return Corpus(
        name=name,
        kind="pairs",
        packages=(package, _UNICODE, _CLDR),
        licence=licence,
        notice=f"{notice} {_EMOJI_WORDS}",
        redistributable=True,
        documents=documents,
        images=documents,
        reader=emoji.icons_reader(package.name),
    )


def _pages(package: Package, licence: str, *, documents: int, images: int) -> Corpus:
    return Corpus(
        name=package.name,
        kind="interleaved",
        packages=(package,),
        licence=licence,
        redistributable=True,
        documents=documents,
        images=images,
        reader=pages.pages_reader(package.name, "usr/share/doc"),
    )


CORPORA: tuple[Corpus, ...] = (
    _emoji_icons(
        "fluent-flat",
        "MIT",
        Package("npm", "@iconify-json/fluent-emoji-flat", "1.2.6"),
        documents=3139,
        notice="Fluent Emoji (flat). Copyright (c) Microsoft Corporation.",
    ),
    _emoji_icons(
        "noto",
        "Apache-2.0",
        Package("npm", "@iconify-json/noto", "1.2.9"),
        documents=3729,
        notice="Noto Emoji. Copyright Google Inc.",
    ),
    Corpus(
        name="fluent-3d",
        kind="pairs",
        packages=(Package("npm", "@lobehub/fluent-emoji-3d", "1.1.0"), _UNICODE, _CLDR),
        licence="MIT",
        notice="Fluent Emoji (3D). Copyright (c) Microsoft Corporation; packaged by LobeHub. "
        + _EMOJI_WORDS,
        redistributable=True,
        documents=3374,
        images=3374,
        reader=emoji.files_reader("@lobehub/fluent-emoji-3d", "assets"),
    ),
    Corpus(
        name="openclipart",
        kind="pairs",
        packages=(
            Package("apt", "openclipart-png", "1:0.18+dfsg-19"),
            Package("apt", "openclipart-svg", "1:0.18+dfsg-19"),
        ),
        licence="public domain",
        notice="Drawings of the Open Clip Art Library, each dedicated to the public domain.",
        redistributable=True,
        documents=0,
        images=0,
        reader=clip_art.read,
    ),
    Corpus(
        name="iso-flags",
        kind="pairs",
        packages=(
            Package("apt", "iso-flags-png-320x240", "1.0.2-2"),
            Package("apt", "unicode-cldr-core", "41-0.1"),
        ),
        licence="public domain",
        notice="Flags dedicated to the public domain; names of territories from Unicode's CLDR.",
        redistributable=True,
        documents=251,
        images=251,
        reader=flags.read,
    ),
    _pages(
        Package("apt", "python-skimage-doc", "0.19.3-8"), "BSD-3-Clause", documents=123, images=230
    ),
    _pages(
        Package("apt", "python-sklearn-doc", "1.2.1+dfsg-1"),
        "BSD-3-Clause",
        documents=287,
        images=714,
    ),
    _pages(
        Package("apt", "python-scipy-doc", "1.10.1-2"), "BSD-3-Clause", documents=469, images=641
    ),
    _pages(
        Package("apt", "python-astropy-doc", "5.2.1-2+deb12u1"),
        "BSD-3-Clause",
        documents=107,
        images=248,
    ),
    Corpus(
        name="wordnet",
        kind="text",
        packages=(Package("apt", "wordnet-base", "1:3.0-37"),),
        licence="WordNet-3.0",
        redistributable=True,
        documents=2943,
        reader=glosses.read,
    ),
    Corpus(
        name="austen",
        kind="text",
        packages=(Package("apt", "r-cran-janeaustenr", "1.0.0-1"),),
        licence="public domain",
        notice="Novels of Jane Austen (1775-1817); the package around them is MIT-licensed.",
        redistributable=True,
        documents=0,
        reader=novels.read,
    ),
)


def find_corpus(name: str) -> Corpus:
    """The corpus of that name.

    Raises:
        CorpusError: there is none.
    """
    for corpus in CORPORA:
        if corpus.name == name:
            return corpus
    raise CorpusError(
        f"there is no corpus {name!r}; wanted one of {', '.join(c.name for c in CORPORA)}. "
        "See `calumma corpus list`."
    )
