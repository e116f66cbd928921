"""The command `calumma generate`: an interleaved document of text and images from a prompt."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calumma.cli.command import Subparsers, add_command, add_engine_arguments, add_revision_argument, engine_config
from calumma.hub import SHIPPED_MODEL

if TYPE_CHECKING:
    from calumma.generate.best_of import Reward
    from calumma.generate.events import Sample
    from calumma.generate.model import Model
    from calumma.generate.params import Request
    from calumma.generate.request import RequestState

_EXAMPLES = """\
  calumma generate --prompt "a red circle left of a banana"
  calumma generate out/demo/model --image cat.png --prompt "what is it?" --text.top-k 9 --out o"""

DEFAULT_TEXT_TOKENS = 256
"""New text tokens unless --max-new-tokens is given."""

MODALITIES = ("any", "text", "image", "image-first")


class _AppendPart(argparse.Action):
    """Appends a --prompt or --image to one list, in the order of the command line."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, value: Any, option: str | None = None
    ) -> None:
        """Append the value to the parts of the prompt."""
        namespace.parts = [*(namespace.parts or []), value]


def add_generate_command(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "generate",
        "[MODEL] --prompt TEXT [--image FILE ...] [--out DIR] [options]",
        "Generate an interleaved document of text and images from a prompt.",
        _EXAMPLES,
    )
    add = parser.add_argument
    shipped = "folder or user/name on the Hub, --revision R (the shipped model)"
    add("model", type=Path, nargs="?", default=Path(SHIPPED_MODEL), metavar="MODEL", help=shipped)
    add_revision_argument(parser)
    part: dict[str, Any] = {"action": _AppendPart, "dest": "parts"}
    add("--prompt", **part, metavar="TEXT", help="text of the prompt; may be repeated, in order")
    add("--image", **part, type=Path, metavar="FILE", help="image of the prompt, in order")
    add("--adapter", type=Path, metavar="DIR", help="adapter folder of `finetune` or PEFT, or its name on the Hub")
    add("--out", type=Path, default=Path("out/generate"), metavar="DIR", help="(default: out/generate)")
    add("--continue", dest="is_continuation", action="store_true", help="continue; no chat turn")
    kept = "keep the first N tokens of the last --image, generate the rest"
    add("--keep-image-tokens", type=int, metavar="N", help=kept)
    add("--modality", default="any", metavar="M", help=", ".join(MODALITIES))
    num_samples = "seeds from --seed N (0); the best of --best-of N by --reward NAME"
    add("--num-samples", type=int, default=1, metavar="N", help=num_samples)
    add("--seed", type=int, default=0, metavar="N", help=argparse.SUPPRESS)
    add("--best-of", type=int, metavar="N", help=argparse.SUPPRESS)
    add("--reward", default="likelihood", metavar="NAME", help=argparse.SUPPRESS)
    limit = f"default: {DEFAULT_TEXT_TOKENS} of text, plus one image if images are allowed"
    add("--max-new-tokens", type=int, metavar="N", help=limit)
    add("--max-images", type=int, default=4, metavar="N", help="0 for text only (4); --size WxH or auto")
    add("--size", default="auto", metavar="WxH", help=argparse.SUPPRESS)
    add("--image-decoding", choices=("raster", "diagonal"), default="raster", help=argparse.SUPPRESS)
    temperature = "or any field: --text.top-p 0.9, --image.image-guidance-scale 2"
    add("--temperature", type=float, metavar="X", help=temperature)
    add("--guidance-scale", type=float, metavar="X", help="classifier-free guidance of images")
    add_engine_arguments(parser)
    parser.set_defaults(run=_run, no_graceful_stop=True, accepts_overrides=True)


