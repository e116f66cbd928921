"""Config of tuning by rewards (GRPO): a config of `calumma finetune` with a [grpo] table."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from calumma.errors import ConfigError
from calumma.train.config_dpo import PreferenceTrainConfig


@dataclass(frozen=True, kw_only=True)
class GRPOConfig:
    """Prompts, rewards, rollouts and loss, with TRL's names."""

    prompts: tuple[Path, ...]
    """Documents of turns; the prompt is all before the last answer, which is the reference."""

    reward_funcs: tuple[str, ...]
    """Names of built-in rewards, or `package.module:function`; see `rl/rewards.py`."""

    reward_weights: tuple[float, ...] = ()
    """Weight of each reward; empty for 1 each."""

    num_generations: int = 8
    """Completions of each prompt, whose mean reward is the baseline."""

    num_iterations: int = 1
    """Optimizer updates on the completions of a step."""

    max_completion_length: int = 256
    """Most tokens of a completion."""

    modality: Literal["any", "text", "image"] = "any"
    """What completions may be: text and images, text alone, or images alone."""

    max_images: int = 1
    """Most images of a completion."""

    guidance_scale: float = 1.0
    """Classifier-free guidance of the rollouts' images. Above 1, completions come from the guided
    distribution; the ratio is taken against the model's own one without guidance, and the
    importance weights correct the difference up to their cap."""

    beta: float = 0.0
    """Weight of the KL divergence from the initial model; 0 needs no reference model."""

    anchors: tuple[Path, ...] = ()
    """Documents of turns as in `prompts`, of skills to keep: the initial model completes them, and
    the model in training must find these completions as likely."""

    num_anchors: int = 0
    """Completions of anchors in a step, one of each, besides batch_size; every second one of those
    with an image as their reference is of the images of its prompt alone, from which classifier-free
    guidance extrapolates."""

    anchor_beta: float = 1.0
    """Weight of the KL divergence on anchors, estimated from completions of the initial model: it
    grows where the model in training drops one of several ways to answer."""

    epsilon: float = 0.2
    """The ratio is clipped below 1 - epsilon."""

    epsilon_high: float = 0.2
    """The ratio is clipped above 1 + epsilon_high."""

    scale_rewards: bool = True
    """Whether advantages are divided by the standard deviation of their group."""

    text_weight: float = 1.0
    """Weight of a text token in the loss."""

    image_weight: float = 1.0
    """Weight of an image token in the loss."""

    importance_cap: float = 2.0
    """Largest importance weight between the engine's and the trainer's probability of a token."""

    max_kl: float = 1.0
    """The run stops if the KL divergence from the initial model exceeds this, in nats per token; it
    is measured only with a beta above 0."""

    min_entropy_fraction: float = 0.05
    """The run stops if the entropy falls below this fraction of the first step's."""

    def __post_init__(self) -> None:
        if not self.prompts or not self.reward_funcs:
            raise ConfigError(
                f"grpo.prompts has {len(self.prompts)} files and grpo.reward_funcs {len(self.reward_funcs)} names; "
                "expected at least one of each."
            )
        if self.reward_weights and len(self.reward_weights) != len(self.reward_funcs):
            raise ConfigError(
                f"grpo.reward_weights has {len(self.reward_weights)} numbers for {len(self.reward_funcs)} rewards; "
                "expected as many, or none."
            )
        if self.num_generations < 2 or min(self.num_iterations, self.max_completion_length) < 1:
            raise ConfigError(
                f"grpo.num_generations={self.num_generations}, num_iterations={self.num_iterations}, "
                f"max_completion_length={self.max_completion_length}; expected at least 2, 1 and 1."
            )
        if bool(self.anchors) != (self.num_anchors > 0):
            raise ConfigError(
                f"grpo.anchors has {len(self.anchors)} files and grpo.num_anchors is {self.num_anchors}; expected "
                "files and a number above 0, or neither."
            )
        expected = dict.fromkeys(
            ("beta", "anchor_beta", "text_weight", "image_weight", "min_entropy_fraction"), "of at least 0"
        )
        expected |= dict.fromkeys(("epsilon_high", "importance_cap", "max_kl"), "above 0")
        for name, what in ({"epsilon": "between 0 and 1"} | expected).items():
            value = getattr(self, name)
            if value < 0 or (value == 0 and what != "of at least 0") or (name == "epsilon" and value >= 1):
                raise ConfigError(f"grpo.{name}={value}; expected a number {what}. Change grpo.{name}.")


@dataclass(frozen=True, kw_only=True)
class GRPOTrainConfig(PreferenceTrainConfig):
    """Tuning of a model folder by rewards (GRPO, arXiv:2402.03300) on mixed-modal completions."""

    grpo: GRPOConfig

    steps: int = 100

    batch_size: int = 64
    """Completions of one step, on all ranks together; a multiple of num_generations."""

    seq_len: int = 4096
    """Tokens of a packed row; it holds as many completions as fit, each with its prompt."""

    micro_batch_size: int = 8
    """Completions that a rank passes through the model at once; gradients are accumulated."""

    def __post_init__(self) -> None:
        group = self.grpo.num_generations
        if min(self.steps, self.batch_size, self.micro_batch_size) < 1 or self.batch_size % group:
            raise ConfigError(
                f"steps={self.steps}, batch_size={self.batch_size} and micro_batch_size={self.micro_batch_size}; "
                f"expected at least 1 of each, and a multiple of grpo.num_generations={group} as batch_size."
            )
        if self.parallel.sequence_ranks > 1 or self.compute.precision == "float8":
            raise ConfigError(
                f"parallel.tensor_parallel={self.parallel.tensor_parallel}, parallel.context_parallel="
                f"{self.parallel.context_parallel} and compute.precision="
                f"{self.compute.precision!r} with [grpo]; expected 1, 1 and auto, bfloat16 or float32."
            )

    @property
    def num_prompts(self) -> int:
        """Prompts of one step."""
        return self.batch_size // self.grpo.num_generations
