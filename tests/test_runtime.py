"""Devices, dtypes, and the wish to stop."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

from calumma.errors import ConfigError, Interrupted
from calumma.runtime import (
    Launch,
    StopRequest,
    cache_folder,
    choose_device,
    choose_dtype,
    keys_in_environment,
    launched,
    most_memory,
    ray_address,
    speak_on_loopback,
)


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CALUMMA_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert cache_folder() == str(Path("/cache/calumma"))
    monkeypatch.setenv("CALUMMA_CACHE", "/mine")
    assert cache_folder() == "/mine"


def test_torchrun_tells_a_process_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert launched() is None
    for name, value in (("RANK", "9"), ("WORLD_SIZE", "16"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert launched() == Launch(rank=9, size=16, local_rank=1)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    assert launched() == Launch(rank=9, size=16, local_rank=1, attempt=2)


def test_auto_takes_cuda_only_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == torch.device("cuda")


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError) as caught:
        choose_device("cuda")
    assert str(caught.value) == (
        "device 'cuda' is not there: this torch sees no GPU. Use --device cpu."
    )


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        choose_device("toaster")
    assert str(caught.value) == "device 'toaster' is not known; expected auto, cpu or cuda."


def test_dtypes_go_by_their_names() -> None:
    assert choose_dtype("bfloat16") is torch.bfloat16
    with pytest.raises(ConfigError) as caught:
        choose_dtype("float8")
    assert str(caught.value) == (
        "dtype 'float8' is not known; expected one of float32, bfloat16, float16."
    )


def test_a_stop_that_is_wanted_says_what_is_saved() -> None:
    stop = StopRequest()
    stop.check("nothing yet")
    stop.expected = True
    with pytest.raises(Interrupted) as caught:
        stop.check("step 7 of 20 is saved")
    assert str(caught.value) == (
        "stopped by a signal; step 7 of 20 is saved. The same command goes on from there."
    )


def test_a_signal_is_remembered_and_nothing_else_happens() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    stop = StopRequest()
    stop.install()
    try:
        signal.raise_signal(signal.SIGTERM)
        assert stop.expected
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
            signal.signal(number, handler)


def test_memory_is_told_in_bytes() -> None:
    assert 10**7 < most_memory(torch.device("cpu")) < 10**12


def test_what_servers_are_told_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, read in (("CALUMMA_KEYS", keys_in_environment), ("RAY_ADDRESS", ray_address)):
        monkeypatch.delenv(name, raising=False)
        assert read() == ""
        monkeypatch.setenv(name, "a b")
        assert read() == "a b"


def test_ranks_of_one_machine_speak_on_its_loopback_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "mine")
    # Set first, so that what is set here is taken back.
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "")
    monkeypatch.delenv("NCCL_SOCKET_IFNAME")
    speak_on_loopback()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "mine"
    assert os.environ["NCCL_SOCKET_IFNAME"].startswith("lo")
