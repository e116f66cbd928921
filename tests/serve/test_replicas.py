"""Replicas through Ray Serve, here by a stand-in that runs one of them in this process."""

from __future__ import annotations

import base64
import inspect
import pickle
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from starlette.testclient import TestClient

from calumma.checkpoints.model_folder import ModelParts, save_model
from calumma.errors import ConfigError
from calumma.runtime import STOP
from calumma.serve.config import ServeConfig
from calumma.serve.replicas import Replicas, join_ray, serve_replicas
from tests.serve.chain import Authority, read
from tests.serve.conftest import said


@pytest.fixture
def replicas(model_parts: ModelParts, tmp_path: Path) -> Replicas:
    save_model(tmp_path / "tiny", model_parts)
    config = ServeConfig(name="tiny", port=8123)
    return Replicas(model=tmp_path / "tiny", config=config, keys=None, count=2, device="cpu")


def test_a_replica_is_the_whole_server(replicas: Replicas) -> None:
    with TestClient(replicas.build(), "http://localhost") as client:
        body = {"messages": said("a"), "max_tokens": 2}
        assert client.post("/v1/chat/completions", json=body).status_code == 200


def test_a_replica_signs_with_the_files_that_it_finds(replicas: Replicas, tmp_path: Path) -> None:
    authority = Authority()
    config = replace(replicas.config, credential=authority.write(tmp_path))
    # As Ray sends it to another process.
    sent: Replicas = pickle.loads(pickle.dumps(replace(replicas, config=config)))
    assert b"PRIVATE" not in pickle.dumps(sent)
    with TestClient(sent.build(), "http://localhost") as client:
        told = client.post("/v1/images/generations", json={"prompt": "a"}).json()
    assert read(base64.b64decode(told["data"][0]["b64_json"]), authority).state == "Trusted"


def test_without_ray_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError) as caught:
        join_ray()
    assert str(caught.value) == (
        "--replicas above 1 needs Ray Serve, which is not installed. "
        "`pip install 'calumma[ray]'` brings it."
    )


@pytest.mark.parametrize(
    ("address", "wanted"),
    [("", {"address": "local", "include_dashboard": False}), ("ray://a", {"address": "ray://a"})],
)
def test_replicas_are_asked_for_and_ended_with_the_signal(
    replicas: Replicas, monkeypatch: pytest.MonkeyPatch, address: str, wanted: dict[str, Any]
) -> None:
    told: list[Any] = []
    monkeypatch.setenv("RAY_ADDRESS", address)

    def init(**options: Any) -> None:
        told.append(("init", options))

    def deployment(**options: Any) -> Any:
        told.append(("deployment", options))
        return lambda kind: SimpleNamespace(bind=lambda: "bound")

    def ingress(build: Any) -> Any:
        # Ray looks whether it is a plain function; anything else it takes for an app.
        assert inspect.isfunction(build)
        assert not inspect.signature(build).parameters
        return lambda: "app"

    serve = SimpleNamespace(
        start=lambda **options: told.append(("start", options)),
        deployment=deployment,
        ingress=ingress,
        run=lambda bound, name: told.append(("run", bound)),
        shutdown=lambda: told.append(("shutdown", {})),
    )
    ray = ModuleType("ray")
    ray.init, ray.serve = init, serve  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(STOP, "install", lambda: None)
    monkeypatch.setattr(STOP, "wanted", False)

    def stop() -> None:
        told.append(("listening", {}))
        STOP.wanted = True

    serve_replicas(replicas, stop)
    assert [name for name, _ in told] == [
        *("init", "start", "deployment", "run", "listening", "shutdown"),
    ]
    asked = dict(told)
    assert asked["init"] == wanted
    assert asked["start"] == {"http_options": {"host": "127.0.0.1", "port": 8123}}
    assert asked["deployment"]["num_replicas"] == 2
    assert asked["deployment"]["ray_actor_options"] == {"num_gpus": 0}
