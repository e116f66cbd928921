"""Catalog entries of captioned images and of visual question answering."""

from calumma.corpora.catalog_entry import Corpus, CorpusReader, Package
from calumma.corpora.sources import clip_art, emoji, endless_sky, icons, visual_questions

_EMOJI_PACKAGES = (Package("apt", "unicode-data", "15.0.0-1"), Package("npm", "cldr-annotations-full", "48.2.0"))
_EMOJI_NOTICE = (
    "Names and groups of the emoji are from Unicode's emoji-test.txt, keywords from Unicode's CLDR (Unicode license), "
    "both changed in form."
)


def _pairs(
    name: str,
    packages: Package | tuple[Package, ...],
    license: str,
    reader: CorpusReader,
    *,
    documents: int,
    free: bool = False,
    notice: str = "",
) -> Corpus:
    """Build the entry of images with a caption each."""
    return Corpus(
        name=name,
        kind="pairs",
        packages=packages if isinstance(packages, tuple) else (packages,),
        license=license,
        notice=notice,
        redistributable=free,
        num_documents=documents,
        num_images=documents,
        reader=reader,
    )


def _emoji(
    name: str,
    package: Package,
    license: str,
    reader: CorpusReader | None = None,
    *,
    documents: int,
    notice: str,
    free: bool = True,
) -> Corpus:
    """Build the entry of a family of emoji, by default an Iconify package."""
    reader = reader or emoji.iconify_emoji_reader(package.name)
    notice = f"{notice} {_EMOJI_NOTICE}"
    packages = (package, *_EMOJI_PACKAGES)
    return _pairs(name, packages, license, reader, documents=documents, free=free, notice=notice)


def _iconify(name: str, version: str, license: str, style: str, *, documents: int) -> Corpus:
    package = Package("npm", f"@iconify-json/{name}", version)
    return _pairs(name, package, license, icons.iconify_reader(package.name, style), documents=documents)


IMAGE_CORPORA: tuple[Corpus, ...] = (
    _emoji(
        "fluent-flat",
        Package("npm", "@iconify-json/fluent-emoji-flat", "1.2.6"),
        "MIT",
        documents=3139,
        notice="Fluent Emoji (flat). Copyright (c) Microsoft Corporation.",
    ),
    _emoji(
        "noto",
        Package("npm", "@iconify-json/noto", "1.2.9"),
        "Apache-2.0",
        documents=3729,
        notice="Noto Emoji. Copyright Google Inc.",
    ),
    _emoji(
        "fluent-3d",
        Package("npm", "@lobehub/fluent-emoji-3d", "1.1.0"),
        "MIT",
        emoji.emoji_file_reader("@lobehub/fluent-emoji-3d", "assets"),
        documents=3374,
        notice="Fluent Emoji (3D). Copyright (c) Microsoft Corporation; packaged by LobeHub.",
    ),
    _pairs(
        "openclipart",
        (Package("apt", "openclipart-png", "1:0.18+dfsg-19"), Package("apt", "openclipart-svg", "1:0.18+dfsg-19")),
        "public domain",
        clip_art.read_openclipart,
        # 8,121 drawings without duplicates, files without a public domain notice, and six of seven
        # star polygons.
        documents=6854,
        free=True,
        notice="Drawings of the Open Clip Art Library, each dedicated to the public domain.",
    ),
    _pairs(
        "iso-flags",
        (Package("apt", "iso-flags-png-320x240", "1.0.2-2"), Package("apt", "unicode-cldr-core", "41-0.1")),
        "public domain",
        icons.read_iso_flags,
        documents=251,
        free=True,
        notice="Flags dedicated to the public domain; names of territories from Unicode's CLDR.",
    ),
    _pairs(
        "tuxpaint",
        Package("apt", "tuxpaint-stamps-default", "2022.06.04-1"),
        "GPL-2.0-or-later",
        icons.read_tuxpaint,
        documents=950,
    ),
    _pairs(
        "endless-sky-planets",
        Package("apt", "endless-sky-data", "0.9.8-1.2"),
        "CC-BY-SA-4.0 and others by file; text GPL-3.0-or-later",
        endless_sky.read_planets,
        documents=321,
    ),
    _pairs("openmoji", Package("npm", "openmoji", "17.0.0"), "CC-BY-SA-4.0", icons.read_openmoji, documents=4495),
    _emoji(
        "twemoji",
        Package("npm", "emoji-datasource-twitter", "16.0.0"),
        "CC-BY-4.0",
        emoji.emoji_file_reader("emoji-datasource-twitter", "img/twitter/64"),
        documents=3660,  # emoji of Unicode 15.0, whose names are known; 16.0 has 126 more
        notice="Twemoji. Copyright Twitter, Inc and other contributors.",
        free=False,
    ),
    _pairs("tabler", Package("npm", "@tabler/icons", "3.51.0"), "MIT", icons.read_tabler, documents=5233, free=True),
    _pairs("lucide", Package("npm", "lucide-static", "1.62.0"), "ISC", icons.read_lucide, documents=1908, free=True),
    _pairs(
        "phosphor",
        Package("npm", "@phosphor-icons/core", "2.1.1"),
        "MIT",
        icons.read_phosphor,
        documents=1512,
        free=True,
    ),
    _iconify("game-icons", "1.2.4", "CC-BY-3.0", "icon", documents=4133),
    _iconify("streamline-ultimate-color", "1.2.2", "CC-BY-4.0", "colour icon", documents=998),
    _iconify("streamline-kameleon-color", "1.2.2", "CC-BY-4.0", "round colour icon", documents=400),
)
"""Captioned images, the most permissive licenses first."""

VQA_CORPORA: tuple[Corpus, ...] = (
    Corpus(
        name="easy-vqa",
        kind="questions",
        packages=(Package("pip", "easy-vqa", "1.0"),),
        license="MIT",
        notice="easy-VQA. Copyright (c) Victor Zhou.",
        redistributable=True,
        num_documents=5000,
        num_images=5000,
        reader=visual_questions.read_easy_vqa_corpus,
    ),
    Corpus(
        name="cifar10-test",
        kind="evaluation",
        packages=(Package("pip", "bigbench", "1.0.0"),),
        license="Apache-2.0",
        notice="CIFAR-10's test set as a task of BIG-bench, which must not be used for training.",
        redistributable=False,
        num_documents=10000,
        num_images=10000,
        reader=visual_questions.read_cifar10_test,
    ),
)
"""Questions about images, and images for evaluation only."""
