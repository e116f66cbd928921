"""Weights of stage two: what is kept of stage one's mixture, and who gets the rest."""

from __future__ import annotations

from collections.abc import Mapping

from calumma.errors import ConfigError


def stage_two_weights(
    first: Mapping[str, float], added: Mapping[str, float], *, stage_one_fraction: float = 0.5
) -> dict[str, float]:
    """Stage two's weights: stage one's times `kept`, and the rest given to named sources.

    Args:
        first: stage one's weights; they need not sum to 1.
        added: the sources that the rest is shared out to, by weight; they may be in `first` too.
        kept: share of stage two that is stage one's mixture (the paper's half).

    Returns:
        Weights that sum to 1.

    Raises:
        ConfigError: weights are negative or sum to nothing, or `kept` is no share.

    >>> second_stage({"web": 3.0, "pairs": 1.0}, {"best": 1.0, "pairs": 1.0})
    {'web': 0.375, 'pairs': 0.375, 'best': 0.25}
    """
    if not 0.0 <= stage_one_fraction <= 1.0:
        raise ConfigError(f"kept={stage_one_fraction} of stage one; expected a share from 0 to 1.")
    weights: dict[str, float] = {}
    for part, share in ((first, stage_one_fraction), (added, 1.0 - stage_one_fraction)):
        total = sum(part.values())
        if total <= 0 or min(part.values()) < 0:
            raise ConfigError(
                f"a stage's weights are {dict(part)}; expected none negative and one positive."
            )
        for name, weight in part.items():
            weights[name] = weights.get(name, 0.0) + share * weight / total
    return weights
