"""Factory of backends: in this process, tensor-parallel, or vLLM servers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from calumma.checkpoints.model_folder import ModelComponents, save_model
from calumma.errors import ConfigError
from calumma.generate.async_engine import AsyncEngine
from calumma.generate.params import EngineConfig
from calumma.serve.backends import generation_backend
from calumma.serve.backends.generation_backend import BackendConfig, build_backend
from calumma.serve.vllm import async_llm, plugin
from calumma.serve.vllm.gateway import VLLMBackend


@pytest.fixture
def config(model_parts: ModelComponents, tmp_path: Path) -> BackendConfig:
    save_model(tmp_path / "tiny", model_parts)
    return BackendConfig(model=tmp_path / "tiny", device="cpu")


def test_the_default_is_an_engine_in_this_process(config: BackendConfig) -> None:
    backend = build_backend(config, "tiny")
    assert isinstance(backend, AsyncEngine)
    assert backend.error is None
    stream = backend.submit(backend.model.request(["a"], max_new_tokens=3, max_images=0))
    assert len(stream.sample().token_ids) <= 3
    backend.close()


def test_vllm_urls_select_servers(config: BackendConfig) -> None:
    backend = build_backend(replace(config, name="vllm", vllm_urls=("http://engine:8000",)), "qwen")
    assert isinstance(backend, VLLMBackend)
    assert backend.served_model_name == "qwen"
    backend.close()


def test_vllm_without_urls_is_started(config: BackendConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(plugin, "_installed_version", lambda: "0.32.1+cpu")
    monkeypatch.setattr(async_llm, "AsyncLLMBackend", lambda model, arguments: calls.append(arguments))
    engine = EngineConfig(max_num_seqs=5, max_cached_tokens=640)
    build_backend(replace(config, name="vllm", tensor_parallel_size=2, engine=engine), "tiny")
    assert calls[0]["model"] == str(config.model.resolve())
    assert (calls[0]["tensor_parallel_size"], calls[0]["max_num_seqs"]) == (2, 5)
    assert (calls[0]["dtype"], calls[0]["num_gpu_blocks_override"]) == ("float32", 21)
    monkeypatch.setattr(plugin, "_installed_version", lambda: None)
    with pytest.raises(ConfigError, match="needs vLLM, which is not installed"):
        build_backend(replace(config, name="vllm"), "tiny")


def test_a_tensor_parallel_size_selects_worker_processes(
    config: BackendConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(
        generation_backend,
        "TensorParallelAsyncEngine",
        lambda folder, size, **options: calls.append((folder, size, options)),
    )
    build_backend(replace(config, tensor_parallel_size=2), "tiny")
    options = {"device": "cpu", "dtype": "float32", "config": config.engine}
    assert calls == [(config.model.resolve(), 2, options)]
