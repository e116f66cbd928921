"""DPO: the loss by hand, the reference computed once, killed runs."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from calumma.checkpoints.model_folder import ModelComponents
from calumma.documents.document import Image, Text
from calumma.documents.preferences import Preference, write_preferences
from calumma.errors import CheckpointError
from calumma.model.decoder import Decoder
from calumma.shards.encode import DocumentEncoder
from calumma.train import dpo
from calumma.train.config_dpo import DPOCheckpointConfig, DPOConfig, DPOOptimizerConfig, DPOTrainConfig
from calumma.train.config_finetune import FinetuneScheduleConfig, TrainableConfig
from calumma.train.dpo import DPOTrainer, dpo_loss, train_dpo
from calumma.train.dpo_data import encode_pairs
from tests.apple_gpu import apple_gpu
from tests.images import png
from tests.train.runs import KilledError, assert_same_weights, dies_after, logged_metrics

PAIRS = [
    Preference(
        id=str(number),
        prompt=(Text(f"draw a circle {number}"),),
        chosen=(Text("here:"), Image(data=png(number))),
        rejected=(Text("no" * (number + 1)),),
    )
    for number in range(4)
]


@pytest.fixture
def pairs_file(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    write_preferences(path, PAIRS)
    return path


def config(pairs: Path, **changes: object) -> DPOTrainConfig:
    made = DPOTrainConfig(
        model=Path("not read"),
        dpo=DPOConfig(pairs=(pairs,), beta=0.2),
        steps=6,
        checkpoint=DPOCheckpointConfig(interval=2),
        device="cpu",
        batch_size=2,
        seq_len=64,
        dropout=0.2,
        optimizer=DPOOptimizerConfig(lr=1e-3),
        schedule=FinetuneScheduleConfig(warmup_steps=1),
    )
    return replace(made, **changes)


def test_the_loss_of_a_pair_by_hand() -> None:
    # Gains of 2 and -1 nats over the reference, beta 0.5: a margin of 1.5.
    found = dpo_loss(
        torch.tensor([-3.0, -6.0]),
        torch.tensor([-5.0, -5.0]),
        torch.tensor([2.0, 3.0]),
        DPOConfig(pairs=(Path("p"),), beta=0.5),
    )
    assert found.margin.tolist() == [1.5]
    assert float(found.loss) == pytest.approx(math.log(1 + math.exp(-1.5)))


def test_label_smoothing_and_the_sft_loss_by_hand() -> None:
    rules = DPOConfig(pairs=(Path("p"),), beta=0.5, label_smoothing=0.25, sft_weight=2.0)
    logprobs, reference = torch.tensor([-3.0, -6.0]), torch.tensor([-5.0, -5.0])
    found = dpo_loss(logprobs, reference, torch.tensor([2.0, 3.0]), rules)
    right, wrong = math.log(1 + math.exp(-1.5)), math.log(1 + math.exp(1.5))
    assert float(found.loss) == pytest.approx(0.75 * right + 0.25 * wrong + 2.0 * 1.5)


def test_gradients_are_those_of_the_formula_on_whole_logits(
    model_parts: ModelComponents, decoder: Decoder, pairs_file: Path
) -> None:
    encoder = DocumentEncoder(model_parts.tokenizers)
    pairs = encode_pairs(PAIRS[:2], encoder, 64)
    dpo_config = config(pairs_file, batch_size=2, micro_batch_size=1, dropout=0.0)
    ours, direct = (_copy(decoder) for _ in range(2))
    trainer = DPOTrainer(ours, pairs, dpo_config, pad=1)
    trainer.reference = torch.tensor([[-20.0, -9.0], [-25.0, -8.0]])
    ours.eval()
    for number in range(2):
        trainer._accumulate_gradients([number])

    losses = []
    for items, (chosen, rejected) in zip(pairs.items, trainer.reference.tolist(), strict=True):
        sums = [_answer(direct, *item) for item in items]
        margin = 0.2 * ((sums[0] - chosen) - (sums[1] - rejected))
        losses.append(-torch.log(torch.sigmoid(margin)))
    (sum(losses) / 2).backward()
    expected = dict(direct.named_parameters())
    for name, parameter in ours.named_parameters():
        assert torch.allclose(parameter.grad, expected[name].grad, atol=1e-5), name


def _copy(decoder: Decoder) -> Decoder:
    made = Decoder(replace(decoder.config, dropout=0.0))
    made.load_state_dict(decoder.state_dict())
    return made


def _answer(decoder: Decoder, ids: object, mask: object) -> torch.Tensor:
    """Compute the log-probability of an answer by its definition, without packing."""
    token_ids, is_answer = torch.as_tensor(ids), torch.as_tensor(mask)
    logprobs = decoder(token_ids[None, :-1])[0].log_softmax(dim=-1)
    picked = logprobs.gather(1, token_ids[1:, None]).squeeze(1)
    return picked[is_answer[1:]].sum()


def test_at_first_no_answer_is_preferred_and_then_the_chosen_ones_are(
    model_parts: ModelComponents, pairs_file: Path, tmp_path: Path
) -> None:
    before = {n: t.clone() for n, t in model_parts.decoder.state_dict().items()}
    made = train_dpo(config(pairs_file, dropout=0.0), model_parts, tmp_path / "run")
    first, *_, last = logged_metrics(tmp_path / "run")
    rewards = last["reward_chosen"] - last["reward_rejected"]
    assert rewards == pytest.approx(last["reward_margin"], rel=1e-4)
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert abs(first["reward_margin"]) < 1e-4 and last["reward_margin"] > 0.1
    assert last["loss"] < first["loss"] and last["reward_accuracy"] == 1.0
    assert made is not None and not made.training
    for name, tensor in model_parts.decoder.state_dict().items():
        assert torch.equal(before[name], tensor), name


def test_a_killed_run_ends_in_the_same_bits_and_computes_the_reference_once(
    model_parts: ModelComponents, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = config(pairs_file)
    expected = train_dpo(rules, model_parts, tmp_path / "undisturbed")
    with pytest.raises(KilledError):
        train_dpo(rules, model_parts, tmp_path / "killed", dies_after(3))
    monkeypatch.setattr(dpo.DPOTrainer, "reference_logprobs", None)
    assert_same_weights(train_dpo(rules, model_parts, tmp_path / "killed"), expected)
    assert logged_metrics(tmp_path / "killed") == logged_metrics(tmp_path / "undisturbed")


def test_a_step_needs_nothing_that_apple_gpus_lack(
    model_parts: ModelComponents, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with apple_gpu(monkeypatch) as found:
        train_dpo(config(pairs_file, steps=1), model_parts, tmp_path / "run")
    assert found <= {"train/distributed.py:sum_numbers_later float64"}


def test_the_micro_batch_size_changes_nothing_but_rounding(
    model_parts: ModelComponents, pairs_file: Path, tmp_path: Path
) -> None:
    one, four = (
        train_dpo(
            config(pairs_file, micro_batch_size=count, steps=2, batch_size=4, dropout=0.0),
            model_parts,
            tmp_path / f"{count}",
        )
        for count in (1, 4)
    )
    assert one is not None and four is not None
    for name, tensor in one.state_dict().items():
        assert torch.allclose(tensor, four.state_dict()[name], atol=1e-5), name


def test_adapters_are_trained_and_merged(model_parts: ModelComponents, pairs_file: Path, tmp_path: Path) -> None:
    rules = config(pairs_file, trainable=TrainableConfig(blocks="lora", lora_rank=2, embeddings="none"))
    made = train_dpo(rules, model_parts, tmp_path / "run")
    start = model_parts.decoder.state_dict()
    assert made is not None
    assert made.state_dict().keys() == start.keys()
    assert torch.equal(made.embedding.weight, start["embedding.weight"])
    changed = "blocks.0.attention.query.weight"
    assert not torch.equal(made.state_dict()[changed], start[changed])
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()


def test_other_pairs_are_another_run_and_the_reference_stays(
    model_parts: ModelComponents, pairs_file: Path, tmp_path: Path
) -> None:
    train_dpo(config(pairs_file, steps=2), model_parts, tmp_path / "run")
    kept = (tmp_path / "run" / "reference.json").read_text()
    assert len(json.loads(kept)["logprobs"]) == len(PAIRS)
    write_preferences(pairs_file, PAIRS[:2])
    with pytest.raises(CheckpointError, match="was written by a run with pairs="):
        train_dpo(config(pairs_file, steps=2), model_parts, tmp_path / "run")
    assert (tmp_path / "run" / "reference.json").read_text() == kept
