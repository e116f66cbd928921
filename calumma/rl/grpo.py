"""Group relative policy optimization (GRPO) on mixed-modal completions.

A step generates completions of some prompts with the present weights, scores them, and moves the
model towards those that are better than the mean of their prompt. Text tokens and image codes count
alike, each kind with its weight; a token that the grammar forced has no part in it.

Sources: GRPO (arXiv:2402.03300), the loss by token and the two-sided clipping of DAPO
(arXiv:2503.14476). Shapes: N tokens of completions.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from calumma.batches.batch import DeviceBatch
from calumma.batches.packing import MaskedSequence
from calumma.batches.sampler import step_indices
from calumma.checkpoints.model_folder import ModelComponents
from calumma.checkpoints.training_checkpoint import SavedCheckpoint
from calumma.errors import TrainingError
from calumma.model.decoder import Decoder
from calumma.rl.config_grpo import GRPOConfig, GRPOTrainConfig
from calumma.rl.policy import PolicyOutput, allowed_masks, policy_logprobs
from calumma.rl.rewards import load_reward
from calumma.rl.rollouts import Rollout, RolloutGenerator, RolloutPrompts, encode_rollout_prompts
from calumma.runtime import peak_memory_bytes, resolve_device, sum_dtype
from calumma.tokens.folder import Tokenizers
from calumma.train.compile_and_recompute import apply_recompute_and_compile, autocast_context, compute_dtype
from calumma.train.config import run_identity
from calumma.train.decoder_trainer import seed_step
from calumma.train.distributed import init_distributed, require_divisible_batch
from calumma.train.dpo_data import pack_sequences
from calumma.train.finetuning import weights_fingerprint
from calumma.train.optimizer import apply_gradients, decoder_state, make_optimizers, restore_decoder, set_lr
from calumma.train.parallelize import (
    SINGLE_RANK,
    RankLayout,
    build_sharded_decoder,
    clip_grad_norm,
    copy_full_decoder,
    fsdp_on_one_rank,
    gather_full_decoder,
    set_requires_all_reduce,
)
from calumma.train.step_metrics import DeferredMetrics, StepMetrics
from calumma.train.training_loop import DataPosition, TrainCallbacks, Trainer, run_loop

_TOKEN_METRICS = (
    *("loss", "kl", "clip_fraction", "entropy_text", "entropy_image", "num_text", "num_image"),
    *("anchor_kl", "num_anchor"),
)

_ADVICE = (
    "The reward may pay for nonsense: read some completions, then raise grpo.beta or lower optimizer.lr "
    "and start over."
)


class TokenTerms(NamedTuple):
    """Terms of the loss of each token, [N]."""

    loss: Tensor
    """Unweighted, with gradients."""

    kl: Tensor
    """Estimate of the KL divergence from the reference model, without gradients."""

    is_clipped: Tensor
    """Whether the clipped ratio decides the loss."""


def grpo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    engine_logprobs: Tensor,
    advantages: Tensor,
    reference: Tensor | None,
    config: GRPOConfig,
    is_anchor: Tensor | None = None,
) -> TokenTerms:
    """Compute the loss of each token.

    Args:
        logprobs: [N] by the model in training, with gradients.
        old_logprobs: [N] by the model that the step began with, in the trainer.
        engine_logprobs: [N] by the same model in the engine, guidance included.
        advantages: [N] of each token's completion.
        reference: [N] by the reference model; None without KL regularization.
        config: clipping, both betas and the cap of the importance weights.
        is_anchor: [N] bool, tokens of the reference model, whose divergence is the reverse; None for nowhere.
    """
    ratio = (logprobs - old_logprobs).exp()
    clipped = ratio.clamp(1 - config.epsilon, 1 + config.epsilon_high)
    importance = (old_logprobs - engine_logprobs).exp().clamp(max=config.importance_cap)
    gain = torch.minimum(ratio * advantages, clipped * advantages)
    loss = -importance * gain
    kl = torch.zeros_like(logprobs)
    if reference is not None:
        is_anchor = torch.zeros_like(logprobs, dtype=torch.bool) if is_anchor is None else is_anchor
        difference = torch.where(is_anchor, logprobs - reference, reference - logprobs)
        beta = torch.where(is_anchor, config.anchor_beta, config.beta)
        kl = difference.exp() - difference - 1
        loss = loss + beta * kl
    return TokenTerms(loss, kl.detach(), (clipped * advantages < ratio * advantages).detach())


class _Tokens(NamedTuple):
    """The sampled tokens of a micro-batch, [N], in the order of the packed rows."""

    kinds: Tensor
    engine_logprobs: Tensor
    advantages: Tensor
    is_image: Tensor
    is_anchor: Tensor
    weights: Tensor


class GRPOTrainer(Trainer):
    """A `Trainer` of a decoder by rewards."""

    def __init__(
        self,
        decoder: Decoder,
        prompts: RolloutPrompts,
        config: GRPOTrainConfig,
        tokenizers: Tokenizers,
        layout: RankLayout = SINGLE_RANK,
        reference: Decoder | None = None,
    ) -> None:
        """Prepare a decoder, sharded as `layout` says; a reference model for beta above 0 or anchors."""
        self.decoder, self.prompts, self.config, self.layout = decoder, prompts, config, layout
        self.device = decoder.embedding.weight.device
        self.vocabulary = tokenizers.text.vocabulary
        self.masks = allowed_masks(self.vocabulary).to(self.device)
        self.reference = reference
        rewards = [load_reward(name) for name in config.grpo.reward_funcs]
        self.generator = RolloutGenerator(config.grpo, tokenizers, rewards, decoder.config.max_seq_len)
        self.first_entropy = 0.0
        """Mean entropy of the first step, in nats; 0 before it."""

        apply_recompute_and_compile(decoder, config.compute)
        self.optimizers = make_optimizers(decoder, config.optimizer)

    def rollouts(self, consumed: int) -> list[Rollout]:
        """Generate this rank's completions of a step, anchors last."""
        config, dist = self.config, self.layout.dist
        indices = step_indices(consumed, config.num_prompts, len(self.prompts.items), config.seed)
        count = config.grpo.num_generations
        own = range(dist.rank, len(indices), dist.size)
        first = (config.seed * 1_000_003 + consumed) * config.batch_size
        seeds = [first + index * count + number for index in own for number in range(count)]
        decoder = copy_full_decoder(self.decoder, self.layout).eval()
        prompts = [self.prompts.items[indices[index]] for index in own]
        rollouts = self.generator.generate(decoder, prompts, seeds)
        if num_anchors := config.grpo.num_anchors:
            indices = step_indices(consumed, num_anchors, len(self.prompts.anchors), config.seed)
            anchors = {n: self.prompts.anchors[indices[n]] for n in range(dist.rank, num_anchors, dist.size)}
            assert self.reference is not None, "anchors need a reference model"
            initial = copy_full_decoder(self.reference, self.layout).eval()
            seed = (config.seed * 1_000_003 + consumed) * num_anchors
            rollouts += self.generator.generate_anchors(initial, anchors, seed)
        return rollouts

    def step(self, number: int) -> DeferredMetrics:
        """Generate, score, and update `num_iterations` times."""
        config, dist = self.config, self.layout.dist
        seed_step(config.seed, number, self.layout)
        consumed = self.position.batches_consumed
        rollouts = self.rollouts(consumed)
        self.decoder.eval()  # without dropout, so that the ratio of an unchanged model is 1
        factor = config.schedule.lr_factor(number, config.steps) * self.position.lr_factor
        set_lr(self.optimizers, factor)
        size = config.micro_batch_size
        micro_batches = [self._pack(rollouts[start : start + size]) for start in range(0, len(rollouts), size)]
        total_weight = dist.sum(torch.tensor(sum(map(self._weight, rollouts)), device=self.device)).clamp(min=1e-9)
        old: list[Tensor] = []
        difference = torch.zeros((), device=self.device)
        references = [self._reference_logprobs(batch, tokens) for batch, tokens in micro_batches]
        for iteration in range(config.grpo.num_iterations):
            sums = torch.zeros(len(_TOKEN_METRICS), dtype=sum_dtype(self.device), device=self.device)
            for index, (batch, tokens) in enumerate(micro_batches):
                set_requires_all_reduce(self.decoder, index == len(micro_batches) - 1)
                output = self._forward(self.decoder, batch, tokens)
                if iteration == 0:
                    old.append(output.logprobs.detach())
                    gap = (tokens.engine_logprobs - old[index]).masked_fill(tokens.is_anchor, 0.0)
                    difference = torch.maximum(difference, gap.abs().max())
                terms = grpo_loss(
                    output.logprobs,
                    old[index],
                    tokens.engine_logprobs,
                    tokens.advantages,
                    references[index],
                    config.grpo,
                    tokens.is_anchor,
                )
                ((tokens.weights * terms.loss).sum() / total_weight).backward()
                sums += _token_sums(terms, tokens, output)
            norm, _ = clip_grad_norm(self.decoder.named_parameters(), config.optimizer.max_grad_norm)
            apply_gradients(self.optimizers, norm)
        self.position = replace(self.position, batches_consumed=consumed + 1)
        metrics = dict(zip(_TOKEN_METRICS, dist.sum(sums).tolist(), strict=True))
        extra = self._metrics(metrics, rollouts) | {"engine_logprob_difference": float(dist.max(difference))}
        self._require_healthy(number, extra)
        grad_norm, num_tokens = float(norm), sum(metrics[f"num_{kind}"] for kind in ("text", "image", "anchor"))
        step_metrics = StepMetrics(
            loss=metrics["loss"] / float(total_weight),
            grad_norm=grad_norm,
            lr=config.optimizer.lr * factor,
            num_tokens=int(num_tokens),
            step_skipped=int(not math.isfinite(grad_norm)),
            peak_memory_bytes=peak_memory_bytes(self.device),
            extra=extra,
        )
        return DeferredMetrics(lambda: step_metrics)

    def _weight(self, rollout: Rollout) -> float:
        """Return the sum of the weights of a rollout's sampled tokens."""
        grpo, codes = self.config.grpo, self.vocabulary.codes
        sampled = [id_ for id_, kind in zip(rollout.token_ids, rollout.kinds, strict=True) if kind is not None]
        num_image = sum(id_ in codes for id_ in sampled)
        return grpo.image_weight * num_image + grpo.text_weight * (len(sampled) - num_image)

    def _pack(self, rollouts: Sequence[Rollout]) -> tuple[DeviceBatch, _Tokens]:
        """Pack some rollouts into a micro-batch, whose loss mask is the sampled tokens."""
        packed = pack_sequences([_masked(each) for each in rollouts], self.config.seq_len, self.vocabulary.pad)
        batch = packed.batch.to(self.device)
        return batch, self._tokens(rollouts, packed.sequence_indices, batch.labels[batch.loss_mask])

    def _forward(self, decoder: Decoder, batch: DeviceBatch, tokens: _Tokens) -> PolicyOutput:
        """Compute the log-probabilities of the sampled tokens of a micro-batch."""

        def head_fn(stream: Tensor) -> PolicyOutput:
            hidden = decoder.norm(stream)[batch.loss_mask]
            return policy_logprobs(hidden, decoder.head, batch.labels[batch.loss_mask], tokens.kinds, self.masks)

        with autocast_context(self.device, self.layout):
            output: PolicyOutput = decoder(
                batch.input_ids, document_ids=batch.document_ids, position_ids=batch.position_ids, head_fn=head_fn
            )
        return output

    def _tokens(self, rollouts: Sequence[Rollout], indices: np.ndarray, labels: Tensor) -> _Tokens:
        """Return the sampled tokens in the order of the packed labels, whose sequences are `indices`."""
        order = np.argsort(indices, kind="stable")  # sequence by sequence, as the rollouts are
        ranks = np.empty_like(order)
        ranks[order] = np.arange(len(order))
        sampled = [
            (int(kind), logprob, rollout.advantage, rollout.is_anchor)
            for rollout in rollouts
            for kind, logprob in zip(rollout.kinds, rollout.logprobs, strict=True)
            if kind is not None
        ]
        values = torch.tensor(sampled, dtype=torch.float32)[torch.from_numpy(ranks)].to(self.device)
        is_image = (labels >= self.vocabulary.codes.start) & (labels < self.vocabulary.codes.stop)
        grpo = self.config.grpo
        weights = torch.where(is_image, grpo.image_weight, grpo.text_weight)
        return _Tokens(values[:, 0].long(), values[:, 1], values[:, 2], is_image, values[:, 3].bool(), weights)

    @torch.no_grad()
    def _reference_logprobs(self, batch: DeviceBatch, tokens: _Tokens) -> Tensor | None:
        return None if self.reference is None else self._forward(self.reference, batch, tokens).logprobs

    def _metrics(self, sums: dict[str, float], rollouts: Sequence[Rollout]) -> dict[str, float]:
        """Return the metrics of a step over all ranks."""
        grpo, count = self.config.grpo, self.config.batch_size
        rollouts = [each for each in rollouts if not each.is_anchor]
        rewards = torch.tensor([each.rewards for each in rollouts], dtype=torch.float64)
        totals = rewards @ torch.tensor(self.generator.weights, dtype=torch.float64)
        groups = totals.view(-1, grpo.num_generations)
        deviations = groups.std(dim=1, correction=0)
        lengths = torch.tensor([len(each.token_ids) for each in rollouts], dtype=torch.float64)
        numbers = torch.cat(
            [
                torch.stack([totals.sum(), deviations.sum(), (deviations == 0).sum().double(), lengths.sum()]),
                rewards.sum(dim=0),
            ]
        )
        values = self.layout.dist.sum(numbers.to(self.device, sum_dtype(self.device))).tolist()
        num_text, num_image = max(1, sums["num_text"]), max(1, sums["num_image"])
        num_tokens = max(1, sums["num_text"] + sums["num_image"])
        by_name = zip(grpo.reward_funcs, values[4:], strict=True)
        return {
            "reward": values[0] / count,
            "reward_std": values[1] / self.config.num_prompts,
            "frac_reward_zero_std": values[2] / self.config.num_prompts,
            "completion_length": values[3] / count,
            **{f"reward_{name.rpartition(':')[2]}": total / count for name, total in by_name},
            "kl": sums["kl"] / num_tokens,
            **({"anchor_kl": sums["anchor_kl"] / sums["num_anchor"]} if sums["num_anchor"] else {}),
            "clip_fraction": sums["clip_fraction"] / num_tokens,
            "entropy": (sums["entropy_text"] + sums["entropy_image"]) / num_tokens,
            "entropy_text": sums["entropy_text"] / num_text,
            "entropy_image": sums["entropy_image"] / num_image,
        }

    def _require_healthy(self, number: int, metrics: dict[str, float]) -> None:
        """Stop a run whose reward is gained by leaving the language of the model.

        Raises:
            TrainingError: the KL divergence is too large, or the entropy too small.
        """
        grpo, entropy = self.config.grpo, metrics["entropy"]
        self.first_entropy = self.first_entropy or entropy
        if metrics["kl"] > grpo.max_kl:
            raise TrainingError(
                f"step {number + 1}: the KL divergence from the initial model is {metrics['kl']:.3g} nats per token; "
                f"expected at most grpo.max_kl={grpo.max_kl:g}. {_ADVICE}"
            )
        if entropy < grpo.min_entropy_fraction * self.first_entropy:
            raise TrainingError(
                f"step {number + 1}: the entropy is {entropy:.3g} nats per token, at first {self.first_entropy:.3g}; "
                f"expected at least grpo.min_entropy_fraction={grpo.min_entropy_fraction:g} of that. {_ADVICE}"
            )

    def state(self) -> dict[str, Any]:
        """Return weights, optimizer state and data position."""
        numbers = {"position": asdict(self.position), "first_entropy": self.first_entropy}
        return decoder_state(self.decoder, self.optimizers) | numbers

    def restore(self, saved: SavedCheckpoint) -> None:
        """Load a state that `state` returned, on any number of ranks."""
        state = restore_decoder(saved, self.decoder, self.optimizers)
        self.position, self.first_entropy = DataPosition(**state["position"]), state["first_entropy"]


