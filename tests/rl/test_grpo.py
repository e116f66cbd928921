"""GRPO: the loss by hand, agreement with the engine, rising rewards, killed runs, two ranks."""

import math
from pathlib import Path

import pytest
import torch

from calumma.checkpoints.model_folder import ModelComponents, save_model
from calumma.errors import TrainingError
from calumma.model.decoder import Decoder
from calumma.rl.config_grpo import GRPOConfig, GRPOTrainConfig
from calumma.rl.grpo import GRPOTrainer, grpo_loss, read_rollout_prompts, train_grpo
from calumma.train.config import ComputeConfig
from tests.apple_gpu import apple_gpu
from tests.launch import free_ports, run_ranks
from tests.rl.runs import config, tune_rank, write_prompts
from tests.train.runs import KilledError, assert_same_weights, dies_after, logged_metrics


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write_prompts(tmp_path / "prompts.jsonl")


def test_the_loss_of_tokens_by_hand() -> None:
    rules = GRPOConfig(
        prompts=(Path("p"),), reward_funcs=("f",), beta=0.1, epsilon=0.2, epsilon_high=0.3, importance_cap=1.5
    )
    logprobs = torch.tensor([math.log(0.5), math.log(0.1), math.log(0.2)], requires_grad=True)
    old = torch.tensor([math.log(0.25), math.log(0.2), math.log(0.2)])
    engine = torch.tensor([math.log(0.25), math.log(0.2), math.log(0.1)])
    reference = torch.tensor([math.log(0.25), math.log(0.1), math.log(0.2)])
    terms = grpo_loss(logprobs, old, engine, torch.tensor([1.0, -1.0, 2.0]), reference, rules)
    kl = 0.5 - math.log(0.5) - 1
    # Ratios 2, 0.5 and 1: the first two are clipped, the third is weighted by the capped 2.
    assert terms.loss.tolist() == pytest.approx([-1.3 + 0.1 * kl, 0.8, -1.5 * 2.0])
    assert terms.kl.tolist() == pytest.approx([kl, 0.0, 0.0], abs=1e-6)
    assert terms.is_clipped.tolist() == [True, True, False]
    anchors = torch.tensor([True, False, False])
    held = grpo_loss(logprobs, old, engine, torch.tensor([0.0, -1.0, 2.0]), reference, rules, anchors)
    assert held.loss.tolist() == pytest.approx([rules.anchor_beta * (2 - math.log(2) - 1), 0.8, -1.5 * 2.0])
    terms.loss.sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([0.1 * (1 - 0.5), 0.0, -3.0], abs=1e-6)


@pytest.mark.parametrize("modality", ["any", "image", "text"])
def test_the_trainer_computes_the_log_probabilities_of_the_engine(
    model_parts: ModelComponents, prompts: Path, modality: str
) -> None:
    rules = config(prompts, modality=modality, max_completion_length=20)
    trainer = _trainer(rules, model_parts)
    rollouts = trainer.rollouts(0)
    assert len(rollouts) == 16
    with torch.no_grad():
        batch, tokens = trainer._pack(rollouts)
        output = trainer._forward(trainer.decoder, batch, tokens)
    assert len(tokens.kinds) > 16
    assert torch.allclose(output.logprobs, tokens.engine_logprobs, atol=1e-4)
    assert float(output.entropies.min()) >= 0


def test_rollouts_depend_on_seed_and_place_only(model_parts: ModelComponents, prompts: Path) -> None:
    rules = config(prompts)
    trainer = _trainer(rules, model_parts)
    first, again, other = (trainer.rollouts(consumed) for consumed in (0, 0, 1))
    assert [each.token_ids for each in first] == [each.token_ids for each in again]
    assert [each.token_ids for each in first] != [each.token_ids for each in other]
    for start in range(0, 16, 4):
        group = first[start : start + 4]
        assert len({each.prompt_token_ids for each in group}) == 1
        assert sum(each.advantage for each in group) == pytest.approx(0.0, abs=1e-5)


def test_the_reward_rises_and_the_initial_model_is_not_changed(
    model_parts: ModelComponents, prompts: Path, tmp_path: Path
) -> None:
    before = {name: tensor.clone() for name, tensor in model_parts.decoder.state_dict().items()}
    made = train_grpo(config(prompts, steps=14), model_parts, tmp_path / "run")
    assert made is not None and not made.training
    lines = logged_metrics(tmp_path / "run")
    rewards = [line["reward"] for line in lines]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.03
    assert rewards == [line["reward_brightness"] for line in lines]
    assert max(line["engine_logprob_difference"] for line in lines) < 1e-3
    assert lines[0]["clip_fraction"] == lines[0]["kl"] == 0.0
    assert all(line["completion_length"] == 7 for line in lines)
    for name, tensor in model_parts.decoder.state_dict().items():
        assert torch.equal(before[name], tensor), name


