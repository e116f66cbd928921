"""Modality pairings of turns: what is asked in, and what is answered in.

A mixture in which nearly all answers have a picture (or nearly none has) teaches a model to draw
(or never to draw) whatever it is asked. Source: Chameleon (arXiv:2405.09818), on balancing; the
bound below is measured in `studies/balance`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calumma.shards.reader import ShardReader
from calumma.vocabulary import Vocabulary

PLAIN_PAIRING = "plain"
"""The pairing of a document without turns."""

SAMPLED_SEQUENCES = 256
"""Sequences of each source that its pairings are counted over."""

MIN_ANSWER_FRACTION = 0.05
"""Least share of answers with a picture, and of those without, that draws no warning."""


def modality_pairing(
    ids: NDArray[np.int64], counted: NDArray[np.bool_], vocabulary: Vocabulary
) -> str:
    """What a sequence of turns asks and answers in: "text->image", "text+image->text", ...

    Args:
        ids: [T] of one sequence.
        counted: [T] whether an id counts in the loss: in turns, whether it is of an answer.
        vocabulary: which ids are text and which are codes.

    Returns:
        The pairing, or `PLAIN` where there are no turns.
    """
    if vocabulary.end_turn not in ids:
        return PLAIN_PAIRING
    return f"{_modality(ids[~counted], vocabulary)}->{_modality(ids[counted], vocabulary)}"


def _modality(ids: NDArray[np.int64], vocabulary: Vocabulary) -> str:
    kinds = {
        "text": (ids >= vocabulary.text.start).any(),
        "image": (ids == vocabulary.begin_image).any(),
    }
    return "+".join(kind for kind, there in kinds.items() if there) or "nothing"


def answers_with_images(pairing: str) -> bool:
    """Whether the answers of a pairing have pictures.

    >>> draws("text->text+image"), draws("text+image->text")
    (True, False)
    """
    return "image" in pairing.partition("->")[2]


def measure_pairings(reader: ShardReader, source: str) -> dict[str, float]:
    """Share of each pairing in a source, over sequences that are spread evenly over it."""
    size = reader.num_sequences(source)
    places = {int(place) for place in np.linspace(0, size - 1, min(size, SAMPLED_SEQUENCES))}
    vocabulary = reader.manifest.vocabulary
    found = Counter(
        modality_pairing(*reader.read(reader.sequence_index(source, place)), vocabulary)
        for place in places
    )
    return {pairing: count / len(places) for pairing, count in sorted(found.items())}


@dataclass(frozen=True)
class ModalityBalance:
    """What a mixture of sources asks and answers in, by shares of its sequences."""

    sources: Mapping[str, float]
    """Share of each source; they sum to 1."""

    pairings: Mapping[str, float]
    """Share of each pairing; they sum to 1."""

    @property
    def image_answer_fraction(self) -> float:
        """Share of the answers that have a picture."""
        return sum(
            share for pairing, share in self.pairings.items() if answers_with_images(pairing)
        )

    @property
    def warning(self) -> str | None:
        """What is wrong with it, in a line; None where nothing is."""
        told = f"{self.image_answer_fraction:.1%} of the answers have a picture"
        remedy = 'Give other sources a larger share, or set balance = "pairings".'
        if self.image_answer_fraction < MIN_ANSWER_FRACTION:
            return f"unbalanced: {told}; the model may forget to draw when it is asked to. {remedy}"
        if self.image_answer_fraction > 1 - MIN_ANSWER_FRACTION:
            return f"unbalanced: {told}; the model may draw whatever it is asked. {remedy}"
        return None

    def to_json(self) -> dict[str, Any]:
        """What a run keeps of it."""
        return {
            "sources": dict(self.sources),
            "pairings": dict(self.pairings),
            "drawn": self.image_answer_fraction,
            "warning": self.warning,
        }


def measure_balance(weights: Mapping[str, float], reader: ShardReader) -> ModalityBalance:
    """What a mixture comes to.

    Args:
        weights: share of each source, by sequences; they need not sum to 1.
        reader: the shards.

    Raises:
        ShardError: the shards hold no such source.
    """
    total = sum(weights.values())
    sources = {name: weight / total for name, weight in weights.items() if weight > 0}
    pairings: dict[str, float] = {}
    for name, share in sources.items():
        for pairing, part in measure_pairings(reader, name).items():
            pairings[pairing] = pairings.get(pairing, 0.0) + share * part
    return ModalityBalance(sources, dict(sorted(pairings.items())))


def equalize_pairings(weights: Mapping[str, float], reader: ShardReader) -> dict[str, float]:
    """Weights under which every pairing has as many sequences as every other.

    A source counts for the pairing that most of its sequences have; sources of one pairing keep
    their shares among each other.

    Raises:
        ShardError: the shards hold no such source.
    """
    of_source = {}
    for name, weight in weights.items():
        if weight > 0:
            shares = measure_pairings(reader, name)
            of_source[name] = max(shares, key=lambda pairing: shares[pairing])
    sums: dict[str, float] = {}
    for name, pairing in of_source.items():
        sums[pairing] = sums.get(pairing, 0.0) + weights[name]
    return {name: weights[name] / sums[p] / len(sums) for name, p in of_source.items()}


def format_balance(balance: ModalityBalance) -> list[str]:
    """A balance, told in lines."""
    width = max([len("pairing"), *map(len, balance.pairings)])
    lines = [f"{'pairing':{width}}{'sequences':>12}"]
    lines += [f"{name:{width}}{share:>12.1%}" for name, share in balance.pairings.items()]
    return [*lines, *([balance.warning] if balance.warning else [])]
