"""Generation by this package's engine and by vLLM, of the same model through one interface.

    scripts/test-vllm --collect-only -q      installs vLLM for CPUs in .venv-vllm
    .venv-vllm/bin/python benches/serve_vllm.py
    .venv-vllm/bin/python benches/serve_vllm.py --compile
    .venv-vllm/bin/python benches/serve_vllm.py --model FOLDER --clients 1 8
    .venv-vllm/bin/python benches/serve_vllm.py --quick

All requests of a round are submitted at once, to one backend after the other. Text requests generate
`--tokens` tokens each; image requests draw one image each with guidance, of a text and an image, so
that three sequences are computed. The measure is the seconds of a round, and the tokens of all
backends must be equal.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it can be run as a file

from benches.measure import OURS, describe_machine, format_result, median_seconds, time_interleaved
from benches.serve import TEXTS, write_random
from calumma.generate.async_engine import AsyncEngine
from calumma.generate.model import Model, load
from calumma.generate.params import EngineConfig, ImageSampling, Request, TextSampling
from calumma.runtime import resolve_device
from calumma.serve.backends.generation_backend import GenerationBackend
from calumma.serve.vllm.async_llm import AsyncLLMBackend, engine_arguments
from calumma.serve.vllm.frontend_model import FrontendModel
from tests.images import noise


def text_requests(model: Model, count: int, num_tokens: int) -> list[Request]:
    """Return requests for text of a fixed length."""
    sampling = TextSampling(temperature=0.7, top_p=0.9)
    options = {"modality": "text", "ignore_eos": True, "max_new_tokens": num_tokens, "text": sampling}
    return [model.request([TEXTS[n % len(TEXTS)]], seed=n, **options) for n in range(count)]


def image_requests(model: Model, count: int) -> list[Request]:
    """Return requests for an image after a text and an image, with guidance in three sequences."""
    sampling = ImageSampling(temperature=0.7, top_p=0.9, guidance_scale=3.0, image_guidance_scale=1.2)
    num_tokens = model.image.config.codes_per_image + 2
    options = {"modality": "image", "max_images": 1, "max_new_tokens": num_tokens, "image": sampling}
    side = model.image.config.resolution
    return [model.request([noise(n, side, side), TEXTS[n % len(TEXTS)]], seed=n, **options) for n in range(count)]


def run(backend: GenerationBackend, requests: Sequence[Request]) -> list[list[int]]:
    """Submit the requests at once and return their tokens."""
    streams = [backend.submit(request, 0) for request in requests]
    return [stream.sample().token_ids for stream in streams]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a model folder; a random model by default")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64], help="text requests at once")
    parser.add_argument("--images", type=int, nargs="+", default=[1, 4], help="image requests at once")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    compiled = "also a vLLM that compiles the decoder, which takes minutes"
    parser.add_argument("--compile", action="store_true", help=compiled)
    parser.add_argument("--quick", action="store_true", help="a tiny model, to see that it runs")
    args = parser.parse_args(argv)
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    with tempfile.TemporaryDirectory() as folder:
        path = args.model or Path(folder) / "model"
        if args.model is None:
            shape = (128, 2, 32) if args.quick else (384, 6, 64)
            write_random(path, *shape)
        if args.quick:
            args.clients, args.images, args.tokens, args.rounds = [2], [2], 8, 1
        measure(path, args)


def measure(path: Path, args: argparse.Namespace) -> None:
    """Time the backends and print the result."""
    config = EngineConfig(max_num_seqs=3 * max(*args.clients, *args.images), max_cached_tokens=65_536)
    model = load(path, device="cpu", engine_config=config)
    arguments = engine_arguments(
        path, config, device=resolve_device("cpu"), max_seq_len=model.decoder.config.max_seq_len
    )
    sides: dict[str, GenerationBackend] = {
        OURS: AsyncEngine(model),
        "vllm": AsyncLLMBackend(FrontendModel(path), arguments | {"enforce_eager": True}),
    }
    if args.compile:
        sides["vllm_compiled"] = AsyncLLMBackend(FrontendModel(path), arguments | {"enforce_eager": False})
    loads = {f"text_{n}_seconds": text_requests(model, n, args.tokens) for n in args.clients}
    loads |= {f"image_{n}_seconds": image_requests(model, n) for n in args.images}
    measures: dict[str, dict[str, float | None]] = {name: {} for name in sides}
    for load_name, requests in loads.items():
        outputs = [run(backend, requests) for backend in sides.values()]
        assert all(output == outputs[0] for output in outputs), f"{load_name}: the backends differ"
        work = {name: partial(run, backend, requests) for name, backend in sides.items()}
        for name, seconds in median_seconds(time_interleaved(work, num_rounds=args.rounds)).items():
            measures[name][load_name] = round(seconds, 4)
        print(load_name, {name: values[load_name] for name, values in measures.items()}, flush=True)
    for backend in sides.values():
        backend.close()
    more = {"tokens": args.tokens, "parameters": model.decoder.num_parameters}
    print(format_result("serve_vllm", measures, describe_machine(torch.get_num_threads()), **more))


if __name__ == "__main__":
    main()
