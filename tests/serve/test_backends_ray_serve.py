"""Replicas through Ray Serve, with a stand-in that runs one of them in this process."""

import base64
import inspect
import multiprocessing
import os
import pickle
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient

from calumma.checkpoints.model_folder import ModelComponents, save_model
from calumma.errors import ConfigError, RankError
from calumma.generate import model as generate_model
from calumma.generate.model import Model
from calumma.generate.params import EngineConfig
from calumma.generate.tensor_parallel import launcher
from calumma.model.decoder import Decoder
from calumma.model.quantization import Int8Linear
from calumma.runtime import STOP
from calumma.serve.backends import ray_serve
from calumma.serve.backends.generation_backend import BackendConfig
from calumma.serve.backends.ray_serve import ReplicaConfig, init_ray, serve_replicas
from calumma.serve.config import ServeConfig
from tests.launch import SERVER
from tests.serve.chain import Authority, read
from tests.serve.conftest import WILD, serving, user_message


@pytest.fixture
def replicas(model_parts: ModelComponents, tmp_path: Path) -> ReplicaConfig:
    save_model(tmp_path / "tiny", model_parts)
    config = ServeConfig(served_model_name="tiny", port=8123)
    backend = BackendConfig(model=tmp_path / "tiny", device="cpu")
    return ReplicaConfig(backend=backend, config=config, api_keys=None, num_replicas=2)


def with_backend(replicas: ReplicaConfig, **changes: Any) -> ReplicaConfig:
    return replace(replicas, backend=replace(replicas.backend, **changes))


def test_a_replica_is_a_complete_server(replicas: ReplicaConfig) -> None:
    with TestClient(replicas.build(), "http://localhost") as client:
        body = {"messages": user_message("a"), "max_tokens": 2}
        assert client.post("/v1/chat/completions", json=body).status_code == 200


def test_a_replica_has_the_requested_dtype_and_quantization(
    replicas: ReplicaConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Decoder] = []
    monkeypatch.setattr(generate_model, "compile_blocks", calls.append)
    engine = EngineConfig(compile=True)
    small = with_backend(replicas, dtype="float16", quantization="int8", engine=engine)
    with TestClient(small.build(), "http://localhost") as client:
        body = {"messages": user_message("a"), "max_tokens": 2}
        assert client.post("/v1/chat/completions", json=body).status_code == 200
    (decoder,) = calls
    assert decoder.head.weight.dtype == torch.float16
    assert isinstance(decoder.blocks[0].get_submodule("attention.key"), Int8Linear)


def test_a_replica_loads_its_own_signing_keys(replicas: ReplicaConfig, tmp_path: Path) -> None:
    authority = Authority()
    config = replace(replicas.config, c2pa=authority.write(tmp_path))
    # As Ray sends it to another process.
    sent: ReplicaConfig = pickle.loads(pickle.dumps(replace(replicas, config=config)))
    assert b"PRIVATE" not in pickle.dumps(sent)
    with TestClient(sent.build(), "http://localhost") as client:
        result = client.post("/v1/images/generations", json={"prompt": "a"}).json()
    assert read(base64.b64decode(result["data"][0]["b64_json"]), authority).state == "Trusted"


def test_a_replica_with_tensor_parallelism_ends_when_a_worker_is_lost(
    replicas: ReplicaConfig, model_parts: ModelComponents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "SPAWN_CONTEXT", SERVER)
    ended: list[RankError] = []
    monkeypatch.setattr(ray_serve, "_exit_soon", ended.append)
    body = {"messages": user_message("a red"), "max_tokens": 30, "seed": 1, **WILD}
    with serving(Model(model_parts)) as (alone, _):
        expected = alone.post("/v1/chat/completions", json=body).json()["choices"]
    app = with_backend(replicas, tensor_parallel_size=2).build()
    with TestClient(app, "http://localhost", raise_server_exceptions=False) as client:
        assert client.post("/v1/chat/completions", json=body).json()["choices"] == expected
        assert client.get("/health").status_code == 200
        (worker,) = multiprocessing.active_children()
        worker.kill()
        while not ended:
            time.sleep(0.01)
        assert client.get("/health").status_code == 503
        result = client.post("/v1/chat/completions", json=body)
        assert (result.status_code, result.json()["error"]["code"]) == (503, "worker_lost")
    assert multiprocessing.active_children() == []


def test_a_replica_without_its_workers_ends_after_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    timers: list[tuple[Any, ...]] = []
    monkeypatch.setattr(ray_serve.threading, "Timer", lambda *what: SimpleNamespace(start=lambda: timers.append(what)))
    ray_serve._exit_soon(RankError("rank 1 has ended; expected it."))
    assert timers == [(1.0, os.kill, (os.getpid(), signal.SIGKILL))]


def test_a_missing_ray_is_reported_with_its_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError) as caught:
        init_ray()
    assert str(caught.value) == (
        "--num-replicas above 1 needs Ray Serve, which is not installed. `pip install 'calumma[ray]'` installs it."
    )


@pytest.mark.parametrize(
    ("address", "expected"),
    [("", {"address": "local", "include_dashboard": False}), ("ray://a", {"address": "ray://a"})],
)
def test_replicas_are_deployed_and_shut_down_on_a_signal(
    replicas: ReplicaConfig, monkeypatch: pytest.MonkeyPatch, address: str, expected: dict[str, Any]
) -> None:
    result: list[Any] = []
    monkeypatch.setenv("RAY_ADDRESS", address)

    def init(**options: Any) -> None:
        result.append(("init", options))

    def deployment(**options: Any) -> Any:
        result.append(("deployment", options))
        return lambda kind: SimpleNamespace(bind=lambda: "bound")

    def ingress(build: Any) -> Any:
        # Ray takes anything but a plain function for an app.
        assert inspect.isfunction(build)
        assert not inspect.signature(build).parameters
        return lambda: "app"

    serve = SimpleNamespace(
        start=lambda **options: result.append(("start", options)),
        deployment=deployment,
        ingress=ingress,
        run=lambda bound, name: result.append(("run", bound)),
        shutdown=lambda: result.append(("shutdown", {})),
    )
    ray = ModuleType("ray")
    ray.init, ray.serve = init, serve  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(STOP, "install", lambda: None)
    monkeypatch.setattr(STOP, "is_requested", False)

    def stop() -> None:
        result.append(("listening", {}))
        STOP.is_requested = True

    serve_replicas(replicas, stop)
    assert [name for name, _ in result] == [*("init", "start", "deployment", "run", "listening", "shutdown")]
    calls = dict(result)
    assert calls["init"] == expected
    assert calls["start"] == {"http_options": {"host": "127.0.0.1", "port": 8123}}
    assert calls["deployment"]["num_replicas"] == 2
    assert calls["deployment"]["ray_actor_options"] == {"num_gpus": 0}


def test_a_replica_reserves_a_gpu_for_each_of_its_ranks(
    replicas: ReplicaConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("calumma.runtime.resolve_device", lambda device: torch.device("cuda"))
    assert with_backend(replicas, tensor_parallel_size=4).num_gpus == 4
    monkeypatch.setattr("calumma.runtime.resolve_device", lambda device: torch.device("cpu"))
    assert with_backend(replicas, tensor_parallel_size=4).num_gpus == 0
