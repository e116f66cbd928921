"""Best of n: samples, their rewards, and the choice of the best."""

from dataclasses import replace

import pytest

from calumma.checkpoints.model_folder import ModelComponents
from calumma.documents.document import Text
from calumma.errors import ConfigError, GenerationError
from calumma.generate.best_of import (
    RewardInput,
    best_samples,
    compute_reward,
    prompt_likelihoods,
    prompt_text,
    score_samples,
)
from calumma.generate.loglikelihood import token_logprobs
from calumma.generate.model import Model
from tests.images import noise

IMAGES = {"modality": "image", "max_images": 1, "max_new_tokens": 6}


@pytest.fixture(scope="module")
def model(model_parts: ModelComponents) -> Model:
    return Model(model_parts)


def brightness(completion: RewardInput) -> float:
    """Return the mean brightness of the first image, from 0 to 255."""
    (image,) = completion.images
    assert (completion.prompt, completion.text, completion.num_tokens) == ("a circle", "", 6)
    assert (completion.reference, completion.attributes, completion.finish_reason) == ((), {}, "stop")
    gray = image.convert("L").tobytes()
    return sum(gray) / len(gray)


def test_the_samples_with_the_highest_reward_are_returned(model: Model) -> None:
    request = model.request(["a circle"], seed=7, **IMAGES)
    every = model.generate_requests([replace(request, seed=seed) for seed in range(7, 11)])
    rewards = [sample.reward for sample in score_samples(model, "a circle", every, brightness)]
    assert None not in rewards and len(set(rewards)) > 1
    best = best_samples(model, request, "a circle", 2, 4, brightness)
    order = sorted(range(4), key=lambda index: -(rewards[index] or 0.0))
    assert [sample.token_ids for sample in best] == [every[index].token_ids for index in order[:2]]
    assert [sample.reward for sample in best] == [rewards[index] for index in order[:2]]
    chosen = model.generate(["a circle"], seed=7, best_of=4, reward=brightness, **IMAGES)
    assert chosen.token_ids == best[0].token_ids
    assert model.generate(["a circle"], seed=7, **IMAGES).reward is None


def test_the_likelihood_is_that_of_the_prompt_after_the_output(model: Model) -> None:
    every = [model.generate(["a circle"], seed=seed, **IMAGES) for seed in range(3)]
    text, vocabulary = model.text.encode("a circle"), model.vocabulary
    found = prompt_likelihoods(model, "a circle", [sample.token_ids for sample in every])
    for sample, likelihood in zip(every, found, strict=True):
        image = [id_ for id_ in sample.token_ids if id_ != vocabulary.eos]
        (logprobs,) = token_logprobs(model.decoder, [[vocabulary.bos, *image, *text]])
        # Image codes are excluded, so every token of the text is more likely.
        assert 0 > likelihood > logprobs[-len(text) :].mean()
    chosen = model.generate(["a circle"], best_of=3, **IMAGES)
    assert chosen.reward == pytest.approx(max(found), abs=1e-5)


def test_the_log_probability_is_a_mean_over_tokens(model: Model) -> None:
    sample = model.generate(["a circle"], best_of=2, reward="logprob", **IMAGES)
    assert sample.reward == pytest.approx(sum(sample.logprobs) / 6)


def test_what_cannot_be_chosen_is_refused(model: Model) -> None:
    request = model.request([noise(1)], **IMAGES)
    with pytest.raises(GenerationError) as refused:
        best_samples(model, request, "", 1, 2, "likelihood")
    assert str(refused.value) == (
        "the prompt has no text whose likelihood could choose between samples; expected some. Name another reward."
    )
    with pytest.raises(GenerationError) as refused:
        best_samples(model, request, "", 3, 2, brightness)
    assert str(refused.value) == "n=3 and best_of=2; expected at least 1, and n at most best_of."
    longest = model.decoder.config.max_seq_len
    with pytest.raises(GenerationError) as refused:
        prompt_likelihoods(model, "a", [[5] * longest])
    assert str(refused.value) == (
        f"an output and its prompt have {longest + 2} tokens; expected at most {longest}, the most this model reads. "
        "Name another reward."
    )


def test_a_reward_that_fails_or_is_no_number_is_named() -> None:
    completion = RewardInput(prompt="a", parts=("b",), num_tokens=3, finish_reason="stop")

    def first_image(given: RewardInput) -> float:
        return float(given.images[0].width)

    def unknown(given: RewardInput) -> float:
        return float("nan")

    def refusing(given: RewardInput) -> float:
        raise ConfigError("no reference.")

    with pytest.raises(GenerationError) as refused:
        compute_reward(first_image, completion)
    assert str(refused.value) == (
        "reward first_image failed on an output of 3 tokens: IndexError: list index out of range; expected a number. "
        "Correct the function."
    )
    with pytest.raises(GenerationError) as refused:
        compute_reward(unknown, completion)
    assert str(refused.value) == "reward unknown returned nan; expected a finite number. Correct the function."
    with pytest.raises(ConfigError, match=r"^no reference\.$"):
        compute_reward(refusing, completion)


def test_the_text_of_a_prompt_leaves_out_its_images() -> None:
    assert prompt_text(["a", noise(1), Text("b"), {"type": "text", "text": "c"}, {"type": "image"}]) == "a\nb\nc"
