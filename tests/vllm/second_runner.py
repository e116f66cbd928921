"""vLLM with its second model runner on a CPU: its Triton kernels run in Triton's interpreter.

    VLLM_USE_V2_MODEL_RUNNER=1 python -m tests.vllm.second_runner FOLDER

It prints, as JSON, the tokens of some requests, and how many were discarded. It is a process of its
own, since vLLM decides at its import whether there is a Triton for CPUs.
"""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

from calumma.generate.model import Model, load
from calumma.generate.params import Request

NUM_BLOCKS = 14
"""So few that requests are preempted."""


def requests_of(model: Model) -> list[Request]:
    """Return guided and sampled requests, and some without guidance."""
    from tests.vllm.in_process import mixed_requests

    options = {"temperature": 0.9, "max_new_tokens": 40}
    return [*mixed_requests(model, 8, **options), *mixed_requests(model, 4, guided=False, **options)]


def main() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    from triton.backends import backends

    backends["cpu"] = SimpleNamespace(driver=SimpleNamespace(is_active=lambda: True), compiler=None)
    from tests.vllm.in_process import generate, scheduler_of, start_engine

    folder = Path(sys.argv[1])
    model = load(folder)
    with start_engine(folder, num_gpu_blocks_override=NUM_BLOCKS) as llm:
        scheduler = scheduler_of(llm)
        assert scheduler.use_v2_model_runner
        found = generate(llm, model.text, requests_of(model))
        pool = scheduler.kv_cache_manager.block_pool
        left = [len(scheduler.requests), len(scheduler._groups), pool.num_gpu_blocks - 1 - pool.get_num_free_blocks()]
        print(json.dumps({"found": found, "discarded": scheduler.num_discarded_tokens, "left": left}))


if __name__ == "__main__":
    main()
