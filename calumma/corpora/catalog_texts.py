"""Catalog entries of texts and of interleaved documentation."""

from calumma.corpora.catalog_entry import Corpus, CorpusReader, Package
from calumma.corpora.sources import endless_sky, manuals, texts


def _corpus(
    package: tuple[str, str],
    license: str,
    reader: CorpusReader,
    *,
    documents: int,
    images: int = 0,
    free: bool = False,
    name: str = "",
) -> Corpus:
    """Build the entry of one Debian package, given as name and version; its name is the default."""
    return Corpus(
        name=name or package[0],
        kind="interleaved" if images else "text",
        packages=(Package("apt", *package),),
        license=license,
        redistributable=free,
        num_documents=documents,
        num_images=images,
        reader=reader,
    )


def _manual(
    package: tuple[str, str],
    license: str,
    folder: str = "usr/share/doc",
    pattern: str = "**/*.html",
    *,
    documents: int,
    images: int,
    free: bool = False,
    name: str = "",
) -> Corpus:
    reader = manuals.illustrated_page_reader(package[0], folder, pattern)
    return _corpus(package, license, reader, documents=documents, images=images, free=free, name=name)


def _page_texts(package: tuple[str, str], license: str, folder: str, *, documents: int, name: str) -> Corpus:
    reader = manuals.page_text_reader(package[0], folder)
    return _corpus(package, license, reader, documents=documents, name=name)


def _dictionary(name: str, version: str, license: str, *, documents: int, free: bool = False) -> Corpus:
    reader = texts.dictionary_reader(f"dict-{name}", name)
    return _corpus((f"dict-{name}", version), license, reader, documents=documents, free=free, name=name)


TEXT_CORPORA: tuple[Corpus, ...] = (
    _manual(("python-skimage-doc", "0.19.3-8"), "BSD-3-Clause", documents=123, images=230, free=True),
    _manual(("python-sklearn-doc", "1.2.1+dfsg-1"), "BSD-3-Clause", documents=287, images=719, free=True),
    _manual(("python-scipy-doc", "1.10.1-2"), "BSD-3-Clause", documents=469, images=641, free=True),
    _manual(("python-astropy-doc", "5.2.1-2+deb12u1"), "BSD-3-Clause", documents=107, images=248, free=True),
    _corpus(
        ("wordnet-base", "1:3.0-37"), "WordNet-3.0", texts.read_wordnet, documents=2943, free=True, name="wordnet"
    ),
    _manual(
        ("opencv-doc", "4.6.0+dfsg-12"),
        "Apache-2.0 and BSD-3-Clause",
        pattern="**/*tutorial*.html",
        documents=202,
        images=782,
        free=True,
    ),
    _manual(("python-statsmodels-doc", "0.13.5+dfsg-7"), "BSD-3-Clause", documents=76, images=291, free=True),
    _manual(
        ("gimp-help-en", "2.10.34-2"),
        "GFDL-1.2-or-later",
        "usr/share/gimp/2.0/help/en",
        documents=475,
        images=1900,
        name="gimp-help",
    ),
    _manual(
        ("libgegl-doc", "1:0.4.42-2+deb12u2"),
        "LGPL-3.0-or-later and GPL-3.0-or-later",
        "usr/share",
        documents=207,
        images=207,
    ),
    _manual(("grass-doc", "8.2.1-1"), "GPL-2.0-or-later", "usr", documents=185, images=950),
    _manual(
        ("freedombox-doc-en", "23.6.2+deb12u2"),
        "CC-BY-SA-4.0 and AGPL-3.0-or-later",
        "usr/share",
        documents=70,
        images=484,
    ),
    _manual(
        ("gnucash-docs", "4.13-1"),
        "GFDL-1.1-or-later",
        "usr/share/doc/gnucash-docs",
        "gnucash-*-en/*.html",
        documents=43,
        images=228,
    ),
    _manual(("kicad-doc-en", "6.0.11+dfsg-1"), "GPL-3.0-or-later or CC-BY-3.0", "usr/share", documents=7, images=270),
    _manual(
        ("povray-doc", "1:3.7.0.10-2"), "AGPL-3.0-or-later and CC-BY-SA-3.0", "usr/share", documents=4, images=298
    ),
    _dictionary("jargon", "4.4.7-3.1", "public domain", documents=93, free=True),
    _dictionary("devil", "1.0-13.1", "public domain", documents=40, free=True),
    _dictionary("elements", "20001107-a-9.1", "public domain", documents=6),
    _dictionary("foldoc", "20230119-1", "GFDL-1.2-or-later", documents=481),
    _dictionary("gcide", "0.48.5+nmu2", "GPL-3.0-or-later", documents=5050),
    _page_texts(
        ("libreoffice-help-en-us", "4:7.4.7-1+deb12u14"),
        "MPL-2.0 and Apache-2.0",
        "usr/share/libreoffice/help/en-US/text",
        documents=2480,  # of 2,561 pages, without redirects and short lists
        name="libreoffice-help",
    ),
    _corpus(
        ("manpages", "6.03-2"),
        "GPL-2.0-or-later, BSD and verbatim licenses by file",
        texts.plain_text_reader("manpages", "usr/share/man", "man*/*.gz", texts.roff_to_text),
        documents=207,  # without pages that only refer to another
    ),
    _page_texts(
        ("debian-faq", "11.1"),
        "verbatim copies; changed ones under the same notice",
        "usr/share/doc/debian/FAQ",
        documents=17,
        name="debian-faq",
    ),
    _page_texts(
        ("debian-reference-en", "2.100"),
        "GPL-2.0-or-later",
        "usr/share/debian-reference",
        documents=15,
        name="debian-reference",
    ),
    _corpus(
        ("linux-doc-6.1", "6.1.192-2"),
        "GPL-2.0-only",
        texts.plain_text_reader(
            "linux-doc-6.1",
            "usr/share/doc/linux-doc-6.1/Documentation",
            "**/*.rst.gz",
            texts.strip_license_comment,
            exclude="/translations/",
        ),
        documents=2675,  # the package contains every page twice; copies next to the HTML are not read
        name="linux-doc",
    ),
    _corpus(
        ("endless-sky-data", "0.9.8-1.2"),
        "GPL-3.0-or-later; photographs CC-BY-SA-4.0 and others by file",
        endless_sky.read_story_conversations,
        documents=20,  # one per conversation; a mission may have several
        images=21,
        name="endless-sky-conversations",
    ),
)
"""Documentation and dictionaries, the most permissive licenses first."""
