"""A vLLM engine in this process, whose scheduler tests can inspect."""

import gc
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from calumma.generate.model import Model
from calumma.generate.params import EngineConfig, ImageSampling, Request, TextSampling
from calumma.serve.vllm.async_llm import engine_arguments
from calumma.serve.vllm.extra_args import vllm_extra_args
from calumma.tokens.text import TextTokenizer
from tests.images import noise

SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_WORKER_MULTIPROC_METHOD": "fork",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(Path(__file__).parents[2]),
}
"""Environment of vLLM: one thread, and processes that need not import it again."""

_RUNNER = "VLLM_USE_V2_MODEL_RUNNER"

TEXTS = ("a red circle", "a large green", "the", "blue ground", "cross, 123 times!", "small")


@contextmanager
def start_engine(folder: Path, **options: Any) -> Iterator[Any]:
    """Start vLLM with the settings of `calumma serve --backend vllm`, and stop it."""
    os.environ.update(SETTINGS | {_RUNNER: os.environ.get(_RUNNER, SETTINGS[_RUNNER])})
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    arguments = engine_arguments(
        folder, EngineConfig(max_num_seqs=32), device=torch.device("cpu"), max_seq_len=256, dtype="float32"
    )
    llm = LLM(**arguments | options)
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()
        cleanup_dist_env_and_memory()
        os.environ.pop("VLLM_DIST_IDENT", None)  # of this engine's processes; the next one's differ


def scheduler_of(llm: Any) -> Any:
    """Return the scheduler of an engine in this process."""
    return llm.llm_engine.engine_core.engine_core.scheduler


def generate(
    llm: Any,
    tokenizer: TextTokenizer,
    requests: Sequence[Request],
    aborts: Mapping[int, int] | None = None,
    adapters: Mapping[str, Path] | None = None,
) -> list[list[int]]:
    """Generate all at once; `aborts` are the steps after which some requests are aborted."""
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt
    from vllm.lora.request import LoRARequest

    outputs: list[list[int]] = [[] for _ in requests]
    engine = llm.llm_engine
    lora = {name: LoRARequest(name, id_, str(path)) for id_, (name, path) in enumerate((adapters or {}).items(), 1)}
    ids = {}
    for number, request in enumerate(requests):
        params = SamplingParams(
            temperature=0.0,
            max_tokens=request.max_new_tokens,
            detokenize=False,
            stop_token_ids=[tokenizer.vocabulary.eos, *request.stop_token_ids],
            extra_args=vllm_extra_args(request),
        )
        prompt = TokensPrompt(prompt_token_ids=list(request.prompt_token_ids))
        internal = engine.add_request(str(number), prompt, params, lora_request=lora.get(request.adapter))
        ids[internal or str(number)] = number
    step = 0
    while engine.has_unfinished_requests():
        for output in engine.step():
            outputs[int(output.request_id)] = list(output.outputs[0].token_ids)
        step += 1
        engine.abort_request([id_ for id_, number in ids.items() if (aborts or {}).get(number) == step], internal=True)
    return outputs


def mixed_requests(
    model: Model, count: int, *, temperature: float, guided: bool = True, max_new_tokens: int = 90
) -> list[Request]:
    """Return requests for text, images and both; every third has an image in its prompt."""
    scales = {"guidance_scale": 3.0 if guided else 1.0, "image_guidance_scale": 1.2 if guided else 1.0}
    top_p = 0.9 if temperature else 1.0
    text = TextSampling(temperature=1.2 * temperature, top_p=top_p)
    image = ImageSampling(temperature=temperature, top_p=top_p, **scales)
    requests = []
    for number in range(count):
        prompt = [TEXTS[number % len(TEXTS)]]
        if number % 3 == 2:
            prompt = [noise(number, 32, 32), *prompt]
        options = {"modality": ("image", "any", "any", "text")[number % 4], "image_first": number % 4 == 1}
        requests.append(
            model.request(
                prompt,
                seed=number,
                max_new_tokens=max_new_tokens,
                max_images=1 + number % 3,
                text=text,
                image=image,
                num_logprobs=2,
                **options,
            )
        )
    return requests


def differing(model: Model, requests: Sequence[Request], found: Sequence[Sequence[int]]) -> list[tuple[int, str]]:
    """Return number and modality of the requests whose tokens are not those of this package's engine."""
    samples = model.generate_requests(requests)
    return [
        (number, request.modality)
        for number, (request, ids, sample) in enumerate(zip(requests, found, samples, strict=True))
        if list(ids) != sample.token_ids
    ]
