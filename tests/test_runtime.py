"""Devices, dtypes, ranks and stop signals."""

import copy
import os
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

import calumma
from calumma import runtime
from calumma.checkpoints.model_folder import ModelComponents
from calumma.errors import ConfigError, Interrupted
from calumma.generate.model import Model
from calumma.generate.params import EngineConfig, ImageSampling
from calumma.runtime import (
    StopRequest,
    TorchrunRank,
    api_keys_from_environment,
    busy_seconds,
    cache_folder,
    check_platform,
    count_busy_cpus,
    dtype_name,
    limit_thread_spinning,
    num_busy_cpus,
    peak_memory_bytes,
    prepare_for_vllm,
    ray_address,
    resolve_device,
    resolve_dtype,
    sum_dtype,
    torchrun_rank,
    use_loopback_interface,
)
from calumma.train.finetuning import finetune
from tests.apple_gpu import apple_gpu
from tests.train.test_finetuning import config as finetune_config


@pytest.mark.parametrize("name", ["fcntl", "resource"])
def test_a_platform_without_posix_modules_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_platform()
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=f"^Python has no module '{name}' on .*; expected Linux"):
        check_platform()


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CALUMMA_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert cache_folder() == str(Path("/cache/calumma"))
    monkeypatch.setenv("CALUMMA_CACHE", "/other")
    assert cache_folder() == "/other"


def test_ranks_come_from_the_environment_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert torchrun_rank() is None
    for name, value in (("RANK", "9"), ("WORLD_SIZE", "16"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert torchrun_rank() == TorchrunRank(rank=9, world_size=16, local_rank=1)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    assert torchrun_rank() == TorchrunRank(rank=9, world_size=16, local_rank=1, restart_count=2)


def test_other_launchers_need_not_set_the_local_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "9"), ("WORLD_SIZE", "16")):
        monkeypatch.setenv(name, value)
    for name in ("LOCAL_RANK", "SLURM_LOCALID", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert torchrun_rank() == TorchrunRank(rank=9, world_size=16, local_rank=1)
    monkeypatch.setenv("SLURM_LOCALID", "5")
    assert torchrun_rank() == TorchrunRank(rank=9, world_size=16, local_rank=5)
    monkeypatch.delenv("SLURM_LOCALID")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert torchrun_rank() == TorchrunRank(rank=9, world_size=16, local_rank=9)


def test_auto_is_cuda_only_if_available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device("auto") == resolve_device("mps") == torch.device("mps")
    assert dtype_name("auto", torch.device("mps")) == "float32"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == torch.device("cuda")


def test_a_missing_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError) as caught:
        resolve_device("cuda")
    assert str(caught.value) == ("device 'cuda': torch finds no GPU; expected cpu. Use --device cpu.")
    with pytest.raises(ConfigError, match="device 'mps': torch finds no GPU"):
        resolve_device("mps")


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_device("toaster")
    assert str(caught.value) == "unknown device 'toaster'; expected auto, cpu, cuda or mps."


def test_generation_and_training_call_nothing_of_cuda_on_other_devices(
    model_parts: ModelComponents, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No Apple GPU runs these tests: this keeps CUDA's functions out of its way, too."""
    sources = "".join(path.read_text() for path in Path(calumma.__file__).parent.rglob("*.py"))
    names = set(re.findall(r"torch\.cuda\.(\w+)", sources)) - {"is_available"}
    assert "synchronize" in names or "current_stream" in names
    for name in names:
        monkeypatch.setattr(torch.cuda, name, partial(pytest.fail, f"torch.cuda.{name} was called"))
    sampling = ImageSampling(guidance_scale=3.0, num_speculative_tokens=2)
    with apple_gpu(monkeypatch) as found:
        model = Model(model_parts, engine_config=EngineConfig(async_scheduling=True))
        model.generate(["a red circle"], max_new_tokens=20, image=sampling, image_first=True)
        model.prompt_logprobs([[1, 2, 3]])
        for quantization in (None, "int8"):
            Model(copy.deepcopy(model_parts), quantization=quantization).generate(["a red"], max_new_tokens=8)
        finetune(finetune_config(shards), model_parts.decoder, model.vocabulary, tmp_path)
    assert found == {"train/distributed.py:sum_numbers_later float64"}, "on the host, of plain numbers"


def test_a_device_without_float64_sums_in_float32() -> None:
    assert [sum_dtype(torch.device(name)) for name in ("cpu", "cuda", "mps")] == [
        torch.float64,
        torch.float64,
        torch.float32,
    ]


def test_dtypes_are_resolved_by_name() -> None:
    assert resolve_dtype("bfloat16") is torch.bfloat16
    with pytest.raises(ConfigError) as caught:
        resolve_dtype("float8")
    assert str(caught.value) == ("unknown dtype 'float8'; expected one of float32, bfloat16, float16.")


def test_a_requested_stop_raises_with_what_is_saved() -> None:
    stop = StopRequest()
    stop.check("nothing yet")
    stop.is_requested = True
    with pytest.raises(Interrupted) as caught:
        stop.check("step 7 of 20 is saved")
    assert str(caught.value) == ("stopped by a signal; step 7 of 20 is saved. Run the same command to resume.")


def test_a_signal_only_sets_the_request() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    stop = StopRequest()
    stop.install()
    try:
        signal.raise_signal(signal.SIGTERM)
        assert stop.is_requested
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
            signal.signal(number, handler)


def test_peak_memory_is_in_bytes() -> None:
    assert 10**7 < peak_memory_bytes(torch.device("cpu")) < 10**12


def test_server_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, read in (("CALUMMA_API_KEYS", api_keys_from_environment), ("RAY_ADDRESS", ray_address)):
        monkeypatch.delenv(name, raising=False)
        assert read() == ""
        monkeypatch.setenv(name, "a b")
        assert read() == "a b"


def test_vllm_gets_its_first_runner_unless_another_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VLLM_USE_V2_MODEL_RUNNER", "VLLM_WORKER_MULTIPROC_METHOD"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    prepare_for_vllm()
    prepare_for_vllm()
    assert (os.environ["VLLM_USE_V2_MODEL_RUNNER"], os.environ["VLLM_WORKER_MULTIPROC_METHOD"]) == ("0", "spawn")
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    prepare_for_vllm()
    assert os.environ["VLLM_USE_V2_MODEL_RUNNER"] == "1"


def test_the_loopback_interface_is_used_unless_one_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "mine")
    # Set first, so that monkeypatch restores it.
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "")
    monkeypatch.delenv("NCCL_SOCKET_IFNAME")
    use_loopback_interface()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "mine"
    assert os.environ["NCCL_SOCKET_IFNAME"].startswith("lo")


