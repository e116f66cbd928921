"""What an engine does on its device where the configuration leaves it open."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from calumma.errors import GenerationError
from calumma.generate.engine import Engine
from calumma.generate.engine_defaults import CPU_CACHED_TOKENS, gpu_cache_capacity, resolve_engine_config
from calumma.generate.params import EngineConfig, ImageSampling, Request
from calumma.generate.request import RequestState
from calumma.model.decoder import Decoder
from calumma.model.presets import preset
from calumma.vocabulary import Vocabulary

GB = 10**9


@pytest.fixture
def gpu_80gb(monkeypatch: pytest.MonkeyPatch) -> None:
    """Report a GPU of 80 GB with the weights of a 7B model in bfloat16."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (65 * GB, 80 * GB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 15 * GB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 14 * GB)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))


def on_gpu(*, tp_size: int = 1) -> Any:
    """Return what the resolution reads of a 7B decoder in bfloat16 on a GPU."""
    weight = SimpleNamespace(device=torch.device("cuda", 0), dtype=torch.bfloat16)
    shape = preset("7B", vocabulary_size=65_536)
    return SimpleNamespace(config=shape, embedding=SimpleNamespace(weight=weight), tp_size=tp_size)


@pytest.mark.usefixtures("gpu_80gb")
def test_eight_guided_images_with_an_image_in_each_prompt_fit_at_7b_on_80_gb() -> None:
    config = resolve_engine_config(EngineConfig(), on_gpu())
    vocabulary = Vocabulary.release()
    image = (vocabulary.begin_image, *range(4, 4 + 1024), vocabulary.end_image)
    prompt = (vocabulary.bos, *image, *range(20_000, 20_030), vocabulary.end_turn)
    request = Request(
        prompt_token_ids=prompt,
        max_new_tokens=1026,
        modality="image",
        max_images=1,
        image=ImageSampling(guidance_scale=3.0, image_guidance_scale=1.2),
    )
    state = RequestState.from_request(request, vocabulary, 1024, 4096)
    assert state.reservation.num_sequences == 3
    assert 8 * state.reservation.num_slots <= config.capacity
    assert config.max_num_seqs >= 8 * 3
    # 16,384 tokens admitted three.
    assert 4 * state.reservation.num_slots > CPU_CACHED_TOKENS
    assert config.capacity * 2**19 < 0.9 * 80 * GB - 14 * GB


@pytest.mark.usefixtures("gpu_80gb")
def test_a_gpu_decodes_by_graphs_and_compiled_blocks_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calumma.generate.engine_defaults.find_spec", lambda name: object())
    config = resolve_engine_config(EngineConfig(), on_gpu())
    assert (config.cuda_graphs, config.compile, config.async_scheduling) == (True, True, True)
    off = EngineConfig(cuda_graphs=False, compile=False, async_scheduling=False, max_cached_tokens=9000)
    assert resolve_engine_config(off, on_gpu()) == off
    sharded = resolve_engine_config(EngineConfig(), on_gpu(tp_size=2))
    assert (sharded.cuda_graphs, sharded.compile) == (False, False)
    assert sharded.capacity > config.capacity
    monkeypatch.setattr("calumma.generate.engine_defaults.find_spec", lambda name: None)
    assert resolve_engine_config(EngineConfig(), on_gpu()).compile is False
    # Without a flash attention kernel each sequence has a call of its own: no graphs.
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert resolve_engine_config(EngineConfig(), on_gpu()).cuda_graphs is False


def test_a_cpu_has_the_defaults_of_before(decoder: Decoder) -> None:
    engine = Engine(decoder, Vocabulary(num_codes=16, num_text=300), 4)
    config = engine.config
    assert (config.capacity, config.cuda_graphs, config.compile) == (16_384, False, False)
    assert config.async_scheduling is False


@pytest.mark.usefixtures("gpu_80gb")
def test_the_cache_is_bounded_by_what_the_batch_can_fill() -> None:
    shape, device = preset("7B", vocabulary_size=65_536), torch.device("cuda", 0)
    one = EngineConfig(max_num_seqs=1)
    assert gpu_cache_capacity(one, shape, torch.bfloat16, device) == shape.max_seq_len
    half = EngineConfig(gpu_memory_utilization=0.5)
    full = EngineConfig()
    assert gpu_cache_capacity(half, shape, torch.bfloat16, device) < gpu_cache_capacity(
        full, shape, torch.bfloat16, device
    )


def test_a_full_gpu_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (9 * 2**30, 80 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
    with pytest.raises(GenerationError) as caught:
        resolve_engine_config(EngineConfig(), on_gpu())
    assert str(caught.value) == (
        "the GPU has 9.0 GiB of 80.0 GiB free, which leaves a KV cache of 2,048 tokens; expected "
        "at least 4,096, one context. Raise gpu_memory_utilization, set max_cached_tokens, or "
        "quantize the weights."
    )
