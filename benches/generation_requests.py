"""Requests of `benches/generate.py`, and the bookkeeping of the peers' loops."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from calumma.vocabulary import Vocabulary


@dataclass(frozen=True)
class BenchRequest:
    """A prompt in token ids and the number of tokens to generate."""

    prompt_token_ids: tuple[int, ...]

    num_text_tokens: int
    """Tokens to generate outside images."""

    num_images: int = 0
    """Images to generate: 0 or 1."""

    image_first: bool = False
    """Whether the image comes first; otherwise it begins when the model samples it."""

    seed: int = 0

    def num_new_tokens(self, codes_per_image: int) -> int:
        """Return the number of tokens to generate."""
        return self.num_text_tokens + self.num_images * (codes_per_image + 2)


class OutputState:
    """Output tokens of one request in a peer's loop."""

    def __init__(self, request: BenchRequest, vocabulary: Vocabulary, codes_per_image: int) -> None:
        self.request, self.vocabulary, self.codes_per_image = request, vocabulary, codes_per_image
        self.token_ids: list[int] = []
        self.num_codes_remaining = 0
        self._num_images = request.num_images

    @property
    def num_remaining(self) -> int:
        """Tokens still to be generated."""
        return self.request.num_new_tokens(self.codes_per_image) - len(self.token_ids)

    @property
    def may_begin_image(self) -> bool:
        """Whether an image may begin now."""
        return self._num_images > 0 and self.num_remaining >= self.codes_per_image + 2

    def start(self) -> None:
        """Begin the image if it must come first."""
        if self.request.image_first and self.may_begin_image:
            self.append(self.vocabulary.begin_image)

    def append(self, id_: int) -> None:
        """Append a sampled token; the last code of an image is followed by end-of-image."""
        self.token_ids.append(id_)
        if id_ == self.vocabulary.begin_image:
            self.num_codes_remaining = self.codes_per_image
            self._num_images -= 1
        elif self.num_codes_remaining:
            self.num_codes_remaining -= 1
            if not self.num_codes_remaining:
                self.token_ids.append(self.vocabulary.end_image)


def count_text_and_codes(ids: Sequence[int], vocabulary: Vocabulary) -> tuple[int, int]:
    """Count text tokens and image codes."""
    return sum(i in vocabulary.text for i in ids), sum(i in vocabulary.codes for i in ids)


class RequestGenerator:
    """Generates the same requests of random tokens every time."""

    def __init__(self, vocabulary: Vocabulary, codes_per_image: int) -> None:
        self.vocabulary, self.codes_per_image = vocabulary, codes_per_image
        self.rng = np.random.default_rng(0)

    def prompt(self, *parts: int | str) -> tuple[int, ...]:
        """Generate a prompt of this many text tokens per number, and an image for "image"."""
        vocabulary = self.vocabulary
        ids = [vocabulary.bos]
        for part in parts:
            if isinstance(part, int):
                ids += self.rng.choice(vocabulary.text, part).tolist()
                continue
            codes = self.rng.choice(vocabulary.codes, self.codes_per_image).tolist()
            ids += [vocabulary.begin_image, *codes, vocabulary.end_image]
        return (*ids, vocabulary.end_turn)

    def jobs(self, text: int) -> dict[str, list[BenchRequest]]:
        """Generate five jobs: one guided image, eight different requests, text alone, and eight guided
        images from text, and from an image and text.
        """
        prompt = self.prompt
        image = {"num_text_tokens": 0, "num_images": 1, "image_first": True}
        return {
            "image": [BenchRequest(prompt(24), **image)],
            "mixed": [
                BenchRequest(prompt(24), num_text_tokens=text),
                BenchRequest(prompt(16), **image),
                BenchRequest(prompt("image", 12), num_text_tokens=text),
                BenchRequest(prompt("image", 20), **image, seed=3),
                BenchRequest(prompt(40), num_text_tokens=text, num_images=1, seed=4),
                BenchRequest(prompt(30), num_text_tokens=text // 2, num_images=1, seed=5),
                BenchRequest(
                    prompt(8, "image", 8, "image", 8), num_text_tokens=text // 2, num_images=1, image_first=True
                ),
                BenchRequest(prompt(200), num_text_tokens=text * 3 // 2, seed=7),
            ],
            "text": [BenchRequest(prompt(64), num_text_tokens=2 * text)],
            "images": [BenchRequest(prompt(24), **image, seed=seed) for seed in range(8)],
            "edits": [BenchRequest(prompt("image", 24), **image, seed=seed) for seed in range(8)],
        }