def test_anchors_hold_the_model(model_parts: ModelComponents, prompts: Path, tmp_path: Path) -> None:
    divergences, rewards = [], []
    for beta in (0.0, 4.0):
        rules = config(prompts, steps=8, anchors=(prompts,), num_anchors=8, anchor_beta=beta)
        train_grpo(rules, model_parts, tmp_path / str(beta))
        lines = logged_metrics(tmp_path / str(beta))
        assert lines[0]["anchor_kl"] == lines[0]["kl"] == 0.0
        divergences.append(lines[-1]["anchor_kl"])
        rewards.append(lines[-1]["reward"])
    assert divergences[1] < divergences[0] / 2
    assert all(0 < reward < 1 for reward in rewards)


def test_products_in_bfloat16_leave_the_rollouts_in_float32(
    model_parts: ModelComponents, prompts: Path, tmp_path: Path
) -> None:
    train_grpo(config(prompts, steps=1, compute=ComputeConfig(precision="bfloat16")), model_parts, tmp_path / "run")
    (line,) = logged_metrics(tmp_path / "run")
    assert 1e-4 < line["engine_logprob_difference"] < 1.0


def test_a_run_killed_twice_ends_in_the_same_bits(model_parts: ModelComponents, prompts: Path, tmp_path: Path) -> None:
    rules = config(prompts, beta=0.05, num_iterations=2, anchors=(prompts,), num_anchors=3)
    expected = train_grpo(rules, model_parts, tmp_path / "undisturbed")
    for steps in (1, 3):
        with pytest.raises(KilledError):
            train_grpo(rules, model_parts, tmp_path / "killed", dies_after(steps))
    assert_same_weights(train_grpo(rules, model_parts, tmp_path / "killed"), expected)
    assert logged_metrics(tmp_path / "killed") == logged_metrics(tmp_path / "undisturbed")


def test_a_step_needs_nothing_that_apple_gpus_lack(
    model_parts: ModelComponents, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with apple_gpu(monkeypatch) as found:
        train_grpo(config(prompts, steps=1, beta=0.05), model_parts, tmp_path / "run")
    on_the_host = {"rl/grpo.py:_metrics float64", "train/distributed.py:sum_numbers_later float64"}
    assert found <= on_the_host


def test_two_ranks_tune_as_one(model_parts: ModelComponents, tmp_path: Path) -> None:
    save_model(tmp_path / "model", model_parts)
    write_prompts(tmp_path / "prompts.jsonl")
    tune_rank(tmp_path)
    (port,) = free_ports(1)
    run_ranks(2, tune_rank, tmp_path, port=port, logs=tmp_path)
    one, two = (torch.load(tmp_path / size / "tuned.pt", weights_only=True) for size in "12")
    for name, tensor in one.items():
        assert torch.allclose(tensor, two[name], atol=1e-4), name
    for alone, shared in zip(*(logged_metrics(tmp_path / size) for size in "12"), strict=True):
        for key in ("reward", "loss", "kl", "anchor_kl", "entropy", "grad_norm"):
            assert shared[key] == pytest.approx(alone[key], abs=1e-4), key


def test_a_collapse_of_the_entropy_stops_the_run(model_parts: ModelComponents, prompts: Path, tmp_path: Path) -> None:
    rules = config(
        prompts, modality="text", reward_funcs=("tests.rl.runs:nonsense",), min_entropy_fraction=0.9, steps=60
    )
    with pytest.raises(TrainingError) as stopped:
        train_grpo(rules, model_parts, tmp_path / "run")
    message = str(stopped.value)
    assert "the entropy is" in message
    assert message.endswith(
        "expected at least grpo.min_entropy_fraction=0.9 of that. The reward may pay for nonsense: read some "
        "completions, then raise grpo.beta or lower optimizer.lr and start over."
    )


def test_too_large_a_divergence_stops_the_run(model_parts: ModelComponents, prompts: Path, tmp_path: Path) -> None:
    rules = config(prompts, beta=1e-6, max_kl=1e-4, steps=30)
    with pytest.raises(TrainingError) as stopped:
        train_grpo(rules, model_parts, tmp_path / "run")
    assert "the KL divergence from the initial model is" in str(stopped.value)
    assert "expected at most grpo.max_kl=0.0001. The reward may pay" in str(stopped.value)


def _trainer(rules: GRPOTrainConfig, parts: ModelComponents) -> GRPOTrainer:
    """Return a trainer of a copy of the decoder."""
    decoder = Decoder(parts.decoder.config)
    decoder.load_state_dict(parts.decoder.state_dict())
    return GRPOTrainer(decoder, read_rollout_prompts(rules, parts), rules, parts.tokenizers)
