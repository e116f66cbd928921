"""The weights of the stage-two mixture."""

from collections.abc import Mapping

from calumma.errors import ConfigError


def stage_two_weights(
    stage_one: Mapping[str, float], added: Mapping[str, float], *, stage_one_fraction: float = 0.5
) -> dict[str, float]:
    """Mix the stage-one weights with added sources.

    Args:
        stage_one: weights of stage one; they need not sum to 1.
        added: weights of the added sources; they may be in `stage_one` too.
        stage_one_fraction: fraction of stage two that is stage one's mixture (the paper's half).

    Returns:
        Weights that sum to 1.

    Raises:
        ConfigError: weights are negative or sum to 0, or the fraction is not in [0, 1].

    >>> stage_two_weights({"web": 3.0, "pairs": 1.0}, {"best": 1.0, "pairs": 1.0})
    {'web': 0.375, 'pairs': 0.375, 'best': 0.25}
    """
    if not 0.0 <= stage_one_fraction <= 1.0:
        raise ConfigError(f"stage_one_fraction={stage_one_fraction}; expected a fraction from 0 to 1.")
    weights: dict[str, float] = {}
    for part, fraction in ((stage_one, stage_one_fraction), (added, 1.0 - stage_one_fraction)):
        total = sum(part.values())
        if total <= 0 or min(part.values()) < 0:
            raise ConfigError(f"a stage's weights are {dict(part)}; expected none negative and one positive.")
        for name, weight in part.items():
            weights[name] = weights.get(name, 0.0) + fraction * weight / total
    return weights
