"""Preference tuning (DPO) on mixed-modal answers, with the model that the run starts from as
reference.

Source: Direct Preference Optimization (arXiv:2305.18290), equation 7. Text ids and image codes
count alike: an answer's log-probability is the sum over all its ids, end of sequence among them.
Shapes: P pairs, S = 2 P sequences (chosen, rejected, chosen, ...), N counted places.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from calumma.batches.packing import MaskedSequence
from calumma.checkpoints.model_folder import ModelComponents
from calumma.checkpoints.training_checkpoint import (
    RetentionPolicy,
    SavedCheckpoint,
    newest_checkpoint,
)
from calumma.documents.preferences import read_preferences
from calumma.errors import ConfigError
from calumma.files import read_json, write_json
from calumma.model.decoder import Decoder
from calumma.runtime import peak_memory_bytes, resolve_device
from calumma.shards.encode import DocumentEncoder
from calumma.train.adapters import (
    apply_adapters,
    initial_adapter_weights,
    merge_adapters,
    save_adapter,
)
from calumma.train.compile_and_recompute import apply_recompute_and_compile, compute_dtype
from calumma.train.config_dpo import DPOConfig, DPOTrainConfig
from calumma.train.decoder_trainer import decoder_state, restore_decoder
from calumma.train.distributed import init_distributed
from calumma.train.dpo_data import PreferencePairs, encode_pairs, pack_pairs
from calumma.train.finetune import weights_fingerprint
from calumma.train.logprobs import token_logprobs
from calumma.train.optimizer import make_optimizers, set_lr
from calumma.train.parallelize import (
    RankLayout,
    Ranks,
    build_sharded_decoder,
    clip_grad_norm,
    gather_full_decoder,
)
from calumma.train.pretrain import course_fingerprint
from calumma.train.schedule import lr_factor
from calumma.train.train_step import ALL, autocast_context, seed_step
from calumma.train.training_loop import DataPosition, LoopConfig, Progress, run_loop

REFERENCE_NAME = "reference.json"


class DPOLoss(NamedTuple):
    """What some pairs came to; all [P]."""

    loss: Tensor
    """In nats, with a gradient to the answers' log-probabilities."""

    margin: Tensor
    """By how much the chosen answer's reward is above the rejected one's; no gradient."""


def dpo_loss(told: Tensor, reference: Tensor, lengths: Tensor, config: DPOConfig) -> DPOLoss:
    """The loss of pairs.

    Args:
        told: [S] the answers' log-probabilities by the model that learns.
        reference: [S] those by the reference.
        lengths: [S] ids of each answer.
        config: beta, doubt, and the weight of the chosen answers themselves.
    """
    chosen, rejected = (told - reference).view(-1, 2).unbind(1)
    margin = config.beta * (chosen - rejected)
    loss = -(1 - config.label_smoothing) * F.logsigmoid(
        margin
    ) - config.label_smoothing * F.logsigmoid(-margin)
    own = -(told / lengths.clamp(min=1)).view(-1, 2)[:, 0]
    return DPOLoss(loss + config.sft_weight * own, margin.detach())


