"""Which pictures go into the embedded corpus, and in which form."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Iterator
from collections.abc import Set as AbstractSet

import PIL.Image

from calumma.corpora.captions import SKIN_TONES, caption_group, group_split, remove_skin_tone
from calumma.corpora.color_words import main_color
from calumma.corpora.image_conversion import (
    encode_webp,
    fit_within,
    has_transparency,
    image_size,
    is_blank,
)
from calumma.documents.document import Document, Image, Part, Text
from calumma.errors import ImageError

NUM_TONED_BASES = 5
"""Of eight emoji that come in five skin tones, this many keep one tone: an eighth of them."""

MAX_CLIP_ART_PIXELS = 4_000_000
"""Clip art with more pixels is left out: it is detail that a thumbnail cannot show."""

_SKIPPED = {"computer", "logos", "unsorted", "buttons", "special"}
"""Categories of desktop icons, brands and leftovers."""

_THEMES = re.compile(r"\b(theme|gnome|gold|lemon|blueberry|etiquette|aiga|flags)\b", re.I)
"""Words of clip-art folders with desktop icons, brands, or what another source has better."""


@dataclasses.dataclass
class ThumbnailMaker:
    """Turns picture documents into small ones, and drops blanks, twins and most tone variants.

    One instance sees all documents, so that a picture that two sources share is kept once.
    """

    side: int
    """Pixels of the longer side."""

    quality: int
    """WebP quality, 0 to 100."""

    crop_margins: bool = False
    """Whether empty margins are cut off first; emoji keep theirs, which tell small from large."""

    dropped: Counter[str] = dataclasses.field(default_factory=Counter)
    """How many documents each rule has dropped."""

    _seen: set[bytes] = dataclasses.field(default_factory=set)
    _toned: dict[str, Iterator[str]] = dataclasses.field(default_factory=dict)
    _chosen: dict[tuple[str, str], str] = dataclasses.field(default_factory=dict)

    def make(self, document: Document) -> Document | None:
        """The document with a small picture and what is measured of it; None if it is dropped."""
        reason, kept = self._judge(document)
        if kept is None:
            self.dropped[reason] += 1
        return kept

    def _judge(self, document: Document) -> tuple[str, Document | None]:
        if not self._tone_is_kept(document):
            return "skin tone", None
        image = document.images[0]
        if image.path is not None:
            width, height = image_size(image.path)
            if width * height > MAX_CLIP_ART_PIXELS:
                return "too large", None
        try:
            picture = fit_within(
                _cropped(image.open()) if self.crop_margins else image.open(), self.side
            )
        except ImageError:
            return "broken", None
        if is_blank(picture) or min(picture.size) < self.side // 4:
            return "blank", None
        digest = hashlib.sha256(f"{picture.size}".encode() + picture.tobytes()).digest()
        if digest in self._seen:
            return "twin", None
        self._seen.add(digest)
        return "", self._remade(document, picture)

    def _remade(self, document: Document, picture: PIL.Image.Image) -> Document:
        caption = document.attributes["caption"]
        group = caption_group(caption)
        attributes = {**document.attributes, "split": group_split(group), "group": group}
        if colour := main_color(picture):
            attributes |= {"colour": colour.word, "colour-share": f"{colour.fraction:.2f}"}
        image = Image(data=encode_webp(picture, self.quality))
        return dataclasses.replace(document, content=(image, Text(caption)), attributes=attributes)

    def _tone_is_kept(self, document: Document) -> bool:
        """Keep one tone of five bases in eight, each tone equally often; no mixed couples."""
        tone = document.attributes.get("skin-tone")
        if tone is None:
            return True
        if tone not in SKIN_TONES:
            return False
        base = remove_skin_tone(document.attributes["caption"])
        if int(caption_group(base), 16) // 64 % 8 >= NUM_TONED_BASES:
            return False
        turns = self._toned.setdefault(document.source, itertools.cycle(SKIN_TONES))
        key = (document.source, base)
        if key not in self._chosen:
            self._chosen[key] = next(turns)
        return self._chosen[key] == tone


def _cropped(picture: PIL.Image.Image) -> PIL.Image.Image:
    """The picture without margins that cannot be seen."""
    if not has_transparency(picture):
        return picture
    picture = picture.convert("RGBA")
    visible = picture.getchannel("A").point(lambda alpha: 255 if alpha > 16 else 0)
    return picture.crop(visible.getbbox()) if visible.getbbox() else picture


def is_good_clip_art(document: Document, english: AbstractSet[str]) -> bool:
    """Whether a drawing is a plain thing with a caption in English.

    Left out are desktop icons, brands, flags, star polygons, and drawings with a photograph inside,
    of which the file does not say whose it is.

    Args:
        document: a drawing of Open Clip Art.
        english: words in lower case; half of the caption's must be among them.
    """
    attributes = document.attributes
    place = re.sub(r"[\W_]+", " ", f"{document.id} {attributes.get('keywords', '')}")
    if "holds-raster" in attributes or attributes["category"] in _SKIPPED or _THEMES.search(place):
        return False
    words = re.findall(r"[^\W\d_]{3,}", attributes["caption"].lower())
    known = [word for word in words if _is_known(word, english)]
    return bool(known) and 2 * len(known) >= len(words) and "star polygon" not in " ".join(words)


def _is_known(word: str, english: AbstractSet[str]) -> bool:
    endings = ("", "s", "es", "ed", "ing")
    return any(word.removesuffix(e) in english for e in endings if word.endswith(e))


def shorten_page(document: Document, *, side: int, quality: int, max_words: int) -> Document | None:
    """A page cut to its beginning, its pictures small; None if no picture is left.

    Args:
        document: text and pictures.
        side: pixels of the longer side of a picture.
        quality: WebP quality.
        most_words: the page ends with the part in which this many words are passed.
    """
    parts: list[Part] = []
    words = 0
    for part in document.content:
        if isinstance(part, Text):
            if words >= max_words:
                break
            words += len(part.text.split())
            parts.append(part)
            continue
        try:
            picture = fit_within(part.open(), side)
        except ImageError:
            continue
        parts.append(Image(data=encode_webp(picture, quality)))
    kept = dataclasses.replace(document, content=tuple(parts))
    return kept if kept.images else None
