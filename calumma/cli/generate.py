"""`calumma generate`: an interleaved document from a prompt."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calumma.cli.command import Subparsers, add_command

if TYPE_CHECKING:
    from calumma.generate.events import Sample
    from calumma.generate.model import Model
    from calumma.generate.params import Request
    from calumma.generate.request import RequestState

_EXAMPLES = """\
  calumma generate out/demo/model --prompt "draw a large red circle on a blue ground" --out out/1
  calumma generate out/demo/model --image cat.png --prompt "what is it?" --text.top-k 9 --out o"""

DEFAULT_TEXT_TOKENS = 256
"""New ids of text where no number is asked for."""

MODALITIES = ("any", "text", "image", "image-first")


class _InOrder(argparse.Action):
    """Keeps prompts and images in the order in which they were given."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        value: Any,
        option: str | None = None,
    ) -> None:
        """Put a piece of the prompt behind those before it."""
        namespace.parts = [*(namespace.parts or []), value]


def add_generate_command(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = add_command(
        subparsers,
        "generate",
        "MODEL --prompt TEXT [--image FILE ...] --out DIR [options]",
        "Generate an interleaved document from a prompt.",
        _EXAMPLES,
    )
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL", help="a model folder")
    piece: dict[str, Any] = {"action": _InOrder, "dest": "parts"}
    add("--prompt", **piece, metavar="TEXT", help="what to ask; again and again, in order")
    add("--image", **piece, type=Path, metavar="FILE", help="a picture of the prompt, in order")
    add("--out", type=Path, required=True, metavar="DIR", help="document.json, .html, images/")
    add("--continue", dest="go_on", action="store_true", help="go on from the prompt: no turn")
    add("--keep-codes", type=int, metavar="N", help="draw the last picture anew behind N codes")
    add("--modality", default="any", metavar="M", help=", ".join(MODALITIES))
    add("--samples", type=int, default=1, metavar="N", help="so many answers, seeds counted up")
    add("--seed", type=int, default=0, metavar="N")
    add("--max-new-tokens", type=int, metavar="N", help="else 256 and an image, where one may come")
    add("--max-images", type=int, default=4, metavar="N", help="0: text only")
    add("--temperature", type=float, metavar="X", help="or --text.RULE X, --image.RULE X")
    add("--guidance", type=float, metavar="X", help="of images, by the text")
    add("--device", default="auto", metavar="D", help="auto, cpu or cuda")
    dtype = "or bfloat16, float16; also --weights int8 or fp8, and --compile"
    add("--dtype", default="float32", metavar="D", help=dtype)
    add("--weights", default="plain", metavar="W", help=argparse.SUPPRESS)
    add("--compile", action="store_true", help=argparse.SUPPRESS)
    parser.set_defaults(run=_run, no_graceful_stop=True, accepts_overrides=True)


def _run(args: argparse.Namespace) -> None:
    """Generate and write."""
    from calumma.cli.generate_output import write_samples
    from calumma.documents.document import Image, Text
    from calumma.errors import GenerationError
    from calumma.files import make_folder
    from calumma.generate.model import load

    given: list[str | Path] = [piece for piece in args.parts or [] if piece != ""]
    if not given:
        raise GenerationError("no --prompt and no --image; expected at least one of them.")
    if args.samples < 1:
        raise GenerationError(f"--samples {args.samples}; expected at least 1.")
    parts = [Text(p) if isinstance(p, str) else Image(path=p) for p in given]
    options = _options(args)
    make_folder(args.out)
    model = load(args.model, device=args.device, dtype=args.dtype, weights=args.weights)
    if args.compile:
        model.compile()
    if not model.components.tokenizers.has_image_decoder and args.modality == "any":
        options["max_images"] = 0
    if args.max_new_tokens is None:
        options["max_new_tokens"] = _default_max_tokens(options, model.image.config.codes_per_image)
    request = model.request(parts, **options)
    samples, requests = generate_with_progress(
        model, request, range(args.seed, args.seed + args.samples)
    )
    if args.keep_codes is not None:
        requests = [asked | {"keep_codes": args.keep_codes} for asked in requests]
    write_samples(args.out, parts, samples, requests)
    for sample in samples:
        for part in sample.parts:
            print(part if isinstance(part, str) else f"[picture of {part.width} x {part.height}]")
    print(f"{args.out}/document.html")


def generate_with_progress(
    model: Model, request: Request, seeds: Sequence[int]
) -> tuple[list[Sample], list[dict[str, Any]]]:
    """One answer a seed, all at once, with a bar that counts new ids; and how each was asked."""
    from calumma.cli.progress import ProgressBar

    works = model.engine.submit_all([replace(request, seed=seed) for seed in seeds])
    most = sum(work.grammar.max_remaining_tokens for work in works)
    with ProgressBar("generating", most, "ids") as bar:
        for _, id_ in model.engine.stream_tokens(works):
            bar.advance(note=_status(model, works, id_))
    samples = [model.sample_of(work) for work in works]
    return samples, [_request_record(work.request) for work in works]


def _request_record(request: Request) -> dict[str, Any]:
    """How an answer was asked for, without the prompt."""
    from calumma.toml_config import config_to_dict

    return {name: value for name, value in config_to_dict(request).items() if name != "ids"}


def _default_max_tokens(options: dict[str, Any], codes: int) -> int:
    """New ids where none are asked for: a page of text and, where images may come, an image."""
    if options["modality"] == "image":
        return (codes + 2) * int(options["max_images"])
    drawing = options["modality"] != "text" and options["max_images"] > 0
    return DEFAULT_TEXT_TOKENS + (codes + 2 if drawing else 0)


def _status(model: Model, works: Sequence[RequestState], id_: int) -> str:
    """What the newest id is part of."""
    codes = model.image.config.codes_per_image
    drawn = [
        codes - work.grammar.num_codes_remaining
        for work in works
        if work.grammar.num_codes_remaining
    ]
    if id_ in model.vocabulary.codes and drawn:
        return f"drawing, {max(drawn)} of {codes} codes"
    return "writing" if id_ in model.vocabulary.text else ""


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """What `Model.request` is asked."""
    from calumma.errors import GenerationError
    from calumma.generate.params import SamplingOptions
    from calumma.toml_config import override_config

    if args.modality not in MODALITIES:
        raise GenerationError(
            f"--modality {args.modality} is not known; expected one of {', '.join(MODALITIES)}."
        )
    tree: dict[str, Any] = {"text": {}, "image": {}}
    if args.temperature is not None:
        tree = {kind: {"temperature": args.temperature} for kind in tree}
    if args.guidance is not None:
        tree["image"]["text_guidance"] = args.guidance
    rules = override_config(SamplingOptions, tree, args.overrides, "the command line")
    return {
        "answer": not args.go_on,
        "keep_codes": args.keep_codes,
        "max_new_tokens": args.max_new_tokens,
        "max_images": args.max_images,
        "modality": "any" if args.modality == "image-first" else args.modality,
        "image_first": args.modality == "image-first",
        "text": rules.text,
        "image": rules.image,
    }