@dataclass
class DPOTrainer:
    """A `Learner` of pairs."""

    decoder: Decoder
    pairs: PreferencePairs
    config: DPOTrainConfig
    pad: int
    place: RankLayout = ALL

    def __post_init__(self) -> None:
        self.position = DataPosition()
        self.device = self.decoder.embedding.weight.device
        self.dtype = compute_dtype(self.config.compute, self.device)
        apply_recompute_and_compile(self.decoder, self.config.compute)
        self.optimizers = make_optimizers(self.decoder, self.config.optimizer)
        self.reference = torch.zeros(len(self.pairs.items), 2)
        """[P, 2] log-probabilities of chosen and rejected answers by the reference."""

    def answer_logprobs(
        self, pairs: Sequence[tuple[MaskedSequence, MaskedSequence]]
    ) -> tuple[Tensor, Tensor, int]:
        """The log-probabilities of some pairs' answers, [S]; how many ids each has, [S]; and how
        many ids were read."""
        laid = pack_pairs(pairs, self.config.seq_len, self.pad)
        micro = laid.batch.to(self.device)
        owners = torch.from_numpy(laid.sequence_indices).to(self.device)

        def read(stream: Tensor) -> Tensor:
            hidden = self.decoder.norm(stream)[micro.loss_mask]
            return token_logprobs(hidden, self.decoder.head, micro.labels[micro.loss_mask])

        with autocast_context(self.dtype, self.device, self.place):
            each = self.decoder(
                micro.input_ids,
                document_ids=micro.document_ids,
                position_ids=micro.position_ids,
                head_fn=read,
            )
        zeros = each.new_zeros(laid.num_sequences)
        lengths = zeros.index_add(0, owners, torch.ones_like(each))
        num_ids = int((laid.batch.document_ids >= 0).sum())
        return zeros.index_add(0, owners, each), lengths.detach(), num_ids

    @torch.no_grad()
    def reference_logprobs(self) -> Tensor:
        """[P, 2] the answers' log-probabilities by the decoder as it is, on all ranks together."""
        self.decoder.eval()
        told = torch.zeros_like(self.reference, device=self.device)
        size, count = self.place.dist.size, self.config.micro_batch_size
        # All ranks go through the decoder equally often: the last ones may judge pairs again.
        whole = -(-len(told) // (size * count)) * size * count
        for start in range(self.place.dist.rank * count, whole, size * count):
            numbers = [n % len(told) for n in range(start, start + count)]
            sums, _, _ = self.answer_logprobs([self.pairs.items[n] for n in numbers])
            if start < len(told):
                kept = len(numbers[: len(told) - start])
                told[start : start + kept] = sums.view(-1, 2)[:kept]
        return self.place.dist.sum(told).cpu()

    def step(self, number: int) -> dict[str, float]:
        """Learn from the step's pairs."""
        config, world = self.config, self.place.dist
        seed_step(config.seed, number, self.place)
        self.decoder.train()
        share = lr_factor(number, config.steps, config.schedule) * self.position.lr_factor
        set_lr(self.optimizers, share)
        numbers = self.pairs.step_indices(
            self.position.batches_consumed, config.batch_size, config.seed
        )
        ours = numbers[world.rank :: world.size]
        seen = torch.zeros(6, dtype=torch.float64, device=self.device)
        for start in range(0, len(ours), config.micro_batch_size):
            seen += self._learn(ours[start : start + config.micro_batch_size])
        most = config.optimizer.max_grad_norm
        norm = float(clip_grad_norm(self.decoder.named_parameters(), most)[0])
        for optimizer in self.optimizers:
            if math.isfinite(norm):
                optimizer.step()
            optimizer.zero_grad()
        self.position = replace(self.position, batches_consumed=self.position.batches_consumed + 1)
        loss, right, margin, chosen, rejected, num_ids = world.sum(seen).tolist()
        return {
            "loss": loss,
            "reward_accuracy": right,
            "reward_margin": margin,
            "reward_chosen": chosen,
            "reward_rejected": rejected,
            "grad_norm": norm,
            "num_tokens": num_ids,
            "step_skipped": float(not math.isfinite(norm)),
            "lr": config.optimizer.lr * share,
            "peak_memory_bytes": peak_memory_bytes(self.device),
        }

    def _learn(self, numbers: Sequence[int]) -> Tensor:
        """Add the gradients of some pairs; gives what is told of them, [6]."""
        told, lengths, num_ids = self.answer_logprobs([self.pairs.items[n] for n in numbers])
        reference = self.reference[numbers].view(-1).to(self.device)
        found = dpo_loss(told, reference, lengths, self.config.dpo)
        count = self.config.batch_size
        (found.loss.sum() / count).backward()
        gains = (told.detach() - reference).view(-1, 2).mean(0) * len(numbers) / count
        right = (found.margin > 0).double() + (found.margin == 0).double() / 2
        sums = [found.loss.detach().sum() / count, right.sum() / count, found.margin.sum() / count]
        return torch.stack([*sums, *gains, torch.tensor(num_ids).to(told)]).double()

    def apply_rollback(self, number: int, course: DataPosition) -> None:
        """Before step `number`: pass over pairs until `course.drawn`, and take its rate."""
        self.position = course

    def state(self) -> dict[str, Any]:
        """Weights, what the optimizers remember of each, and how far the pairs are used."""
        return decoder_state(self.decoder, self.optimizers) | {"course": asdict(self.position)}

    def restore(self, saved: SavedCheckpoint) -> None:
        """Go back to a state of the same config, whatever ranks saved it."""
        self.position = DataPosition(
            **restore_decoder(saved, self.decoder, self.optimizers)["course"]
        )


def train_dpo(
    config: DPOTrainConfig,
    start: ModelComponents,
    run: Path,
    progress: Progress = lambda step, metrics: None,
) -> Decoder | None:
    """Make the chosen answers likelier and the rejected ones less; under torchrun ranks share it.

    The reference's log-probabilities are computed once and kept in the run's `reference.json`.

    Returns:
        The whole decoder, on the first rank; None on the others.

    Raises:
        ConfigError: there are no pairs, one is longer than a row, or ranks cannot share a step's.
        DocumentError: a line is no pair.
    """
    found = (pair for path in config.dpo.pairs for pair in read_preferences(path))
    encoder = DocumentEncoder(start.tokenizers)
    pairs = encode_pairs(found, encoder, config.seq_len)
    vocabulary = start.tokenizers.text.vocabulary
    change = partial(apply_adapters, config=config.trainable, vocabulary=vocabulary)
    fingerprint = course_fingerprint(config, pairs.fingerprint, weights_fingerprint(start.decoder))
    device = resolve_device(config.device)
    with init_distributed(device) as world:
        _require_equal_parts(config.batch_size, world.size)
        ranks = Ranks(world, device, config.parallel, compute_dtype(config.compute, device))
        decoder, place = build_sharded_decoder(
            replace(start.decoder.config, dropout=config.dropout),
            lambda made: chain(
                start.decoder.state_dict().items(),
                initial_adapter_weights(made, start.decoder, config.seed),
            ),
            ranks,
            change,
        )
        learner = DPOTrainer(decoder, pairs, config, vocabulary.pad, place)
        learner.reference = _reference(learner, run, fingerprint)
        loop = LoopConfig(
            steps=config.steps,
            save_every=config.checkpoint.interval,
            fingerprint=fingerprint,
            keep=RetentionPolicy(config.checkpoint.keep_latest, config.checkpoint.keep_every),
            beside=config.checkpoint.saves_async(device),
            watch=config.stability,
        )
        run_loop(learner, run, loop, progress, world)
        whole = gather_full_decoder(decoder, place, change)
    if whole is None:
        return None
    if not config.trainable.is_whole:
        save_adapter(run, whole, config.trainable)
    return merge_adapters(whole).eval()


def _require_equal_parts(pairs_per_step: int, ranks: int) -> None:
    if pairs_per_step % ranks:
        raise ConfigError(
            f"pairs_per_step={pairs_per_step} does not divide over {ranks} ranks; expected a "
            "multiple. Change --pairs-per-step, or start another number of ranks."
        )


def _reference(learner: DPOTrainer, run: Path, fingerprint: str) -> Tensor:
    """[P, 2] what the run keeps, or, where it keeps nothing yet, what the decoder says now."""
    path, world = run / REFERENCE_NAME, learner.place.dist
    newest_checkpoint(run, fingerprint)  # a folder of another run is refused, and left as it is
    kept = read_json(path) if path.is_file() else {}
    # All ranks look before the first one writes.
    world.barrier()
    if kept.get("fingerprint") == fingerprint:
        return torch.tensor(kept["logprobs"])
    told = learner.reference_logprobs()
    if world.is_main:
        write_json(path, {"fingerprint": fingerprint, "logprobs": told.tolist()})
    return told
