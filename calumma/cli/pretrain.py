"""`calumma pretrain`: pre-train a decoder in one stage or two."""

import argparse

from calumma.cli.command import (
    Subparsers,
    add_command,
    add_config_arguments,
    add_documents_argument,
    load_run_config,
    training_progress,
)

_EXAMPLES = """\
  calumma pretrain run.toml --out out/run --dry-run                 print config and plan only
  calumma pretrain run.toml --out out/run                           start, or resume
  calumma pretrain run.toml --out out/run --optimizer.lr 3e-4 --model.num-layers 8"""


def add_pretrain_command(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "pretrain",
        "CONFIG --out DIR [--dry-run] [--no-plan-check] [--a.b VALUE ...]",
        "Pre-train a decoder on shards, in stage one and, if it is given, stage two.\n"
        "Resumes from the newest checkpoint in DIR; writes a model folder, DIR/model.",
        _EXAMPLES,
    )
    add_config_arguments(parser)
    add_documents_argument(parser)
    parser.add_argument(
        "--no-plan-check", action="store_true", help="start even if the plan says that the run does not fit the GPUs"
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from calumma.checkpoints.model_folder import open_model_folder
    from calumma.cli.dry_run import decoder_plan_lines, require_fitting_run
    from calumma.cli.run_shards import build_run_shards, check_pretraining
    from calumma.runtime import is_first_rank
    from calumma.train.config import PretrainConfig
    from calumma.train.pretraining import pretrain

    config = load_run_config(PretrainConfig, args, decoder_plan_lines, check=check_pretraining)
    if config is None:
        return
    build_run_shards(config, config.tokenizers)
    if is_first_rank() and not args.no_plan_check:
        require_fitting_run(config, args.gpu)
    with training_progress(args.out, config, "pre-training", config.steps) as callbacks:
        pretrain(config, args.out, callbacks, export=True)
    if is_first_rank():
        model = open_model_folder(args.out / "model")
        print(f"{args.out}/model: a decoder of {model.num_parameters:,} parameters")
