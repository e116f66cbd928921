"""Training of a downward head: order of tokens, loss as the engine computes it, and runs."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from calumma.batches.batch import Batch
from calumma.checkpoints.model_folder import DOWNWARD_HEAD_FILE, ModelComponents, load_model, save_model
from calumma.errors import CheckpointError, ConfigError
from calumma.model.decoder import Decoder
from calumma.model.downward_head import DownwardHead
from calumma.train.config import ParallelConfig
from calumma.train.config_finetune import TrainableConfig
from calumma.train.downward_training import combine_neighbors, diagonal_batch
from calumma.train.finetuning import finetune
from tests.generate.test_diagonal import COUNT, SIDE, V, head_inputs, headed  # noqa: F401  (a fixture)
from tests.train.runs import KilledError, assert_same_weights, dies_after
from tests.train.test_finetuning import config


def batch_of(sequence: list[int], loss_from: int = 0) -> Batch:
    """Return one packed row of one sequence."""
    ids = np.array([sequence])
    positions = np.arange(len(sequence) - 1)[None]
    mask = positions >= loss_from
    return Batch(ids[:, :-1], ids[:, 1:], mask, np.zeros_like(positions), positions)


def test_an_image_is_put_into_the_order_of_its_diagonals() -> None:
    codes = [V.code_to_id(cell) for cell in range(COUNT)]
    sequence = [0, 30, V.begin_image, *codes, V.end_image, 31, 1]
    batch, neighbors = diagonal_batch(batch_of(sequence, loss_from=2), V, every=1)
    order = [0, 1, 4, 2, 5, 8, 3, 6, 9, 12, 7, 10, 13, 11, 14, 15]
    ordered = [codes[cell] for cell in order]
    assert batch.input_ids[0].tolist() == [0, 30, V.begin_image, *ordered, V.end_image, 31]
    assert batch.labels[0].tolist() == [30, V.begin_image, *ordered, V.end_image, 31, 1]
    assert batch.position_ids[0].tolist() == [0, 1, 2, *(3 + cell for cell in order), 19, 20]
    assert neighbors.is_code[0].tolist() == [False] * 2 + [True] * COUNT + [False] * 3
    for label, cell in enumerate(order, start=2):
        left, above = int(neighbors.left[0, label]), int(neighbors.above[0, label])
        assert bool(neighbors.has_above[0, label]) == (cell >= SIDE)
        assert bool(neighbors.has_left[0, label]) == (cell == 0 or cell % SIDE > 0)
        assert cell % SIDE == 0 or batch.input_ids[0, left] == codes[cell - 1]
        assert cell < SIDE or batch.input_ids[0, above] == codes[cell - SIDE]
    unchanged = diagonal_batch(batch_of([0, V.begin_image, *codes[:7]]), V, every=1)[1]  # not complete
    assert not unchanged.is_code.any()
    two = [0, V.begin_image, *codes, V.end_image, V.begin_image, *codes, V.end_image, 1]
    assert int(diagonal_batch(batch_of(two), V, every=2)[1].is_code.sum()) == COUNT


def test_the_loss_is_that_of_generation(headed: Decoder) -> None:  # noqa: F811
    codes = {cell: V.code_to_id((5 * cell) % 16) for cell in range(COUNT)}
    context = [0, 30, 31, V.begin_image]
    batch, neighbors = diagonal_batch(batch_of([*context, *codes.values(), V.end_image, 1]), V, every=1)
    ids, positions = (torch.from_numpy(each) for each in (batch.input_ids, batch.position_ids))
    hidden = headed(ids, position_ids=positions, head_fn=headed.norm)
    found = combine_neighbors(hidden, neighbors, headed.downward_head)[0]
    labels = batch.labels[0].tolist()
    for cell in (0, 1, 4, 6, 9, 15):
        before = {other: id_ for other, id_ in codes.items() if sum(divmod(other, SIDE)) < sum(divmod(cell, SIDE))}
        index = next(i for i in range(3, 3 + COUNT) if batch.position_ids[0, i + 1] == 4 + cell)
        assert labels[index] == codes[cell]
        torch.testing.assert_close(found[index], head_inputs(headed, context, before, [cell])[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found[-1], hidden[0, -1])


@pytest.mark.parametrize("mode", ["head", "all"])
def test_a_killed_run_ends_in_the_same_head(
    shards: Path, model_parts: ModelComponents, tmp_path: Path, mode: str
) -> None:
    decoder, vocabulary = model_parts.decoder, model_parts.tokenizers.text.vocabulary
    run = replace(config(shards), downward_head=mode, weights={"pairs": 1.0}, steps=4, dropout=0.0)
    expected = finetune(run, decoder, vocabulary, tmp_path / "undisturbed")
    with pytest.raises(KilledError):
        finetune(run, decoder, vocabulary, tmp_path / "killed", dies_after(3))
    tuned = finetune(run, decoder, vocabulary, tmp_path / "killed")
    assert tuned is not None and tuned.downward_head is not None
    assert_same_weights(tuned, expected)
    initial = dict(DownwardHead(decoder.config.model_dim).initial_weights(run.seed))
    assert not torch.equal(tuned.downward_head.both.weight, initial["both.weight"])
    is_frozen = all(torch.equal(tensor, tuned.state_dict()[name]) for name, tensor in decoder.state_dict().items())
    assert is_frozen == (mode == "head")
    save_model(tmp_path / "model", replace(model_parts, decoder=tuned))
    loaded = load_model(tmp_path / "model").decoder
    assert_same_weights(loaded, tuned)
    again = finetune(replace(run, downward_head="none"), loaded, vocabulary, tmp_path / "plain")
    assert again is not None and again.downward_head is None  # it would not fit the new weights
    save_model(tmp_path / "model", model_parts)
    assert not (tmp_path / "model" / DOWNWARD_HEAD_FILE).exists()


def test_a_head_of_another_width_is_refused(model_parts: ModelComponents, tmp_path: Path) -> None:
    decoder = copy.deepcopy(model_parts.decoder)
    decoder.downward_head = DownwardHead(8)
    save_model(tmp_path, replace(model_parts, decoder=decoder))
    with pytest.raises(CheckpointError) as refused:
        load_model(tmp_path)
    assert str(refused.value) == (
        f"{tmp_path / DOWNWARD_HEAD_FILE} has other tensors than a downward head of width 32; expected gate.weight, "
        "both.weight, output.weight. Delete it, or train it again."
    )


def test_a_downward_head_takes_plain_training(shards: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        replace(
            config(shards),
            downward_head="head",
            trainable=TrainableConfig(blocks="lora"),
            parallel=ParallelConfig(tensor_parallel=2),
        )
    assert str(refused.value) == (
        "downward_head='head' with trainable.blocks='lora', parallel.tensor_parallel=2 and "
        "parallel.context_parallel=1; expected 'all', 1 and 1. Leave them out."
    )
