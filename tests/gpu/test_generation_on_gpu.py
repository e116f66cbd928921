"""Generation on a GPU: CUDA graphs change nothing, images have the codes of a CPU, and quantization is close."""

import copy
from dataclasses import replace

import pytest
import torch

from calumma.generate.cuda_graphs import CUDAGraphRunner
from calumma.generate.engine import Engine
from calumma.generate.model_runner import ModelRunner
from calumma.generate.params import EngineConfig
from calumma.generate.sequence_state import SequenceState
from calumma.model.decoder import Decoder
from calumma.model.presets import preset
from calumma.model.quantization import quantize
from calumma.tokens.image import ImageTokenizer
from calumma.tokens.text import TextTokenizer
from calumma.vocabulary import Vocabulary
from tests.generate.test_engine import greedy, requests, run

PROMPTS = [[0, 30, 31, 32, 33], [0, 40, 41], list(range(24, 60)), [0, 50]]


@pytest.fixture
def vocabulary(text_tokenizer: TextTokenizer) -> Vocabulary:
    return text_tokenizer.vocabulary


@pytest.fixture
def on_device(decoder: Decoder, device: torch.device, dtype: torch.dtype) -> Decoder:
    """Return a decoder that flash attention can compute."""
    shape = replace(decoder.config, model_dim=64, num_heads=4, num_kv_heads=2)
    made = Decoder(shape)
    made.init_weights(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) / 8)
    return made.eval().requires_grad_(False).to(device, dtype)


@torch.no_grad()
def test_a_captured_step_computes_the_same(on_device: Decoder, dtype: torch.dtype) -> None:
    last = torch.zeros(9, dtype=torch.int64, device=on_device.embedding.weight.device)
    runner = ModelRunner(on_device, 200, last)
    sequences = [SequenceState(list(range(40 + n, 60 + 2 * n)), start_slot=30 * n) for n in range(5)]
    runner.execute([(sequence, sequence.num_uncomputed_tokens - 2) for sequence in sequences])
    before = [sequence.num_computed_tokens for sequence in sequences]
    graphs = CUDAGraphRunner(runner.decoder, runner.kv_cache, last)
    found = torch.stack([graphs.execute(sequences).clone() for _ in range(2)])
    for sequence, length in zip(sequences, before, strict=True):
        sequence.num_computed_tokens = length
    expected = torch.stack([runner.execute([(sequence, 1) for sequence in sequences]) for _ in range(2)])
    assert torch.allclose(found, expected, atol=5e-2 if dtype == torch.bfloat16 else 1e-5)


def test_cuda_graphs_and_async_scheduling_change_no_token(on_device: Decoder, vocabulary: Vocabulary) -> None:
    # In float32: a batch that is padded may be rounded otherwise.
    decoder, batch = on_device.float(), [greedy(request) for request in requests(PROMPTS)]
    found = {}
    for name, captured in (("plain", False), ("captured", True)):
        config = EngineConfig(cuda_graphs=captured, async_scheduling=captured, max_cached_tokens=1024)
        engine = Engine(decoder, vocabulary, 4, config=config)
        engine.warm_up()
        found[name] = [run(engine, batch) for _ in range(2)]
    assert found["captured"] == found["plain"]


def test_graphs_take_no_memory_after_the_warm_up(
    on_device: Decoder, vocabulary: Vocabulary, device: torch.device
) -> None:
    engine = Engine(on_device, vocabulary, 4, config=EngineConfig(cuda_graphs=True, max_cached_tokens=2048))
    engine.warm_up()
    run(engine, requests(PROMPTS))
    before = torch.cuda.memory_reserved(device) if device.type == "cuda" else 0
    for number in range(20):
        run(engine, requests(PROMPTS[: 1 + number % 4] * (1 + number % 3)))
    after = torch.cuda.memory_reserved(device) if device.type == "cuda" else 0
    assert after - before <= 64 * 2**20
    graphs = engine.model_runner._cuda_graphs
    assert graphs is not None and len(graphs._steps) <= 12


def test_images_have_the_codes_of_a_cpu(image_tokenizer: ImageTokenizer, device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    side = image_tokenizer.config.resolution
    pixels = torch.rand(8, 3, side, side, generator=generator) * 2 - 1
    expected = image_tokenizer.encode(pixels)
    moved = ImageTokenizer(copy.deepcopy(image_tokenizer.network).to(device))
    assert torch.equal(moved.encode(pixels.to(device)).cpu(), expected)


@torch.no_grad()
@pytest.mark.parametrize("quantization", ["int8", "int4", "fp8"])
def test_quantized_weights_are_close(device: torch.device, dtype: torch.dtype, quantization: str) -> None:
    if quantization == "fp8" and (device.type == "cpu" or torch.cuda.get_device_capability(device) < (8, 9)):
        pytest.skip("fp8 needs a GPU that multiplies float8")
    decoder = Decoder(preset("tiny", vocabulary_size=256, model_dim=256, feed_forward_dim=512))
    decoder.init_weights(0)
    decoder.eval().requires_grad_(False).to(device, dtype)
    ids = torch.arange(64, device=device)[None]
    expected = decoder(ids).float()
    quantize(decoder, quantization)  # type: ignore[arg-type]
    difference = (decoder(ids).float() - expected).norm() / expected.norm()
    assert 0 < float(difference) < 0.3
