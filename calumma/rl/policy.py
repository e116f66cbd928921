"""Probabilities of completions under the grammar of generation, with gradients.

The engine samples among the tokens that the grammar allows. The trainer computes the same
probabilities, so that both agree to rounding. Shapes: N tokens, M model_dim, V vocabulary size.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from calumma.generate.grammar import Grammar, TokenKind, allowed_ids
from calumma.model.decoder import LMHead
from calumma.vocabulary import Vocabulary

CHUNK_TOKENS = 1024
"""Tokens whose logits are in memory at the same time."""


class PolicyOutput(NamedTuple):
    """Values of each token, [N] float32."""

    logprobs: Tensor
    """Natural log of the token's probability among the allowed ones, with gradients."""

    entropies: Tensor
    """Entropy of that distribution in nats, without gradients."""


def allowed_masks(vocabulary: Vocabulary) -> Tensor:
    """Return [kinds, V] bool, the tokens that each kind allows."""
    masks = torch.zeros(len(TokenKind), vocabulary.size, dtype=torch.bool)
    for kind in TokenKind:
        for ids in allowed_ids(kind, vocabulary):
            masks[kind, ids.start : ids.stop] = True
    return masks


def replay_kinds(grammar: Grammar, token_ids: Sequence[int]) -> list[TokenKind | None]:
    """Return the kind of each token of a completion; None where there was no choice, or of sides."""
    kinds: list[TokenKind | None] = []
    for id_ in token_ids:
        # The sides that may be sampled depend on the image, not on the kind alone.
        has_no_choice = grammar.forced_token is not None or grammar.next_kind is TokenKind.IMAGE_SIDE
        kinds.append(None if has_no_choice else grammar.next_kind)
        grammar.accept_token(id_)
    return kinds


def policy_logprobs(hidden: Tensor, head: LMHead, targets: Tensor, kinds: Tensor, masks: Tensor) -> PolicyOutput:
    """Compute the log-probability of each target among the tokens allowed in its place.

    Args:
        hidden: [N, M] input of the head.
        head: the output layer.
        targets: [N] int64 token ids.
        kinds: [N] int64 kinds of the tokens.
        masks: [kinds, V] as `allowed_masks` returns them.
    """

    def compute(inputs: Tensor, weight: Tensor) -> PolicyOutput:
        chunks = [slice(start, start + CHUNK_TOKENS) for start in range(0, len(inputs), CHUNK_TOKENS)]
        parts = [
            checkpoint(_chunk, inputs[c], weight, targets[c], masks[kinds[c]], use_reentrant=False) for c in chunks
        ]
        if not parts:
            return PolicyOutput(inputs.new_zeros(0), inputs.new_zeros(0))
        return PolicyOutput(torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts]))

    result: PolicyOutput = head(hidden, compute)
    return result


def _chunk(inputs: Tensor, weight: Tensor, targets: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    logits = (inputs @ weight.T).float().masked_fill(~allowed, float("-inf"))
    logprobs = logits.log_softmax(dim=1)
    with torch.no_grad():
        entropies = -(logprobs.exp() * logprobs.masked_fill(~allowed, 0.0)).sum(dim=1)
    return logprobs.gather(1, targets[:, None]).squeeze(1), entropies
