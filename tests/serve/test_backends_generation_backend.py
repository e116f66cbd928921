"""Factory of backends: in this process, tensor-parallel, or vLLM servers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from calumma.checkpoints.model_folder import ModelComponents, save_model
from calumma.generate.async_engine import AsyncEngine
from calumma.serve.backends import generation_backend
from calumma.serve.backends.generation_backend import BackendConfig, build_backend
from calumma.serve.backends.vllm import VLLMBackend


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


def test_vllm_urls_select_vllm(config: BackendConfig) -> None:
    backend = build_backend(replace(config, vllm_urls=("http://engine:8000",)), "qwen")
    assert isinstance(backend, VLLMBackend)
    assert backend.served_model_name == "qwen"
    backend.close()


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
