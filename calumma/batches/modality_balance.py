"""Modality pairings of conversations: the modalities of prompt and answer, such as "text->image".

A mixture in which nearly all answers have an image (or nearly none has) trains a model to generate
images (or never to) whatever the prompt. Source: Chameleon (arXiv:2405.09818), on data balancing;
the bound below is measured in `studies/balance`.
"""

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
"""Number of sequences of each source whose pairings are counted."""

MIN_ANSWER_FRACTION = 0.05
"""Minimum fraction of answers with an image, and of those without, that gives no warning."""


def modality_pairing(ids: NDArray[np.int64], loss_mask: NDArray[np.bool_], vocabulary: Vocabulary) -> str:
    """Return the modality pairing of a sequence: "text->image", "text+image->text", ...

    Args:
        ids: [T] token ids of one sequence.
        loss_mask: [T] whether a token counts in the loss: in a conversation, whether it is part of
            an answer.
        vocabulary: which ids are text and which are codes.

    Returns:
        The pairing, or `PLAIN_PAIRING` if there are no turns.
    """
    if vocabulary.end_turn not in ids:
        return PLAIN_PAIRING
    return f"{_modalities(ids[~loss_mask], vocabulary)}->{_modalities(ids[loss_mask], vocabulary)}"


def _modalities(ids: NDArray[np.int64], vocabulary: Vocabulary) -> str:
    present = {"text": (ids >= vocabulary.text.start).any(), "image": (ids == vocabulary.begin_image).any()}
    return "+".join(name for name, is_present in present.items() if is_present) or "nothing"


def answers_with_images(pairing: str) -> bool:
    """Return whether the answers of a pairing contain images.

    >>> answers_with_images("text->text+image"), answers_with_images("text+image->text")
    (True, False)
    """
    return "image" in pairing.partition("->")[2]


def measure_pairings(reader: ShardReader, source: str) -> dict[str, float]:
    """Return the fraction of each pairing in a source, from evenly spaced sequences."""
    size = reader.num_sequences(source)
    indices = {int(n) for n in np.linspace(0, size - 1, min(size, SAMPLED_SEQUENCES))}
    vocabulary = reader.manifest.vocabulary
    found = Counter(
        modality_pairing(*reader.read(reader.sequence_index(source, index)), vocabulary) for index in indices
    )
    return {pairing: count / len(indices) for pairing, count in sorted(found.items())}


@dataclass(frozen=True)
class ModalityBalance:
    """The sources and modality pairings of a mixture, in fractions of its sequences."""

    sources: Mapping[str, float]
    """Fraction of each source; they sum to 1."""

    pairings: Mapping[str, float]
    """Fraction of each pairing; they sum to 1."""

    @property
    def image_answer_fraction(self) -> float:
        """Fraction of the sequences whose answers contain images."""
        return sum(part for name, part in self.pairings.items() if answers_with_images(name))

    @property
    def warning(self) -> str | None:
        """A line about an unbalanced mixture; None if it is balanced."""
        found = f"unbalanced: {self.image_answer_fraction:.1%} of the answers contain images"
        fix = 'Give other sources a larger weight, or set balance = "pairings".'
        if self.image_answer_fraction < MIN_ANSWER_FRACTION:
            return f"{found}; the model may stop generating images when asked to. {fix}"
        if self.image_answer_fraction > 1 - MIN_ANSWER_FRACTION:
            return f"{found}; the model may generate images whatever it is asked. {fix}"
        return None

    def to_json(self) -> dict[str, Any]:
        """Return the contents of a run's `balance.json`."""
        return {
            "sources": dict(self.sources),
            "pairings": dict(self.pairings),
            "image_answer_fraction": self.image_answer_fraction,
            "warning": self.warning,
        }


def measure_balance(weights: Mapping[str, float], reader: ShardReader) -> ModalityBalance:
    """Measure the modality balance of a mixture.

    Args:
        weights: weight of each source, by sequences; they need not sum to 1.
        reader: the shards.

    Raises:
        ShardError: a source is not in the shards.
    """
    total = sum(weights.values())
    sources = {name: weight / total for name, weight in weights.items() if weight > 0}
    pairings: dict[str, float] = {}
    for name, fraction in sources.items():
        for pairing, part in measure_pairings(reader, name).items():
            pairings[pairing] = pairings.get(pairing, 0.0) + fraction * part
    return ModalityBalance(sources, dict(sorted(pairings.items())))


def equalize_pairings(weights: Mapping[str, float], reader: ShardReader) -> dict[str, float]:
    """Reweight the sources so that every pairing contributes the same number of sequences.

    A source counts for its most frequent pairing; sources of one pairing keep their ratios.

    Raises:
        ShardError: a source is not in the shards.
    """
    main_pairing = {}
    for name, weight in weights.items():
        if weight > 0:
            fractions = measure_pairings(reader, name)
            main_pairing[name] = max(fractions, key=lambda pairing: fractions[pairing])
    totals: dict[str, float] = {}
    for name, pairing in main_pairing.items():
        totals[pairing] = totals.get(pairing, 0.0) + weights[name]
    return {name: weights[name] / totals[p] / len(totals) for name, p in main_pairing.items()}


def format_balance(balance: ModalityBalance) -> list[str]:
    """Format a table of the pairings, and the warning if there is one."""
    width = max([len("pairing"), *map(len, balance.pairings)])
    lines = [f"{'pairing':{width}}{'sequences':>12}"]
    lines += [f"{name:{width}}{fraction:>12.1%}" for name, fraction in balance.pairings.items()]
    return [*lines, *([balance.warning] if balance.warning else [])]
