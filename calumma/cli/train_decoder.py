"""`calumma pretrain` and `calumma finetune`: pre-training, supervised fine-tuning (SFT), DPO and GRPO."""

import argparse
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from calumma.cli.command import (
    Subparsers,
    add_command,
    add_config_arguments,
    add_documents_argument,
    add_revision_argument,
    load_run_config,
    training_progress,
)
from calumma.errors import ConfigError

if TYPE_CHECKING:
    from calumma.checkpoints.model_folder import ModelComponents
    from calumma.model.decoder import Decoder
    from calumma.train.config_dpo import PreferenceTrainConfig
    from calumma.train.training_loop import TrainCallbacks

PreferenceConfigT = TypeVar("PreferenceConfigT", bound="PreferenceTrainConfig")


_PRETRAIN_EXAMPLES = """\
  calumma pretrain run.toml --out out/run --dry-run                 print config and plan only
  calumma pretrain run.toml --out out/run                           start, or resume
  calumma pretrain run.toml --out out/run --optimizer.lr 3e-4 --model.num-layers 8"""

_FINETUNE_EXAMPLES = """\
  calumma finetune --model out/model --documents my.jsonl --out out/tuned   without a CONFIG
  calumma finetune turns.toml --out out/tuned --dry-run
  calumma finetune turns.toml --out out/tuned --steps 400 --dropout 0.05
  calumma finetune turns.toml --out out/tuned --trainable.blocks lora --trainable.embeddings none"""


def add_pretrain_command(subparsers: Subparsers) -> None:
    """Add `calumma pretrain`."""
    parser = add_command(
        subparsers,
        "pretrain",
        "CONFIG --out DIR [--dry-run] [--no-plan-check] [--a.b VALUE ...]",
        "Pre-train a decoder on shards, in stage one and, if it is given, stage two.\n"
        "Resumes from the newest checkpoint in DIR; writes a model folder, DIR/model.",
        _PRETRAIN_EXAMPLES,
    )
    add_config_arguments(parser)
    add_documents_argument(parser)
    parser.add_argument(
        "--no-plan-check", action="store_true", help="start even if the plan says that the run does not fit the GPUs"
    )
    parser.set_defaults(run=_run_pretraining)


def _run_pretraining(args: argparse.Namespace) -> None:
    from calumma.checkpoints.model_folder import open_model_folder
    from calumma.cli.dry_run import decoder_plan_lines, require_fitting_run
    from calumma.cli.run_shards import build_run_shards, check_pretraining
    from calumma.generate.caption_images import generate_caption_images
    from calumma.runtime import is_first_rank
    from calumma.train.config import PretrainConfig
    from calumma.train.pretraining import pretrain

    config = load_run_config(PretrainConfig, args, decoder_plan_lines, check=check_pretraining, check_is_quick=True)
    if config is None:
        return
    build_run_shards(config, config.tokenizers)
    if is_first_rank() and not args.no_plan_check:
        require_fitting_run(config, args.gpu)
    generate_images = partial(generate_caption_images, config.tokenizers)
    with training_progress(args.out, config, "pre-training", config.steps) as callbacks:
        pretrain(config, args.out, callbacks, export=True, generate_images=generate_images)
    if is_first_rank():
        model = open_model_folder(args.out / "model")
        print(f"{args.out}/model: a decoder of {model.num_parameters:,} parameters")


def add_finetune_command(subparsers: Subparsers) -> None:
    """Add `calumma finetune`."""
    parser = add_command(
        subparsers,
        "finetune",
        "CONFIG | --model M --documents DOCS --out DIR [--dry-run] [--a.b VALUE ...]",
        "Fine-tune a model on conversations (SFT), on pairs of answers (DPO), or by rewards (GRPO).\n"
        "A table [dpo] or [grpo] in CONFIG selects those; in SFT the loss is on the answers only.\n"
        "Resumes from the newest checkpoint in DIR; writes a model folder, DIR/model.",
        _FINETUNE_EXAMPLES,
    )
    add_config_arguments(parser, is_optional=True)
    start = "the model to start from: a folder or user/name on the Hub; --revision R"
    parser.add_argument("--model", metavar="DIR", help=start)
    add_revision_argument(parser)
    add_documents_argument(parser)
    parser.set_defaults(run=_run_finetuning)


def _run_finetuning(args: argparse.Namespace) -> None:
    from calumma.toml_config import read_toml

    _separate_config(args)
    if args.model is not None:
        args.model = str(args.model)
        args.overrides = ["--model", args.model, *args.overrides]
    if args.config is None:
        _run_sft(args, _default_tree(args))
        return
    # The former name of the table is included so that the loader names the new one.
    tables = {"dpo", "preference"}
    options = {option[2:].partition(".")[0] for option in args.overrides}
    named = read_toml(args.config).keys() | options
    if "grpo" in named:
        _run_grpo(args)
    elif tables & named:
        _run_dpo(args)
    else:
        _run_sft(args)


