"""A pool of shapes and three objects, one of them held out."""

from __future__ import annotations

from calumma.corpora.still_life import ObjectPool, Thing
from tests.documents.image_files import png

BEAR = Thing("bear", source="emoji", license="MIT", data=png("brown"))


class SmallPool(ObjectPool):
    """A pool that opens no corpus."""

    objects = (BEAR, Thing("oak", data=png("green")), Thing("owl", split="held-out", data=png("grey")))


SMALL = SmallPool()
