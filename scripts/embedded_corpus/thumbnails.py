"""Thumbnails and excerpts for the embedded corpus."""

import dataclasses
import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Iterator
from collections.abc import Set as AbstractSet

import numpy as np
import PIL.Image

from calumma.corpora.captions import SKIN_TONES, caption_group, group_split, remove_skin_tone
from calumma.corpora.image_conversion import encode_webp, fit_within, has_transparency, image_size
from calumma.documents.document import Document, Image, Part, Text
from calumma.documents.scorers import on_white
from calumma.errors import ImageError
from scripts.embedded_corpus.color_words import main_color

NUM_TONED_BASES = 5
"""Of eight emoji with five skin tones, this many are kept in one tone: an eighth of the images."""

MAX_CLIP_ART_PIXELS = 4_000_000
"""Clip art with more pixels is dropped: a thumbnail cannot show its detail."""

_SKIPPED = {"computer", "logos", "unsorted", "buttons", "special"}
"""Categories of desktop icons, brands and unsorted drawings."""

_THEMES = re.compile(r"\b(theme|gnome|gold|lemon|blueberry|etiquette|aiga|flags)\b", re.I)
"""Words in the names of clip-art folders with desktop icons, brands or flags."""


@dataclasses.dataclass
class ThumbnailMaker:
    """Makes thumbnails of image documents, and drops blank, duplicate and most skin-tone images.

    One instance processes all documents, so that an image that two sources share is kept once.
    """

    side: int
    """Longer side in pixels."""

    quality: int
    """WebP quality, 0 to 100."""

    crop_margins: bool = False
    """Whether to crop transparent margins; those of emoji are kept, as they show relative size."""

    dropped: Counter[str] = dataclasses.field(default_factory=Counter)
    """Number of dropped documents by reason."""

    _seen: set[bytes] = dataclasses.field(default_factory=set)
    _toned: dict[str, Iterator[str]] = dataclasses.field(default_factory=dict)
    _chosen: dict[tuple[str, str], str] = dataclasses.field(default_factory=dict)

    def make(self, document: Document) -> Document | None:
        """Return the document with a thumbnail and measured attributes; None if it is dropped."""
        reason, thumbnail = self._make(document)
        if thumbnail is None:
            self.dropped[reason] += 1
        return thumbnail

    def _make(self, document: Document) -> tuple[str, Document | None]:
        if not self._keeps_tone(document):
            return "skin tone", None
        original = document.images[0]
        if original.path is not None:
            width, height = image_size(original.path)
            if width * height > MAX_CLIP_ART_PIXELS:
                return "too large", None
        try:
            thumbnail = fit_within(_cropped(original.open()) if self.crop_margins else original.open(), self.side)
        except ImageError:
            return "broken", None
        if is_blank(thumbnail) or min(thumbnail.size) < self.side // 4:
            return "blank", None
        digest = hashlib.sha256(f"{thumbnail.size}".encode() + thumbnail.tobytes()).digest()
        if digest in self._seen:
            return "duplicate", None
        self._seen.add(digest)
        return "", self._document(document, thumbnail)

    def _document(self, document: Document, thumbnail: PIL.Image.Image) -> Document:
        caption = document.attributes["caption"]
        group = caption_group(caption)
        attributes = {**document.attributes, "split": group_split(group), "group": group}
        if color := main_color(thumbnail):
            attributes |= {"colour": color.word, "colour-share": f"{color.fraction:.2f}"}
        image = Image(data=encode_webp(thumbnail, self.quality))
        return dataclasses.replace(document, content=(image, Text(caption)), attributes=attributes)

    def _keeps_tone(self, document: Document) -> bool:
        """Return whether to keep a skin-tone image: one tone each of five emoji in eight."""
        tone = document.attributes.get("skin-tone")
        if tone is None:
            return True
        if tone not in SKIN_TONES:
            return False
        base = remove_skin_tone(document.attributes["caption"])
        if int(caption_group(base), 16) // 64 % 8 >= NUM_TONED_BASES:
            return False
        tones = self._toned.setdefault(document.source, itertools.cycle(SKIN_TONES))
        key = (document.source, base)
        if key not in self._chosen:
            self._chosen[key] = next(tones)
        return self._chosen[key] == tone


def is_blank(image: PIL.Image.Image) -> bool:
    """Return whether an image is nearly one color, or nearly transparent."""
    gray = np.asarray(on_white(image).convert("L"), dtype=np.float64)
    if not has_transparency(image):
        return float(gray.std()) < 8
    alpha = np.asarray(image.convert("RGBA").getchannel("A"), dtype=np.float64)
    return float(gray.std()) < 8 or float((alpha > 32).mean()) < 0.04


def _cropped(thumbnail: PIL.Image.Image) -> PIL.Image.Image:
    """Crop the transparent margins of an image."""
    if not has_transparency(thumbnail):
        return thumbnail
    thumbnail = thumbnail.convert("RGBA")
    visible = thumbnail.getchannel("A").point(lambda alpha: 255 if alpha > 16 else 0)
    return thumbnail.crop(visible.getbbox()) if visible.getbbox() else thumbnail


def is_good_clip_art(document: Document, english: AbstractSet[str]) -> bool:
    """Return whether a drawing shows a plain object and has an English caption.

    Excluded are desktop icons, brands, flags, star polygons, and drawings with an embedded
    photograph of unknown origin.

    Args:
        document: a drawing of Open Clip Art.
        english: words in lower case; half of the caption's must be among them.
    """
    attributes = document.attributes
    names = re.sub(r"[\W_]+", " ", f"{document.id} {attributes.get('keywords', '')}")
    if "holds-raster" in attributes or attributes["category"] in _SKIPPED or _THEMES.search(names):
        return False
    words = re.findall(r"[^\W\d_]{3,}", attributes["caption"].lower())
    known = [word for word in words if _is_known(word, english)]
    return bool(known) and 2 * len(known) >= len(words) and "star polygon" not in " ".join(words)


def _is_known(word: str, english: AbstractSet[str]) -> bool:
    endings = ("", "s", "es", "ed", "ing")
    return any(word.removesuffix(e) in english for e in endings if word.endswith(e))


def shorten_page(document: Document, *, side: int, quality: int, max_words: int) -> Document | None:
    """Return the beginning of a page with small images; None without images.

    Args:
        document: the page.
        side: longer side of the images in pixels.
        quality: WebP quality.
        max_words: the page ends after the part that reaches this number of words.
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
            thumbnail = fit_within(part.open(), side)
        except ImageError:
            continue
        parts.append(Image(data=encode_webp(thumbnail, quality)))
    shortened = dataclasses.replace(document, content=tuple(parts))
    return shortened if shortened.images else None
