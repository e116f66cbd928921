"""Guidance in vLLM: groups are scheduled as one, also if the KV cache is too small for all of them."""

import json
import os
import random
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from calumma.errors import ConfigError
from tests.vllm import second_runner
from tests.vllm.conftest import SaveModel
from tests.vllm.in_process import SETTINGS, differing, generate, mixed_requests, scheduler_of, start_engine

pytest.importorskip("vllm", reason="vllm is not installed; scripts/test-vllm installs it")


SHARDED = SimpleNamespace(parallel_config=SimpleNamespace(enable_batch_sharded_sampling=True))


def test_preempted_and_aborted_groups_leave_the_others_right(save_vllm_model: SaveModel) -> None:
    """100 requests in a KV cache for a few of them, every fourth aborted at a random step."""
    folder, model = save_vllm_model(norm_order="reordered")
    requests = mixed_requests(model, 100, temperature=0.9)
    aborts = {number: random.Random(number).randint(1, 200) for number in range(0, 100, 4)}
    with start_engine(folder, num_gpu_blocks_override=24) as llm:
        scheduler = scheduler_of(llm)
        preempted = []
        preempt = scheduler._preempt_request

        def count(request: Any, *args: Any, **options: Any) -> None:
            preempted.append(request.request_id)
            preempt(request, *args, **options)

        scheduler._preempt_request = count
        found = generate(llm, model.text, requests, aborts)
        assert len(preempted) > 20 and any(id_.startswith("calumma-guidance") for id_ in preempted)
        assert scheduler.num_discarded_tokens > 0
        # Nothing is left: no request, no group, and all blocks but the reserved one are free.
        assert (scheduler.requests, scheduler._groups, scheduler.running) == ({}, {}, [])
        pool = scheduler.kv_cache_manager.block_pool
        assert pool.get_num_free_blocks() == pool.num_gpu_blocks - 1
    # An aborted request has the first of its tokens.
    expected = [sample.token_ids for sample in model.generate_requests(requests)]
    wrong = [
        number
        for number, (ids, complete) in enumerate(zip(found, expected, strict=True))
        if ids != (complete[: len(ids)] if number in aborts else complete)
    ]
    assert wrong == []
    assert sum(len(found[number]) < len(expected[number]) for number in aborts) > 10


def test_the_second_model_runner_generates_the_same_tokens(save_vllm_model: SaveModel) -> None:
    """In a KV cache for a few requests; Triton's kernels run in its interpreter."""
    folder, model = save_vllm_model(norm_order="reordered")
    environment = {**os.environ, **SETTINGS, "VLLM_USE_V2_MODEL_RUNNER": "1"}
    command = [sys.executable, "-m", "tests.vllm.second_runner", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    result = json.loads(done.stdout.splitlines()[-1])
    assert differing(model, second_runner.requests_of(model), result["found"]) == []
    assert result["discarded"] > 0 and result["left"] == [0, 0, 0]


def test_a_group_that_never_fits_fails_alone(save_vllm_model: SaveModel, caplog: pytest.LogCaptureFixture) -> None:
    folder, model = save_vllm_model(norm_order="reordered")
    requests = mixed_requests(model, 3, temperature=0.9)
    large = model.request(["a"], max_new_tokens=250, image_first=True, max_images=4)
    with start_engine(folder, num_gpu_blocks_override=10) as llm:
        found = generate(llm, model.text, [large, *requests])
    assert found[0] == []
    assert differing(model, requests, found[1:]) == []
    (record,) = (record for record in caplog.records if "blocks of the KV cache" in record.message)
    assert record.message.endswith(
        "blocks of the KV cache and 3 sequences, guidance included; expected at most 9 and 32. Lower max_tokens, or "
        "raise the cache or max_num_seqs."
    )


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        ({"num_spec_tokens": 2}, "speculative decoding, which would sample several tokens of a group"),
        ({"scheduler_config": SimpleNamespace(async_scheduling=True)}, "asynchronous scheduling"),
        ({"use_pp": True}, "pipeline parallelism"),
        ({"vllm_config": SHARDED}, "sampling that is sharded over ranks"),
        ({"policy": SimpleNamespace(value="priority")}, "the policy priority"),
        ({"connector": object()}, "a KV connector"),
    ],
)
def test_settings_without_one_token_per_step_are_rejected(setting: dict[str, Any], name: str) -> None:
    from calumma.serve.vllm.guidance_scheduler import _require_supported_settings

    settings: dict[str, Any] = {
        "num_spec_tokens": 0,
        "scheduler_config": SimpleNamespace(async_scheduling=False),
        "use_pp": False,
        "vllm_config": SimpleNamespace(parallel_config=SimpleNamespace(enable_batch_sharded_sampling=None)),
        "policy": SimpleNamespace(value="fcfs"),
        "connector": None,
    }
    scheduler: Any = SimpleNamespace(**settings)
    _require_supported_settings(scheduler)
    with pytest.raises(ConfigError) as caught:
        _require_supported_settings(SimpleNamespace(**settings | setting))  # type: ignore[arg-type]
    assert str(caught.value) == (
        f"GuidanceScheduler with {name}; expected one token of each request per step. Start vLLM with "
        "--no-async-scheduling, and without that setting."
    )
