"""`calumma generate`: an interleaved document from a prompt."""

from __future__ import annotations

import argparse
from pathlib import Path

from calumma.cli.verb import Subparsers, new_verb

_EXAMPLES = """\
  calumma generate out/demo/model --prompt "draw a large red circle on a blue ground" --out out/1
  calumma generate out/demo/model --image cat.png --prompt "what is this?" --out out/2"""


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = new_verb(
        subparsers,
        "generate",
        "MODEL --prompt TEXT [--image FILE ...] --out DIR [options]",
        "Generate an interleaved document from a prompt.\n"
        "Writes DIR/document.json, DIR/document.html and DIR/images/.",
        _EXAMPLES,
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help="a model folder")
    parser.add_argument("--prompt", default="", metavar="TEXT", help="what to ask")
    parser.add_argument(
        "--image", type=Path, action="append", default=[], metavar="FILE", help="before the text"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--continue", dest="go_on", action="store_true", help="no turn: continue")
    parser.add_argument("--max-new-tokens", type=int, default=256, metavar="N")
    parser.add_argument("--max-images", type=int, default=4, metavar="N", help="0: text only")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--temperature", type=float, metavar="X", help="of text and images")
    parser.add_argument("--guidance", type=float, metavar="X", help="of images, by the text")
    parser.add_argument("--device", default="auto", metavar="D", help="auto, cpu or cuda")
    parser.set_defaults(run=run, stops_at_once=True)


def run(args: argparse.Namespace) -> None:
    """Generate and write."""
    from calumma.documents.document import Image, Part, Text
    from calumma.errors import GenerationError
    from calumma.files import make_folder
    from calumma.generate.model import load
    from calumma.generate.written import write_sample

    parts: list[Part] = [Image(path=path) for path in args.image]
    if args.prompt:
        parts.append(Text(args.prompt))
    if not parts:
        raise GenerationError("no --prompt and no --image; wanted at least one of them.")
    make_folder(args.out)
    model = load(args.model, device=args.device)
    images = 0 if not model.parts.draws else args.max_images
    sample = model.generate(
        parts,
        answer=not args.go_on,
        max_new_tokens=args.max_new_tokens,
        max_images=images,
        seed=args.seed,
        **_sampling(args),
    )
    write_sample(args.out, parts, sample)
    for part in sample.parts:
        print(part if isinstance(part, str) else f"[picture of {part.width} x {part.height}]")
    print(f"{args.out}/document.html")


def _sampling(args: argparse.Namespace) -> dict[str, object]:
    from calumma.generate.config import ImageSampling, TextSampling

    heat = {} if args.temperature is None else {"temperature": args.temperature}
    guidance = {} if args.guidance is None else {"text_guidance": args.guidance}
    return {"text": TextSampling(**heat), "image": ImageSampling(**heat, **guidance)}