def _masked(rollout: Rollout) -> MaskedSequence:
    ids = np.array([*rollout.prompt_token_ids, *rollout.token_ids], dtype=np.int64)
    sampled = [kind is not None for kind in rollout.kinds]
    return ids, np.array([False] * len(rollout.prompt_token_ids) + sampled, dtype=np.bool_)


def _token_sums(terms: TokenTerms, tokens: _Tokens, output: PolicyOutput) -> Tensor:
    """Return the sums of `_TOKEN_METRICS`; all but the loss and the last two are of rewarded tokens."""
    is_rewarded = ~tokens.is_anchor
    is_image, is_text = tokens.is_image & is_rewarded, ~tokens.is_image & is_rewarded
    values = [
        (tokens.weights * terms.loss.detach()).sum(),
        terms.kl[is_rewarded].sum(),
        terms.is_clipped[is_rewarded].sum(),
        output.entropies[is_text].sum(),
        output.entropies[is_image].sum(),
        is_text.sum(),
        is_image.sum(),
        terms.kl[tokens.is_anchor].sum(),
        tokens.is_anchor.sum(),
    ]
    return torch.stack([value.to(sum_dtype(value.device)) for value in values])


def train_grpo(
    config: GRPOTrainConfig, start: ModelComponents, run: Path, callbacks: TrainCallbacks | None = None
) -> Decoder | None:
    """Tune a model by rewards, or resume; under torchrun the ranks share the prompts of a step.

    The full decoder is returned on rank 0, None on the others.

    Raises:
        ConfigError: prompts or rewards are wrong, or the batch does not divide.
        TrainingError: the policy has collapsed, or the run is unstable.
    """
    prompts = read_rollout_prompts(config, start)
    identity = run_identity(config, prompts=prompts.fingerprint, model=weights_fingerprint(start.decoder))
    device = resolve_device(config.device)
    single = fsdp_on_one_rank(device, config.optimizer)
    with init_distributed(device, run, config.parallel.timeout_seconds, groups_one_rank=single) as dist:
        require_divisible_batch("batch_size / grpo.num_generations", config.num_prompts, dist.size)
        require_divisible_batch("grpo.num_anchors", config.grpo.num_anchors, dist.size)

        def build() -> tuple[Decoder, RankLayout]:
            return build_sharded_decoder(
                start.decoder.config,
                lambda made: start.decoder.state_dict().items(),
                None,
                dist=dist,
                device=device,
                parallel=config.parallel,
                dtype=compute_dtype(config.compute, device),
            )

        decoder, layout = build()
        reference = build()[0].requires_grad_(False).eval() if config.grpo.beta or prompts.anchors else None
        trainer = GRPOTrainer(decoder, prompts, config, start.tokenizers, layout, reference)
        run_loop(trainer, run, config, identity, callbacks, dist)
        full = gather_full_decoder(decoder, layout)
    return full.eval() if full is not None else None


def read_rollout_prompts(config: GRPOTrainConfig, start: ModelComponents) -> RolloutPrompts:
    """Read the prompts of a config and check its rewards; raises as `encode_rollout_prompts` does."""
    for name in config.grpo.reward_funcs:
        load_reward(name)
    longest = min(start.decoder.config.max_seq_len, config.seq_len) - config.grpo.max_completion_length
    return encode_rollout_prompts(config.grpo, start.tokenizers, longest)
