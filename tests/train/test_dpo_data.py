"""Preference pairs as tokens and packed rows, small enough to write out."""

import numpy as np
import pytest

from calumma.batches.sampler import step_indices
from calumma.documents.document import Image, Text
from calumma.documents.preferences import Preference
from calumma.errors import ConfigError
from calumma.shards.encode import DocumentEncoder
from calumma.tokens.folder import Tokenizers
from calumma.train.dpo_data import PreferencePairs, encode_pairs, pack_sequences
from tests.images import png


def item(*ids: int, answer: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a sequence whose tokens from `answer` on are in the loss mask."""
    return np.array(ids), np.arange(len(ids)) >= answer


PAIR = (item(0, 20, 21, 22, 2, answer=3), item(0, 20, 21, 2, answer=3))
OTHER = (item(0, 25, 2, answer=2), item(0, 25, 26, 2, answer=2))


def test_rows_hold_as_many_answers_as_fit() -> None:
    laid = pack_sequences([*PAIR, *OTHER], 6, pad=1)
    # Places: 4, 3, 2, 3; the fullest row that fits takes each.
    assert laid.batch.input_ids.tolist() == [[0, 20, 21, 22, 0, 25], [0, 20, 21, 0, 25, 26]]
    assert laid.batch.labels[laid.batch.loss_mask].tolist() == [22, 2, 2, 2, 26, 2]
    assert laid.sequence_indices.tolist() == [0, 0, 2, 1, 3, 3]
    assert laid.num_sequences == 4


def test_every_pair_occurs_once_per_epoch() -> None:
    pairs = PreferencePairs([PAIR] * 5)
    drawn = [number for step in range(5) for number in step_indices(step, 2, len(pairs.items), seed=3)]
    assert sorted(drawn[:5]) == sorted(drawn[5:]) == list(range(5))
    assert drawn[:5] != drawn[5:]
    assert step_indices(4, 2, len(pairs.items), seed=3) == drawn[8:]


def test_other_tokens_have_another_fingerprint() -> None:
    assert PreferencePairs([PAIR]).fingerprint != PreferencePairs([OTHER]).fingerprint
    assert PreferencePairs([PAIR]).fingerprint == PreferencePairs([PAIR]).fingerprint


def preference(answer: str) -> Preference:
    return Preference(
        id="one",
        prompt=(Image(data=png(1)), Text("what is it?")),
        chosen=(Text("a circle"), Image(data=png(2))),
        rejected=(Text(answer),),
    )


def test_answers_may_have_images_and_end_with_eos(tokenizers: Tokenizers) -> None:
    encoder = DocumentEncoder(tokenizers)
    vocabulary = tokenizers.text.vocabulary
    ((chosen, rejected),) = encode_pairs([preference("no")], encoder, 64).items
    for ids, mask in (chosen, rejected):
        assert ids[0] == vocabulary.bos and ids[-1] == vocabulary.eos
        assert list(ids[~mask]) == list(chosen[0][~chosen[1]])
    assert vocabulary.begin_image in chosen[0][chosen[1]]
    assert vocabulary.begin_image not in rejected[0][rejected[1]]


def test_a_pair_longer_than_a_row_is_refused(tokenizers: Tokenizers) -> None:
    encoder = DocumentEncoder(tokenizers)
    with pytest.raises(ConfigError) as caught:
        encode_pairs([preference("no")], encoder, 8)
    longest = int(str(caught.value).split(" has ")[1].split()[0])
    assert str(caught.value) == (
        f"pair 'one' has {longest} tokens with its prompt; expected at most seq_len=8. Raise "
        "--seq-len, or remove the pair."
    )
    assert longest > 8


def test_no_pairs_are_refused(tokenizers: Tokenizers) -> None:
    with pytest.raises(ConfigError) as caught:
        encode_pairs([], DocumentEncoder(tokenizers), 8)
    assert str(caught.value) == (
        "the files of dpo.pairs hold no pair; expected at least one. Collect some with "
        "`calumma compare`, or write them as docs/finetuning.md says."
    )