def _run(args: argparse.Namespace) -> None:
    from calumma.cli.generate_output import describe_image, write_samples
    from calumma.documents.document import Image, Text
    from calumma.errors import GenerationError
    from calumma.files import make_folder
    from calumma.generate.best_of import best_indices, prompt_text, score_samples
    from calumma.generate.model import load
    from calumma.tokens.image_preprocessing import named_errors, to_rgb, to_square

    given: list[str | Path] = [part for part in args.parts or [] if part != ""]
    if not given:
        raise GenerationError("no --prompt and no --image; expected at least one of them.")
    if args.num_samples < 1:
        raise GenerationError(f"--num-samples {args.num_samples}; expected at least 1.")
    if args.best_of is not None and args.best_of < args.num_samples:
        raise GenerationError(f"--best-of {args.best_of}; expected at least --num-samples {args.num_samples}.")
    reward = named_reward(args.reward)
    parts = [Text(p) if isinstance(p, str) else Image(path=p) for p in given]
    for image in (part for part in parts if isinstance(part, Image)):
        opened = image.open()
        with named_errors(image.display_name):
            to_square(to_rgb(opened), 8, "pad")
    options = _options(args)
    make_folder(args.out)
    model = load(
        args.model,
        device=args.device,
        dtype=args.dtype,
        quantization=args.quantization,
        engine_config=engine_config(args),
        adapter=args.adapter,
    )
    if args.max_new_tokens is None:
        options["max_new_tokens"] = _default_max_tokens(options, _image_length(model, args.size))
    request = model.request(parts, **options)
    num_seeds = args.num_samples if args.best_of is None else args.best_of
    samples, requests = generate_with_progress(model, request, range(args.seed, args.seed + num_seeds))
    if num_seeds > args.num_samples:
        samples = score_samples(model, prompt_text(parts), samples, reward)
        best = best_indices([sample.reward or 0.0 for sample in samples], args.num_samples)
        samples = [samples[index] for index in best]
        requests = [requests[index] | {"reward": samples[rank].reward} for rank, index in enumerate(best)]
    if args.keep_image_tokens is not None:
        requests = [r | {"keep_image_tokens": args.keep_image_tokens} for r in requests]
    write_samples(args.out, parts, samples, requests)
    for sample in samples:
        for part in sample.parts:
            print(part if isinstance(part, str) else describe_image(part))
    print(f"{args.out}/document.html")


def named_reward(name: str) -> "Reward":
    """Return a reward by its name; raises as `load_reward` does."""
    from calumma.generate.best_of import MODEL_REWARDS

    for reward in MODEL_REWARDS:
        if name == reward:
            return reward
    from calumma.rl.rewards import load_reward

    return load_reward(name)


def generate_with_progress(
    model: "Model", request: "Request", seeds: Sequence[int]
) -> "tuple[list[Sample], list[dict[str, Any]]]":
    """Generate one sample per seed in one batch, with a progress bar that counts tokens.

    Returns:
        The samples, and the resolved request of each without its prompt.
    """
    from calumma.cli.progress import ProgressBar

    requests = [replace(request, seed=seed) for seed in seeds]
    max_new_tokens = model.decoder.config.max_seq_len - len(request.prompt_token_ids)
    limit = len(requests) * min(request.max_new_tokens, max_new_tokens)
    with ProgressBar("generating", limit, "tokens") as bar:
        samples = model.generate_requests(
            requests, lambda state, token_id: bar.advance(note=_status(model, state, token_id))
        )
    return samples, [_request_record(each) for each in requests]


def _request_record(request: "Request") -> dict[str, Any]:
    """Return a request as JSON values, without its prompt."""
    from calumma.toml_config import config_to_dict

    return {name: value for name, value in config_to_dict(request).items() if name != "prompt_token_ids"}


def _image_length(model: "Model", size: str) -> int:
    from calumma.generate.grammar import image_grid_of, image_length

    config = model.image.config
    return image_length(model.vocabulary, config.codes_per_image, image_grid_of(size, model.vocabulary, config))


def _default_max_tokens(options: dict[str, Any], image_tokens: int) -> int:
    """Return the token limit for text and, if images are allowed, one image."""
    if options["modality"] == "image":
        return image_tokens * int(options["max_images"])
    has_images = options["modality"] != "text" and options["max_images"] > 0
    return DEFAULT_TEXT_TOKENS + (image_tokens if has_images else 0)


def _status(model: "Model", state: "RequestState", token_id: int) -> str:
    """Describe what the newest token belongs to."""
    codes, remaining = state.grammar.codes_per_image, state.grammar.num_codes_remaining
    if token_id in model.vocabulary.codes and remaining:
        return f"image, {codes - remaining} of {codes} tokens"
    return "text" if token_id in model.vocabulary.text else ""


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `Model.request`."""
    from calumma.checkpoints.sampling_params import SamplingOptions, read_sampling_options
    from calumma.errors import GenerationError
    from calumma.toml_config import override_config

    if args.modality not in MODALITIES:
        raise GenerationError(f"unknown --modality {args.modality}; expected one of {', '.join(MODALITIES)}.")
    defaults = read_sampling_options(args.model)
    tree: dict[str, Any] = {"text": asdict(defaults.text), "image": asdict(defaults.image)}
    if args.temperature is not None:
        for table in tree.values():
            table["temperature"] = args.temperature
    if args.guidance_scale is not None:
        tree["image"]["guidance_scale"] = args.guidance_scale
    sampling = override_config(SamplingOptions, tree, args.overrides, "the command line")
    return {
        "add_generation_prompt": not args.is_continuation,
        "keep_image_tokens": args.keep_image_tokens,
        "max_new_tokens": args.max_new_tokens,
        "size": args.size,
        "max_images": args.max_images,
        "modality": "any" if args.modality == "image-first" else args.modality,
        "image_first": args.modality == "image-first",
        "image_decoding": args.image_decoding,
        "text": sampling.text,
        "image": sampling.image,
    }
