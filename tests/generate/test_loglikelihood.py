import math

import numpy as np
import pytest
import torch

from calumma.checkpoints.model_folder import ModelComponents
from calumma.generate import loglikelihood
from calumma.generate.loglikelihood import length_batches, score_sequences, token_logprobs
from calumma.generate.model import Model
from tests.evaluate.oracle import TOKENIZER, VOCABULARY, Oracle


@pytest.fixture(scope="module")
def model(model_parts: ModelComponents) -> Model:
    return Model(model_parts)


def test_an_even_model_gives_every_id_the_same_probability() -> None:
    [scores] = token_logprobs(Oracle(0.0), [[0, 4, 5, 2]])  # type: ignore[list-item, arg-type]
    assert scores == pytest.approx([0.0] + [-math.log(VOCABULARY.size)] * 3)


def test_a_known_logit_gives_the_probability_worked_out_by_hand() -> None:
    [letter] = TOKENIZER.encode("b")
    code = VOCABULARY.code_to_id(1)
    [scores] = token_logprobs(
        Oracle(2.0),  # type: ignore[arg-type]
        [[VOCABULARY.bos, letter, code]],
    )
    rest = VOCABULARY.size - 1
    assert scores[2] == pytest.approx(2 - math.log(math.exp(2) + rest))


def test_many_at_once_are_scored_as_one_by_one(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loglikelihood, "MAX_BATCH_TOKENS", 40)
    chance = np.random.default_rng(0)
    sequences = [chance.integers(0, model.vocabulary.size, length).tolist() for length in (9, 2, 17, 1, 9, 30, 5, 1)]
    sequences += [[*sequences[2][:-1], last] for last in (5, 60, 5)]
    for ids, scores in zip(sequences, token_logprobs(model.decoder, sequences), strict=True):
        with torch.inference_mode():
            expected = model.logits(ids)[0].log_softmax(dim=-1)
        alone = [0.0, *(float(expected[index, id_]) for index, id_ in enumerate(ids[1:]))]
        assert scores == pytest.approx(alone, abs=1e-4)


def test_batches_hold_every_sequence_once_and_stay_in_bounds() -> None:
    lengths = [7, 3, 9, 20, 3, 1, 8]
    made = list(length_batches(lengths, max_tokens=16))
    assert sorted(index for batch in made for index in batch) == list(range(7))
    for batch in made:
        longest = max(lengths[index] for index in batch)
        assert len(batch) == 1 or longest * len(batch) <= 16


def test_progress_is_reported_up_to_the_last_sequence() -> None:
    results: list[tuple[int, int]] = []
    token_logprobs(
        Oracle(0.0),  # type: ignore[arg-type]
        [[0, 1], [0, 1, 2]],
        on_progress=lambda done, of: results.append((done, of)),
    )
    assert results[-1] == (2, 2)


def test_sequences_that_differ_in_their_last_id_cost_one_pass(model: Model) -> None:
    read: list[int] = []

    class Counting:
        embedding, config = model.decoder.embedding, model.decoder.config

        def __call__(self, ids: torch.Tensor) -> torch.Tensor:
            read.append(len(ids))
            return model.decoder(ids)

    questions = [[0, 40, 41, last] for last in range(60, 70)] + [[0, 40, 42, 60]]
    results = score_sequences(Counting(), questions)  # type: ignore[arg-type]
    assert read == [2]
    likeliest = [index for index in range(10) if results[index].is_greedy[-1]]
    assert len(likeliest) <= 1
    best = int(model.logits(questions[0][:-1])[0, -1].argmax())
    [again] = score_sequences(model.decoder, [[0, 40, 41, best]])
    assert again.is_greedy[-1]


def test_ids_that_cannot_come_leave_their_probability_to_the_others(model: Model) -> None:
    codes = model.vocabulary.codes
    [plain] = score_sequences(model.decoder, [[0, 40, 41]])
    [results] = score_sequences(model.decoder, [[0, 40, 41]], excluded=codes)
    logs = model.logits([0, 40])[0].log_softmax(-1)
    rest = 1 - logs[:, codes.start : codes.stop].exp().sum(-1)
    assert results.logprobs[1:] - plain.logprobs[1:] == pytest.approx(-rest.log().numpy(), abs=1e-5)


def test_the_most_likely_tokens_are_those_of_the_logits(model: Model) -> None:
    ids, codes = [0, 40, 41, 42], model.vocabulary.codes
    longer = [0, 41, 42, 43, 44]
    [scores, _, other] = model.prompt_logprobs([ids, longer, [*ids[:-1], 50]], num_top=3)
    logits = model.logits(ids)[0, :-1].clone()
    logits[:, codes.start : codes.stop] = -torch.inf
    values, indices = logits.log_softmax(-1).topk(3)
    assert [list(top) for top in scores.top_logprobs] == indices.tolist()
    for top, row in zip(scores.top_logprobs, values.tolist(), strict=True):
        assert list(top.values()) == pytest.approx(row, abs=1e-5)
    assert other.top_logprobs == scores.top_logprobs
    assert other.logprobs[-1] != scores.logprobs[-1]
