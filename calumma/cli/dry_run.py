"""The plan that `--dry-run` prints after the config: whether a run fits, and how long it takes."""

import argparse
from typing import TYPE_CHECKING

from calumma.errors import CalummaError
from calumma.text_format import format_duration

if TYPE_CHECKING:
    from calumma.model.config import DecoderConfig
    from calumma.plan.run_plan import RunPlan
    from calumma.train.config import PretrainConfig, TrainConfig
    from calumma.train.config_finetune import FinetuneConfig
    from calumma.train.config_image_tokenizer import ImageTokenizerRunConfig


def decoder_plan_lines(
    config: "TrainConfig", args: argparse.Namespace, shape: "DecoderConfig | None" = None
) -> list[str]:
    """Return the plan of training a decoder as a few lines.

    Args:
        config: the config of the run.
        args: with `gpu` and `gpus`; None is this machine.
        shape: the config of the decoder, if it is not in `config`.

    Raises:
        ConfigError: the run cannot be divided over the given GPUs.
    """
    from calumma.plan.hardware import CPU_MFU, resolve_hardware
    from calumma.plan.run_plan import PlanRequest, make_run_plan, planned_vocabulary_size
    from calumma.train.config import PretrainConfig

    machine = resolve_hardware(args.gpu, args.gpus, config.device)
    vocabulary_size = planned_vocabulary_size(config) if isinstance(config, PretrainConfig) else 1
    request = PlanRequest(
        config=config,
        gpu=machine.gpu,
        num_gpus=machine.num_gpus,
        vocabulary_size=vocabulary_size,
        mfu=CPU_MFU if machine.is_cpu else None,
        existing_config=shape,
        is_cpu=machine.is_cpu,
    )
    try:
        plan = make_run_plan(request)
    except CalummaError as error:
        if args.gpu is not None or args.gpus is not None:
            raise
        return [f"plan: none for {machine.num_gpus} x {machine.gpu.name}: {error}"]
    return format_plan_summary(plan)


def require_fitting_run(config: "PretrainConfig", gpu: str | None = None) -> None:
    """Check before a run starts that it fits this machine's GPUs, if their specs are known.

    Args:
        config: the config of the run.
        gpu: kind of the GPUs; None is this machine's.

    Raises:
        ConfigError: the run cannot be divided over the ranks, or does not fit; the message names
            the nearest run that fits.
    """
    import torch

    from calumma.gpu_specs import gpu_spec_of_device
    from calumma.plan.hardware import resolve_hardware
    from calumma.plan.run_plan import PlanRequest, make_run_plan, planned_vocabulary_size
    from calumma.runtime import resolve_device, torchrun_rank

    device = resolve_device(config.device)
    if device.type != "cuda":
        return
    if gpu is None and gpu_spec_of_device(torch.cuda.get_device_name(device)) is None:
        return
    launch = torchrun_rank()
    machine = resolve_hardware(gpu, launch.world_size if launch is not None else 1, config.device)
    request = PlanRequest(
        config=config, gpu=machine.gpu, num_gpus=machine.num_gpus, vocabulary_size=planned_vocabulary_size(config)
    )
    make_run_plan(request).require_fitting()


def finetuning_plan_lines(config: "FinetuneConfig", args: argparse.Namespace) -> list[str]:
    """Return the plan of a fine-tuning run, as if all weights were trained."""
    from dataclasses import replace

    from calumma.checkpoints.model_folder import open_model_folder
    from calumma.hub import is_model_folder

    if not is_model_folder(config.model):
        return [f"plan: none, since {config.model} does not exist yet"]
    shape = replace(open_model_folder(config.model).decoder_config, dropout=config.dropout)
    return decoder_plan_lines(config, args, shape)


def format_plan_summary(plan: "RunPlan") -> list[str]:
    """Return a plan in four lines, and a fifth if the run does not fit."""
    from calumma.errors import ConfigError
    from calumma.gpu_specs import GIB

    memory, time, gpu = plan.memory, plan.time, plan.layout.gpu
    parts = ("weights", "gradients", "optimizer", "gathered", "activations", "loss")
    breakdown = ", ".join(f"{part} {getattr(memory, part) / GIB:.2f}" for part in parts if getattr(memory, part))
    lines = [
        f"plan: {plan.num_parameters:,} parameters on {plan.layout.num_gpus:,} x {gpu.name}",
        f"memory: {plan.required_bytes / GIB:.2f} of {gpu.memory_gib} GiB, {memory.moment} "
        f"({breakdown}; the rest is overhead)",
        f"speed: {time.tokens_per_second:,.0f} tokens/s at an assumed MFU of {time.mfu:.0%}, "
        f"{time.step_seconds:.3g} s per step of {time.tokens_per_step:,} tokens",
        f"time: {format_duration(time.days * 86_400)} for {plan.request.config.steps:,} steps, "
        f"{time.total_tokens:,} tokens",
    ]
    try:
        plan.require_fitting()
    except ConfigError as error:
        lines.append(f"it does not fit: {error}")
    return lines


def image_tokenizer_plan_lines(run: "ImageTokenizerRunConfig", args: argparse.Namespace) -> list[str]:
    """Return the plan of training an image tokenizer as a few lines."""
    from calumma.gpu_specs import GIB
    from calumma.plan.hardware import CPU_MFU, resolve_hardware
    from calumma.plan.time_estimate import ASSUMED_MFU, image_tokenizer_cost

    config, machine = run.training, resolve_hardware(args.gpu, args.gpus, run.device)
    images_per_gpu = -(-config.batch_size // machine.num_gpus)
    cost = image_tokenizer_cost(config.network, images_per_gpu)
    mfu = CPU_MFU if machine.is_cpu else ASSUMED_MFU["none"]
    # Training is in float32, which GPUs multiply as TF32, at half of their bfloat16 peak.
    peak = machine.gpu.peak_flops * (1.0 if machine.is_cpu else 0.5)
    seconds = cost.step_flops / (peak * mfu)
    return [
        f"plan: {cost.num_parameters:,} parameters (encoder, codebook, decoder) on "
        f"{machine.num_gpus} x {machine.gpu.name}",
        f"memory: {cost.state_bytes / GIB:.2f} GiB of weights, gradients and Adam's moments and "
        f"at most {cost.activation_bytes / GIB:.2f} GiB of activations, of "
        f"{machine.gpu.memory_gib} GiB; without the networks of the losses",
        f"speed: at most {images_per_gpu * machine.num_gpus / seconds:,.3g} images/s at an assumed "
        f"MFU of {mfu:.0%}, without the networks of the losses",
        f"time: at least {format_duration(config.steps * seconds)} for {config.steps:,} steps, "
        f"{config.steps * config.batch_size:,} images",
    ]
