"""What `benches/generate.py` asks of every side, and how it sees that all have done the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from calumma.vocabulary import Vocabulary


@dataclass(frozen=True)
class Asked:
    """One request, in ids."""

    ids: tuple[int, ...]

    text: int
    """New ids outside images."""

    images: int = 0
    """New images: 0 or 1."""

    at_once: bool = False
    """Whether the image comes first; else it is begun when the model chooses to."""

    seed: int = 0

    def new(self, codes_per_image: int) -> int:
        """New ids in all."""
        return self.text + self.images * (codes_per_image + 2)


class Reply:
    """The new ids of one request, as a peer's loop adds them."""

    def __init__(self, asked: Asked, vocabulary: Vocabulary, codes_per_image: int) -> None:
        self.asked, self.vocabulary, self.codes_per_image = asked, vocabulary, codes_per_image
        self.ids: list[int] = []
        self.codes_owed = 0
        self._images = asked.images

    @property
    def room(self) -> int:
        """Ids that may still be added."""
        return self.asked.new(self.codes_per_image) - len(self.ids)

    @property
    def may_begin(self) -> bool:
        """Whether an image may come now."""
        return self._images > 0 and self.room >= self.codes_per_image + 2

    def begin(self) -> None:
        """Open the image where it has to come first."""
        if self.asked.at_once and self.may_begin:
            self.add(self.vocabulary.begin_image)

    def add(self, id_: int) -> None:
        """Take in a new id; a full image is closed."""
        self.ids.append(id_)
        if id_ == self.vocabulary.begin_image:
            self.codes_owed, self._images = self.codes_per_image, self._images - 1
        elif self.codes_owed:
            self.codes_owed -= 1
            if not self.codes_owed:
                self.ids.append(self.vocabulary.end_image)


def counted(ids: Sequence[int], vocabulary: Vocabulary) -> tuple[int, int]:
    """How many of these ids are text, and how many image codes."""
    return sum(i in vocabulary.text for i in ids), sum(i in vocabulary.codes for i in ids)


class Asker:
    """Makes requests of drawn ids, always the same."""

    def __init__(self, vocabulary: Vocabulary, codes_per_image: int) -> None:
        self.vocabulary, self.codes_per_image = vocabulary, codes_per_image
        self.chance = np.random.default_rng(0)

    def prompt(self, *parts: int | str) -> tuple[int, ...]:
        """A prompt of so many text ids for each number, and of an image for each "image"."""
        vocabulary = self.vocabulary
        ids = [vocabulary.bos]
        for part in parts:
            if isinstance(part, int):
                ids += self.chance.choice(vocabulary.text, part).tolist()
                continue
            codes = self.chance.choice(vocabulary.codes, self.codes_per_image).tolist()
            ids += [vocabulary.begin_image, *codes, vocabulary.end_image]
        return (*ids, vocabulary.end_turn)

    def jobs(self, text: int) -> dict[str, list[Asked]]:
        """The three jobs: one guided image, eight requests of which no two are alike, text."""
        draw, prompt = {"text": 0, "images": 1, "at_once": True}, self.prompt
        return {
            "image": [Asked(prompt(24), **draw)],
            "mixed": [
                Asked(prompt(24), text=text),
                Asked(prompt(16), **draw),
                Asked(prompt("image", 12), text=text),
                Asked(prompt("image", 20), **draw, seed=3),
                Asked(prompt(40), text=text, images=1, seed=4),
                Asked(prompt(30), text=text // 2, images=1, seed=5),
                Asked(prompt(8, "image", 8, "image", 8), text=text // 2, images=1, at_once=True),
                Asked(prompt(200), text=text * 3 // 2, seed=7),
            ],
            "text": [Asked(prompt(64), text=2 * text)],
        }