@pytest.mark.parametrize(
    ("environment", "expected"), [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)]
)
def test_idle_threads_sleep_early_unless_the_user_sets_how(
    environment: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", dict(environment))
    limit_thread_spinning()
    assert os.environ.get("GOMP_SPINCOUNT") == expected


@pytest.mark.parametrize(("imports", "expected"), [("", "1000"), ("import torch; ", "None")])
def test_the_library_limits_the_spinning_of_threads_where_torch_is_not_imported(imports: str, expected: str) -> None:
    program = f"import os; {imports}import calumma; calumma.ImageSampling; print(os.environ.get('GOMP_SPINCOUNT'))"
    environment = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    found = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == expected


STAT = """\
cpu  {0} 60 90 1000 10 1 2 3 0 0
cpu0 {0} 20 30 500 10 1 2 3 40 0
cpu1 7 40 60 500 0 0 0 0 0 0
cpu10 900 0 0 0 0 0 0 0 0 0
intr 123 4
"""


def test_the_seconds_of_a_cpu_that_is_not_idle_include_niced_programs_and_stolen_time() -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    assert busy_seconds(STAT.format(10), {0, 1}) == [66 / ticks, 107 / ticks]
    assert busy_seconds(STAT.format(10), {1, 3}) == [107 / ticks]
    assert busy_seconds("", {0}) == []


@pytest.mark.parametrize(
    ("used", "own", "expected"),
    [
        ([0.25, 0.0], 0.0, 1),
        ([0.25, 0.25], 0.0, 2),
        ([0.12, 0.13], 0.0, 1),
        ([0.1, 0.02], 0.0, 0),
        ([0.06] * 64, 0.0, 0),
        ([0.25, 0.25], 0.24, 1),
        ([0.2, 0.0], 0.3, 0),
        ([], 0.0, 0),
    ],
)
def test_cpus_that_other_programs_keep_busy_are_counted(used: list[float], own: float, expected: int) -> None:
    assert count_busy_cpus(used, own, elapsed=0.25) == expected


@pytest.mark.parametrize(("measured", "expected"), [([0], 0), ([1, 0], 0), ([1, 2], 1), ([2, 1], 1)])
def test_a_second_measurement_confirms_the_first(
    measured: list[int], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "_PROC_STAT", Path(__file__))
    monkeypatch.setattr(runtime, "_measure_busy_cpus", lambda seconds: measured.pop(0))
    assert (num_busy_cpus(), measured) == (expected, [])


def test_without_proc_stat_no_cpu_is_busy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(runtime, "_PROC_STAT", tmp_path / "stat")
    assert num_busy_cpus() == 0


@pytest.mark.skipif(not Path("/proc/stat").is_file(), reason="needs /proc/stat")
def test_a_niced_program_that_computes_keeps_a_cpu_busy() -> None:
    program = "print('ready', flush=True)\nwhile True: pass"
    command = ["nice", "-n", "10", sys.executable, "-S", "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None and process.stdout.readline()
            # Where programs share the CPUs it may get no half of one in a single measurement.
            assert any(num_busy_cpus() >= 1 for _ in range(40))
        finally:
            process.kill()
