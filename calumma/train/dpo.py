"""Direct preference optimization (DPO) on mixed-modal answers.

The reference model is the one that the run starts from. Text tokens and image codes count alike: an
answer's log-probability is the sum over all its tokens, end of sequence included. Source:
arXiv:2305.18290, equation 7.

Shapes: P pairs, S = 2 P sequences (chosen, rejected, chosen, ...), N tokens in the loss mask.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from calumma.batches.sampler import step_indices
from calumma.checkpoints.model_folder import ModelComponents
from calumma.checkpoints.training_checkpoint import RunIdentity, SavedCheckpoint, newest_checkpoint
from calumma.documents.preferences import read_preferences
from calumma.files import read_json, write_json
from calumma.model.decoder import Decoder
from calumma.runtime import peak_memory_bytes, resolve_device, sum_dtype
from calumma.shards.encode import DocumentEncoder
from calumma.tokens.folder import Tokenizers
from calumma.train.adapters import apply_adapters, merge_adapters, require_trainable, save_adapter
from calumma.train.compile_and_recompute import apply_recompute_and_compile, autocast_context, compute_dtype
from calumma.train.config import run_identity
from calumma.train.config_dpo import DPOConfig, DPOTrainConfig
from calumma.train.decoder_trainer import seed_step
from calumma.train.distributed import init_distributed, require_divisible_batch
from calumma.train.dpo_data import Pair, PreferencePairs, encode_pairs, pack_sequences
from calumma.train.finetuning import tuned_weights, weights_fingerprint
from calumma.train.loss import target_logprobs
from calumma.train.optimizer import apply_gradients, decoder_state, make_optimizers, restore_decoder, set_lr
from calumma.train.parallelize import (
    SINGLE_RANK,
    RankLayout,
    build_sharded_decoder,
    clip_grad_norm,
    fsdp_on_one_rank,
    gather_full_decoder,
    set_requires_all_reduce,
)
from calumma.train.step_metrics import DeferredMetrics, DeferredNumbers, StepMetrics
from calumma.train.training_loop import DataPosition, TrainCallbacks, Trainer, run_loop

REFERENCE_NAME = "reference.json"


class DPOLoss(NamedTuple):
    """Losses and reward margins of some pairs, [P]."""

    loss: Tensor
    """In nats, with gradients to the log-probabilities of the answers."""

    margin: Tensor
    """Reward of the chosen answer minus that of the rejected one, without gradient."""


def dpo_loss(logprobs: Tensor, reference: Tensor, lengths: Tensor, config: DPOConfig) -> DPOLoss:
    """Compute the loss of each pair.

    Args:
        logprobs: [S] log-probabilities of the answers by the trained model.
        reference: [S] those by the reference model.
        lengths: [S] tokens of each answer.
        config: beta, label smoothing and the weight of the chosen answers' own loss.
    """
    chosen, rejected = (logprobs - reference).view(-1, 2).unbind(1)
    margin = config.beta * (chosen - rejected)
    smoothing = config.label_smoothing
    loss = -(1 - smoothing) * F.logsigmoid(margin) - smoothing * F.logsigmoid(-margin)
    sft_loss = -(logprobs / lengths.clamp(min=1)).view(-1, 2)[:, 0]
    return DPOLoss(loss + config.sft_weight * sft_loss, margin.detach())


class DPOTrainer(Trainer):
    """A `Trainer` of a decoder on preference pairs."""

    def __init__(
        self,
        decoder: Decoder,
        pairs: PreferencePairs,
        config: DPOTrainConfig,
        pad: int,
        layout: RankLayout = SINGLE_RANK,
    ) -> None:
        """Prepare a decoder, sharded as `layout` says."""
        self.decoder, self.pairs, self.config, self.pad = decoder, pairs, config, pad
        self.layout = layout
        self.device = decoder.embedding.weight.device
        apply_recompute_and_compile(decoder, config.compute)
        self.optimizers = make_optimizers(decoder, config.optimizer)
        self.reference = torch.zeros(len(pairs.items), 2)
        """[P, 2] log-probabilities of chosen and rejected answers by the reference model."""

    def answer_logprobs(self, pairs: Sequence[Pair]) -> tuple[Tensor, Tensor, int]:
        """Compute log-probabilities [S] and lengths [S] of the answers, and the tokens read."""
        sequences = [sequence for pair in pairs for sequence in pair]
        packed = pack_sequences(sequences, self.config.seq_len, self.pad)
        batch = packed.batch.to(self.device)
        indices = torch.from_numpy(packed.sequence_indices).to(self.device)

        def head_fn(stream: Tensor) -> Tensor:
            hidden = self.decoder.norm(stream)[batch.loss_mask]
            return target_logprobs(hidden, self.decoder.head, batch.labels[batch.loss_mask])

        with autocast_context(self.device, self.layout):
            logprobs = self.decoder(
                batch.input_ids, document_ids=batch.document_ids, position_ids=batch.position_ids, head_fn=head_fn
            )
        zeros = logprobs.new_zeros(packed.num_sequences)
        lengths = zeros.index_add(0, indices, torch.ones_like(logprobs))
        num_tokens = int((packed.batch.document_ids >= 0).sum())
        return zeros.index_add(0, indices, logprobs), lengths.detach(), num_tokens

    @torch.no_grad()
    def reference_logprobs(self) -> Tensor:
        """Compute [P, 2] log-probabilities of all answers by the present decoder, on all ranks."""
        self.decoder.eval()
        logprobs = torch.zeros_like(self.reference, device=self.device)
        dist, count = self.layout.dist, self.config.micro_batch_size
        num_pairs = len(logprobs)
        # All ranks run the decoder equally often: the last ones may repeat pairs.
        end = -(-num_pairs // (dist.size * count)) * dist.size * count
        for start in range(dist.rank * count, end, dist.size * count):
            indices = [i % num_pairs for i in range(start, start + count)]
            sums, _, _ = self.answer_logprobs([self.pairs.items[i] for i in indices])
            if start < num_pairs:
                kept = min(count, num_pairs - start)
                logprobs[start : start + kept] = sums.view(-1, 2)[:kept]
        return dist.sum(logprobs).cpu()

    def step(self, number: int) -> DeferredMetrics:
        """Launch one optimizer step."""
        config, dist = self.config, self.layout.dist
        seed_step(config.seed, number, self.layout)
        self.decoder.train()
        factor = config.schedule.lr_factor(number, config.steps) * self.position.lr_factor
        set_lr(self.optimizers, factor)
        consumed = self.position.batches_consumed
        indices = step_indices(consumed, config.batch_size, len(self.pairs.items), config.seed)
        indices = indices[dist.rank :: dist.size]
        dtype = sum_dtype(self.device)
        sums = torch.zeros(6, dtype=dtype, device=self.device)
        for start in range(0, len(indices), config.micro_batch_size):
            end = start + config.micro_batch_size
            set_requires_all_reduce(self.decoder, end >= len(indices))
            sums += self._accumulate_gradients(indices[start:end])
        norm, _ = clip_grad_norm(self.decoder.named_parameters(), config.optimizer.max_grad_norm)
        numbers = DeferredNumbers(torch.cat([norm[None].to(dtype), dist.sum(sums)]))
        apply_gradients(self.optimizers, norm)
        self.position = replace(self.position, batches_consumed=consumed + 1)

        def read() -> StepMetrics:
            grad_norm, loss, accuracy, margin, chosen, rejected, num_tokens = numbers.read()
            return StepMetrics(
                loss=loss,
                grad_norm=grad_norm,
                lr=config.optimizer.lr * factor,
                num_tokens=int(num_tokens),
                step_skipped=int(not math.isfinite(grad_norm)),
                peak_memory_bytes=peak_memory_bytes(self.device),
                extra={
                    "reward_accuracy": accuracy,
                    "reward_margin": margin,
                    "reward_chosen": config.dpo.beta * chosen,
                    "reward_rejected": config.dpo.beta * rejected,
                },
            )

        return DeferredMetrics(read)

    def _accumulate_gradients(self, indices: Sequence[int]) -> Tensor:
        """Add the gradients of some pairs; return their sums of metrics, [6]."""
        logprobs, lengths, num_tokens = self.answer_logprobs([self.pairs.items[i] for i in indices])
        reference = self.reference[indices].view(-1).to(self.device)
        result = dpo_loss(logprobs, reference, lengths, self.config.dpo)
        loss, margin, count = result.loss, result.margin, self.config.batch_size
        (loss.sum() / count).backward()
        gains = (logprobs.detach() - reference).view(-1, 2).mean(0) * len(indices) / count
        dtype = sum_dtype(self.device)
        correct = (margin > 0).to(dtype) + (margin == 0).to(dtype) / 2
        sums = [loss.detach().sum() / count, correct.sum() / count, margin.sum() / count]
        return torch.stack([*sums, *gains, torch.tensor(num_tokens).to(logprobs)]).to(dtype)

    def state(self) -> dict[str, Any]:
        """Return weights, optimizer state and data position."""
        return decoder_state(self.decoder, self.optimizers) | {"position": asdict(self.position)}

    def restore(self, saved: SavedCheckpoint) -> None:
        """Load a state that `state` returned, on any number of ranks."""
        state = restore_decoder(saved, self.decoder, self.optimizers)
        self.position = DataPosition(**state["position"])


def train_dpo(
    config: DPOTrainConfig, start: ModelComponents, run: Path, callbacks: TrainCallbacks | None = None
) -> Decoder | None:
    """Train a model on preference pairs, or resume; under torchrun the ranks share it.

    The log-probabilities of the reference model are computed once and kept in `reference.json`.
    The full decoder is returned on rank 0, None on the others.

    Raises:
        ConfigError: there are no pairs, one is longer than a row, or the batch does not divide.
        DocumentError: a line is not a pair.
    """
    require_trainable(config.trainable, start.decoder)
    pairs = read_pairs(config, start.tokenizers)
    vocabulary = start.tokenizers.text.vocabulary
    transform = partial(apply_adapters, config=config.trainable, vocabulary=vocabulary)
    identity = run_identity(config, pairs=pairs.fingerprint, model=weights_fingerprint(start.decoder))
    device = resolve_device(config.device)
    single = fsdp_on_one_rank(device, config.optimizer)
    with init_distributed(device, run, config.parallel.timeout_seconds, groups_one_rank=single) as dist:
        require_divisible_batch("batch_size", config.batch_size, dist.size)
        decoder, layout = build_sharded_decoder(
            replace(start.decoder.config, dropout=config.dropout),
            lambda made: tuned_weights(made, start.decoder, config.seed),
            transform,
            dist=dist,
            device=device,
            parallel=config.parallel,
            dtype=compute_dtype(config.compute, device),
        )
        trainer = DPOTrainer(decoder, pairs, config, vocabulary.pad, layout)
        trainer.reference = _load_or_compute_reference(trainer, run, identity)
        run_loop(trainer, run, config, identity, callbacks, dist)
        full = gather_full_decoder(decoder, layout, transform)
    if full is None:
        return None
    if not config.trainable.trains_all:
        save_adapter(run, full, config.model)
    return merge_adapters(full).eval()


def read_pairs(config: DPOTrainConfig, tokenizers: Tokenizers) -> PreferencePairs:
    """Read and tokenize the pairs of a config; raises as `encode_pairs` does."""
    preferences = (pair for path in config.dpo.pairs for pair in read_preferences(path))
    return encode_pairs(preferences, DocumentEncoder(tokenizers), config.seq_len)


def _load_or_compute_reference(trainer: DPOTrainer, run: Path, identity: RunIdentity) -> Tensor:
    """Return [P, 2] the stored log-probabilities, or compute them with the initial decoder."""
    path, dist = run / REFERENCE_NAME, trainer.layout.dist
    newest_checkpoint(run, identity)  # refuses the folder of another run before writing to it
    stored = read_json(path) if path.is_file() else {}
    dist.barrier()  # all ranks have looked before rank 0 writes
    if stored.get("identity") == identity:
        return torch.tensor(stored["logprobs"])
    logprobs = trainer.reference_logprobs()
    if dist.is_main:
        write_json(path, {"identity": identity, "logprobs": logprobs.tolist()})
    return logprobs
