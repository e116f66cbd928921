"""Catalog entries of texts and of interleaved documentation."""

from dataclasses import replace

from calumma.corpora.catalog_entry import Corpus, CorpusReader, Package
from calumma.corpora.sources import endless_sky, manuals, texts


def _pages(package: Package, license: str, *, documents: int, images: int, pattern: str = "**/*.html") -> Corpus:
    reader = manuals.illustrated_page_reader(package.name, "usr/share/doc", pattern)
    manual = _manual(package, license, reader, documents=documents, images=images)
    return replace(manual, redistributable=True)


def _manual(package: Package, license: str, reader: CorpusReader, *, documents: int, images: int) -> Corpus:
    return Corpus(
        name=package.name,
        kind="interleaved",
        packages=(package,),
        license=license,
        redistributable=False,
        num_documents=documents,
        num_images=images,
        reader=reader,
    )


def _prose(name: str, package: Package, license: str, reader: CorpusReader, *, documents: int) -> Corpus:
    return Corpus(
        name=name,
        kind="text",
        packages=(package,),
        license=license,
        redistributable=False,
        num_documents=documents,
        reader=reader,
    )


def _dictionary(package: Package, license: str, *, free: bool, documents: int) -> Corpus:
    name = package.name.removeprefix("dict-")
    return Corpus(
        name=name,
        kind="text",
        packages=(package,),
        license=license,
        redistributable=free,
        num_documents=documents,
        reader=texts.dictionary_reader(package.name, name),
    )


TEXT_CORPORA: tuple[Corpus, ...] = (
    _pages(Package("apt", "python-skimage-doc", "0.19.3-8"), "BSD-3-Clause", documents=123, images=230),
    _pages(Package("apt", "python-sklearn-doc", "1.2.1+dfsg-1"), "BSD-3-Clause", documents=287, images=719),
    _pages(Package("apt", "python-scipy-doc", "1.10.1-2"), "BSD-3-Clause", documents=469, images=641),
    _pages(Package("apt", "python-astropy-doc", "5.2.1-2+deb12u1"), "BSD-3-Clause", documents=107, images=248),
    Corpus(
        name="wordnet",
        kind="text",
        packages=(Package("apt", "wordnet-base", "1:3.0-37"),),
        license="WordNet-3.0",
        redistributable=True,
        num_documents=2943,
        reader=texts.read_wordnet,
    ),
    _pages(
        Package("apt", "opencv-doc", "4.6.0+dfsg-12"),
        "Apache-2.0 and BSD-3-Clause",
        pattern="**/*tutorial*.html",
        documents=202,
        images=782,
    ),
    _pages(Package("apt", "python-statsmodels-doc", "0.13.5+dfsg-7"), "BSD-3-Clause", documents=76, images=291),
    Corpus(
        name="gimp-help",
        kind="interleaved",
        packages=(Package("apt", "gimp-help-en", "2.10.34-2"),),
        license="GFDL-1.2-or-later",
        redistributable=False,
        num_documents=475,
        num_images=1900,
        reader=manuals.illustrated_page_reader("gimp-help-en", "usr/share/gimp/2.0/help/en"),
    ),
    _manual(
        Package("apt", "libgegl-doc", "1:0.4.42-2+deb12u2"),
        "LGPL-3.0-or-later and GPL-3.0-or-later",
        manuals.illustrated_page_reader("libgegl-doc", "usr/share"),
        documents=207,
        images=207,
    ),
    _manual(
        Package("apt", "grass-doc", "8.2.1-1"),
        "GPL-2.0-or-later",
        manuals.illustrated_page_reader("grass-doc", "usr"),
        documents=185,
        images=950,
    ),
    _manual(
        Package("apt", "freedombox-doc-en", "23.6.2+deb12u2"),
        "CC-BY-SA-4.0 and AGPL-3.0-or-later",
        manuals.illustrated_page_reader("freedombox-doc-en", "usr/share"),
        documents=70,
        images=484,
    ),
    _manual(
        Package("apt", "gnucash-docs", "4.13-1"),
        "GFDL-1.1-or-later",
        manuals.illustrated_page_reader("gnucash-docs", "usr/share/doc/gnucash-docs", "gnucash-*-en/*.html"),
        documents=43,
        images=228,
    ),
    _manual(
        Package("apt", "kicad-doc-en", "6.0.11+dfsg-1"),
        "GPL-3.0-or-later or CC-BY-3.0",
        manuals.illustrated_page_reader("kicad-doc-en", "usr/share"),
        documents=7,
        images=270,
    ),
    _manual(
        Package("apt", "povray-doc", "1:3.7.0.10-2"),
        "AGPL-3.0-or-later and CC-BY-SA-3.0",
        manuals.illustrated_page_reader("povray-doc", "usr/share"),
        documents=4,
        images=298,
    ),
    _dictionary(Package("apt", "dict-jargon", "4.4.7-3.1"), "public domain", free=True, documents=93),
    _dictionary(Package("apt", "dict-devil", "1.0-13.1"), "public domain", free=True, documents=40),
    _dictionary(Package("apt", "dict-elements", "20001107-a-9.1"), "public domain", free=False, documents=6),
    _dictionary(Package("apt", "dict-foldoc", "20230119-1"), "GFDL-1.2-or-later", free=False, documents=481),
    _dictionary(Package("apt", "dict-gcide", "0.48.5+nmu2"), "GPL-3.0-or-later", free=False, documents=5050),
    _prose(
        "libreoffice-help",
        Package("apt", "libreoffice-help-en-us", "4:7.4.7-1+deb12u14"),
        "MPL-2.0 and Apache-2.0",
        manuals.page_text_reader("libreoffice-help-en-us", "usr/share/libreoffice/help/en-US/text"),
        # 2,561 pages without redirects and short lists.
        documents=2480,
    ),
    _prose(
        "manpages",
        Package("apt", "manpages", "6.03-2"),
        "GPL-2.0-or-later, BSD and verbatim licenses by file",
        texts.plain_text_reader("manpages", "usr/share/man", "man*/*.gz", texts.roff_to_text),
        # Without pages that only refer to another.
        documents=207,
    ),
    _prose(
        "debian-faq",
        Package("apt", "debian-faq", "11.1"),
        "verbatim copies; changed ones under the same notice",
        manuals.page_text_reader("debian-faq", "usr/share/doc/debian/FAQ"),
        documents=17,
    ),
    _prose(
        "debian-reference",
        Package("apt", "debian-reference-en", "2.100"),
        "GPL-2.0-or-later",
        manuals.page_text_reader("debian-reference-en", "usr/share/debian-reference"),
        documents=15,
    ),
    _prose(
        "linux-doc",
        Package("apt", "linux-doc-6.1", "6.1.192-2"),
        "GPL-2.0-only",
        texts.plain_text_reader(
            "linux-doc-6.1",
            "usr/share/doc/linux-doc-6.1/Documentation",
            "**/*.rst.gz",
            texts.strip_license_comment,
            exclude="/translations/",
        ),
        # The package contains every page twice; the copies next to the HTML are not read.
        documents=2675,
    ),
    replace(
        _manual(
            Package("apt", "endless-sky-data", "0.9.8-1.2"),
            "GPL-3.0-or-later; photographs CC-BY-SA-4.0 and others by file",
            endless_sky.read_story_conversations,
            # One document per conversation; a mission may have several.
            documents=20,
            images=21,
        ),
        name="endless-sky-conversations",
    ),
)
"""Documentation and dictionaries, the most permissive licenses first."""
