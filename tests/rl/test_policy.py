"""Probabilities under the grammar."""

import pytest
import torch

from calumma.generate.grammar import Grammar, TokenKind, allowed_ids
from calumma.model.decoder import LMHead
from calumma.rl import policy
from calumma.rl.policy import allowed_masks, policy_logprobs, replay_kinds
from calumma.vocabulary import Vocabulary

VOCABULARY = Vocabulary(num_codes=8, num_text=270)


def test_masks_are_the_ids_that_the_grammar_allows() -> None:
    masks = allowed_masks(VOCABULARY)
    assert masks.shape == (len(TokenKind), VOCABULARY.size)
    for kind in TokenKind:
        allowed = {id_ for ids in allowed_ids(kind, VOCABULARY) for id_ in ids}
        assert set(masks[kind].nonzero().flatten().tolist()) == allowed


def test_forced_tokens_have_no_kind() -> None:
    code, begin, end = VOCABULARY.codes.start, VOCABULARY.begin_image, VOCABULARY.end_image
    grammar = Grammar(VOCABULARY, codes_per_image=2, max_remaining_tokens=10, max_images=1)
    kinds = replay_kinds(grammar, [begin, code, code + 1, end, VOCABULARY.text.start, VOCABULARY.eos])
    both, text, image = TokenKind.TEXT_OR_IMAGE, TokenKind.TEXT, TokenKind.IMAGE_CODE
    assert kinds == [both, image, image, None, text, text]


def test_values_and_gradients_are_those_of_masked_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    head = LMHead(6, VOCABULARY.size, bias=False)
    hidden = torch.randn(7, 6, generator=generator, requires_grad=True)
    masks = allowed_masks(VOCABULARY)
    text, both, end, code = TokenKind.TEXT, TokenKind.TEXT_OR_IMAGE, TokenKind.IMAGE_OR_EOS, TokenKind.IMAGE_CODE
    kinds = torch.tensor([text, both, end, code, code, text, both])
    targets = torch.stack([masks[kind].nonzero().flatten()[-1] for kind in kinds])
    monkeypatch.setattr(policy, "CHUNK_TOKENS", 3)
    found = policy_logprobs(hidden, head, targets, kinds, masks)
    ours = torch.autograd.grad(found.logprobs.square().sum(), [hidden, head.weight])
    expected = head(hidden).masked_fill(~masks[kinds], -torch.inf).log_softmax(dim=1)
    picked = expected[torch.arange(7), targets]
    assert torch.allclose(found.logprobs, picked, atol=1e-6)
    direct = torch.autograd.grad(picked.square().sum(), [hidden, head.weight])
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(ours, direct, strict=True))
    entropy = torch.distributions.Categorical(probs=expected.exp()).entropy()
    assert torch.allclose(found.entropies, entropy, atol=1e-5)
    assert not found.entropies.requires_grad


def test_no_tokens_are_no_values() -> None:
    head = LMHead(6, VOCABULARY.size, bias=False)
    none = torch.zeros(0, dtype=torch.int64)
    found = policy_logprobs(torch.zeros(0, 6), head, none, none, allowed_masks(VOCABULARY))
    assert found.logprobs.shape == found.entropies.shape == (0,)
