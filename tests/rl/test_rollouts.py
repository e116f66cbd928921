"""Prompts of rollouts, and advantages."""

import json
from pathlib import Path

import pytest

from calumma.batches.sampler import step_indices
from calumma.checkpoints.model_folder import ModelComponents
from calumma.errors import ConfigError
from calumma.generate.best_of import RewardInput
from calumma.rl.rollouts import RolloutGenerator, encode_rollout_prompts
from tests.rl.runs import brightness, config, write_prompts


def test_a_prompt_ends_before_the_last_answer(model_parts: ModelComponents, tmp_path: Path) -> None:
    path = write_prompts(tmp_path / "p.jsonl")
    prompts = encode_rollout_prompts(config(path).grpo, model_parts.tokenizers, 40)
    vocabulary = model_parts.tokenizers.text.vocabulary
    assert [prompt.text for prompt in prompts.items] == [f"draw {number}" for number in range(4)]
    for number, prompt in enumerate(prompts.items):
        assert prompt.token_ids[0] == vocabulary.bos and prompt.token_ids[-1] == vocabulary.end_turn
        assert prompt.token_ids.count(vocabulary.begin_image) == number % 2
        (reference,) = prompt.reference
        assert not isinstance(reference, str) and reference.size[0] > 0
        assert prompt.attributes == {"number": str(number)}
    other = encode_rollout_prompts(config(write_prompts(path, 3)).grpo, model_parts.tokenizers, 40)
    assert prompts.fingerprint != other.fingerprint
    assert sorted(step_indices(0, 4, len(prompts.items), seed=1)) == [0, 1, 2, 3]


def test_several_rewards_are_weighted(model_parts: ModelComponents, tmp_path: Path) -> None:
    rules = config(
        write_prompts(tmp_path / "p.jsonl"),
        reward_funcs=("tests.rl.runs:brightness", "short_answer"),
        reward_weights=(10.0, 0.0),
        scale_rewards=False,
    ).grpo
    generator = RolloutGenerator(rules, model_parts.tokenizers, [brightness, lambda _: 5.0], 96)
    (prompt, *_) = encode_rollout_prompts(rules, model_parts.tokenizers, 40).items
    rollouts = generator.generate(model_parts.decoder, [prompt], range(4))
    mean = sum(each.rewards[0] for each in rollouts) / 4
    assert all(each.rewards[1] == 5.0 for each in rollouts)
    for each in rollouts:
        assert each.advantage == pytest.approx(10 * (each.rewards[0] - mean), abs=1e-6)


def test_equal_completions_are_scored_once(model_parts: ModelComponents, tmp_path: Path) -> None:
    rules = config(write_prompts(tmp_path / "p.jsonl")).grpo
    calls: list[RewardInput] = []

    def count_call(completion: RewardInput) -> float:
        calls.append(completion)
        return float(len(calls))

    generator = RolloutGenerator(rules, model_parts.tokenizers, [count_call], 96)
    prompts = encode_rollout_prompts(rules, model_parts.tokenizers, 40).items[:2]
    rollouts = generator.generate(model_parts.decoder, prompts, [5, 5, 6, 5] * 2)
    assert [each.rewards[0] for each in rollouts] == [1, 1, 2, 1, 3, 3, 4, 3]


def test_every_second_anchor_loses_its_text(model_parts: ModelComponents, tmp_path: Path) -> None:
    rules = config(
        write_prompts(tmp_path / "p.jsonl"), anchors=(write_prompts(tmp_path / "a.jsonl", 2),), num_anchors=4
    )
    prompts = encode_rollout_prompts(rules.grpo, model_parts.tokenizers, 40)
    without = encode_rollout_prompts(config(tmp_path / "p.jsonl").grpo, model_parts.tokenizers, 40)
    assert len(prompts.anchors) == 2 and prompts.items == without.items
    assert prompts.fingerprint != without.fingerprint
    generator = RolloutGenerator(rules.grpo, model_parts.tokenizers, [], 96)
    drawing, edit = prompts.anchors
    of_step = {0: drawing, 1: drawing, 3: edit, 4: edit}
    rollouts = generator.generate_anchors(model_parts.decoder, of_step, first=9)
    vocabulary = model_parts.tokenizers.text.vocabulary
    image = edit.token_ids[edit.token_ids.index(vocabulary.begin_image) : -1]
    expected = [drawing.token_ids, (vocabulary.bos,), (vocabulary.bos, *image), edit.token_ids]
    assert [each.prompt_token_ids for each in rollouts] == expected
    assert all(each.is_anchor and each.rewards == () and each.advantage == 0 for each in rollouts)
    assert all(each.token_ids[0] == vocabulary.begin_image for each in rollouts)


def test_documents_that_are_no_prompts_are_refused(model_parts: ModelComponents, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    question = {"role": "user", "content": "words " * 30}
    cases = [
        (
            {"id": "a", "messages": [question]},
            40,
            "document 'a' of grpo.prompts does not end with an answer; expected turns whose last one is the "
            "reference. Add it, or leave the document out.",
        ),
        (
            {"id": "b", "messages": [question, {"role": "assistant", "content": "yes"}]},
            5,
            "; expected at most 5, the model's length less grpo.max_completion_length. Leave it out.",
        ),
    ]
    for record, longest, message in cases:
        path.write_text(json.dumps(record) + "\n")
        with pytest.raises(ConfigError) as refused:
            encode_rollout_prompts(config(path).grpo, model_parts.tokenizers, longest)
        assert str(refused.value).endswith(message)