def _separate_config(args: argparse.Namespace) -> None:
    """Return a value to its option where argparse took it for CONFIG, as in `--steps 40`."""
    if args.config is None or args.config.suffix == ".toml":
        return
    words = args.overrides
    for index, word in enumerate(words):
        has_value = index + 1 < len(words) and not words[index + 1].startswith("--")
        if args.config is not None and word.startswith("--") and "=" not in word and not has_value:
            words.insert(index + 1, str(args.config))
            args.config = None


def _default_tree(args: argparse.Namespace) -> dict[str, Any]:
    """Return the config of a run without a config file: short, for a first try."""
    from calumma.checkpoints.model_folder import open_model_folder

    if args.model is None or args.documents is None:
        raise ConfigError(
            "neither CONFIG nor --model and --documents are given; expected one of the two. "
            "`calumma finetune --help` shows examples."
        )
    shape = open_model_folder(args.model).decoder_config
    return {
        "steps": 100,
        "dropout": 0.05 if shape.norm_order == "pre" else 0.0,
        "data": {"seq_len": min(shape.max_seq_len, 4096), "global_batch_size": 8},
        "optimizer": {"lr": 1e-4},
        "schedule": {"warmup_steps": 10},
        "checkpoint": {"interval": 25},
    }


def _run_sft(args: argparse.Namespace, tree: dict[str, Any] | None = None) -> None:
    from calumma.checkpoints.model_folder import load_model
    from calumma.cli.dry_run import finetuning_plan_lines
    from calumma.cli.run_shards import build_run_shards, check_finetuning
    from calumma.runtime import is_first_rank
    from calumma.train.config_finetune import FinetuneConfig
    from calumma.train.finetuning import finetune, modality_balance

    config = load_run_config(FinetuneConfig, args, finetuning_plan_lines, check=check_finetuning, tree=tree)
    if config is None:
        return
    start = load_model(config.model)
    if config.documents:
        tokenizers_folder = args.out / "tokenizers"
        if is_first_rank():
            start.tokenizers.save(tokenizers_folder)
        build_run_shards(config, tokenizers_folder)
    if warning := modality_balance(config).warning:
        logging.getLogger(__name__).warning(warning)
    with training_progress(args.out, config, "fine-tuning", config.steps) as progress:
        vocabulary, tokenizers = start.tokenizers.text.vocabulary, start.tokenizers
        decoder = finetune(config, start.decoder, vocabulary, args.out, progress, tokenizers=tokenizers)
    _save_model(args.out, start, decoder, f"fine-tuned from {config.model}")


def _run_dpo(args: argparse.Namespace) -> None:
    from calumma.cli.run_shards import check_dpo
    from calumma.train.config_dpo import DPOTrainConfig
    from calumma.train.dpo import train_dpo

    _run_tuning(args, DPOTrainConfig, check_dpo, train_dpo, "DPO", "by DPO")


def _run_grpo(args: argparse.Namespace) -> None:
    from calumma.cli.run_shards import check_grpo
    from calumma.rl.config_grpo import GRPOTrainConfig
    from calumma.rl.grpo import train_grpo

    _run_tuning(args, GRPOTrainConfig, check_grpo, train_grpo, "GRPO", "by rewards")


def _run_tuning(
    args: argparse.Namespace,
    config_class: "type[PreferenceConfigT]",
    check: "Callable[[PreferenceConfigT, Path], None]",
    train: "Callable[[PreferenceConfigT, ModelComponents, Path, TrainCallbacks], Decoder | None]",
    title: str,
    method: str,
) -> None:
    """Tune a model that is its own reference; `title` is for the progress, `method` for the result."""
    from calumma.checkpoints.model_folder import load_model

    config = load_run_config(config_class, args, check=check)
    if config is None:
        return
    start = load_model(config.model)
    with training_progress(args.out, config, title, config.steps) as progress:
        decoder = train(config, start, args.out, progress)
    _save_model(args.out, start, decoder, f"tuned {method} from {config.model}")


def _save_model(out: Path, start: "ModelComponents", decoder: "Decoder | None", note: str) -> None:
    """Write the model folder, on the rank that has the decoder."""
    from calumma.checkpoints.model_folder import save_model

    if decoder is not None:
        save_model(out / "model", replace(start, decoder=decoder))
        print(f"{out}/model: {note}")
        if (out / "adapter").is_dir():
            print(f"{out}/adapter: what was trained, without the model, for --adapter")
