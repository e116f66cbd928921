"""The decoder in vLLM: the tokens are those of this package's engine, for all variants of norms.

Each variant runs text, images, both, and images in prompts, greedily and sampled, with guidance in
two and three sequences and without, all at once.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from calumma.checkpoints.peft_folder import write_adapter
from calumma.generate.model import load
from calumma.hub import shipped_model_folder
from tests.model.test_lora import random_adapter
from tests.vllm.conftest import SaveModel
from tests.vllm.in_process import differing, generate, mixed_requests, start_engine

pytest.importorskip("vllm", reason="vllm is not installed; scripts/test-vllm installs it")

VARIANTS: dict[str, dict[str, Any]] = {
    "pre-norm, multi-head": {"num_kv_heads": 8},
    "pre-norm, grouped-query, 4 groups": {"qk_norm_groups": 4},
    "reordered, multi-head, 4 groups": {"norm_order": "reordered", "num_kv_heads": 8, "qk_norm_groups": 4},
    "reordered, grouped-query": {"norm_order": "reordered"},
    "Qwen3": {"qk_norm": "rms"},
    "RMSNorm, reordered, 2 groups": {"qk_norm": "rms", "norm_order": "reordered", "qk_norm_groups": 2},
    "without QK-norm": {"qk_norm": "none"},
}
PARALLEL = "reordered, multi-head, 4 groups"
DEMO_MODEL = Path(__file__).parents[2] / "out" / "demo" / "model"


def _compare(save_vllm_model: SaveModel, variant: str, **options: Any) -> None:
    folder, model = save_vllm_model(**VARIANTS[variant])
    requests = [
        *mixed_requests(model, 12, temperature=0.0, guided=False),
        *mixed_requests(model, 12, temperature=0.0),
        *mixed_requests(model, 12, temperature=0.9),
    ]
    with start_engine(folder, **options) as llm:
        found = generate(llm, model.text, requests)
    assert differing(model, requests, found) == []
    counts = model.vocabulary.count_modalities(id_ for ids in found for id_ in ids)
    assert min(counts.text_tokens, counts.image_tokens) > 200


@pytest.mark.parametrize("variant", VARIANTS)
def test_tokens_equal_the_engine_s(save_vllm_model: SaveModel, variant: str) -> None:
    _compare(save_vllm_model, variant)


def test_tokens_equal_the_engine_s_with_two_tensor_parallel_ranks(save_vllm_model: SaveModel) -> None:
    """The QK-norms of four groups of heads, two on each rank."""
    _compare(save_vllm_model, PARALLEL, tensor_parallel_size=2)


def test_requests_with_adapters_equal_the_engine_s(save_vllm_model: SaveModel) -> None:
    """Two adapter folders of this package and none, in one batch."""
    folder, model = save_vllm_model(norm_order="reordered")
    adapters = {name: folder.parent / name for name in ("one", "two")}
    for seed, path in enumerate(adapters.values()):
        adapter = random_adapter(model.decoder, seed, tables=False)
        write_adapter(path, adapter, model.decoder.config, folder)
    own = load(folder, adapters=adapters)
    requests = [
        replace(request, adapter=("", "one", "two")[number % 3])
        for number, request in enumerate(mixed_requests(model, 12, temperature=0.9))
    ]
    # On a CPU vLLM 0.32 takes the last slot for requests without adapter, so one stays empty.
    with start_engine(folder, enable_lora=True, max_loras=3, max_lora_rank=8) as llm:
        found = generate(llm, model.text, requests, adapters=adapters)
    assert differing(own, requests, found) == []
    plain = [replace(request, adapter="") for request in requests]
    assert [sample.token_ids for sample in own.generate_requests(plain)] != found


@pytest.mark.parametrize("folder", [shipped_model_folder(), DEMO_MODEL], ids=["shipped", "demo"])
def test_trained_models_draw_the_engine_s_images(folder: Path) -> None:
    """The model in the package, and one that scripts/demo has trained: same seed, same image."""
    if not folder.exists():
        pytest.skip("there is no model of scripts/demo")
    model = load(folder, dtype="float32")
    prompts = ["a large red circle", "a small green square", "a blue vase", "two apples"]
    options = {"modality": "image", "max_images": 1, "max_new_tokens": model.image.config.codes_per_image + 2}
    requests = [model.request([prompt], seed=seed, **options) for seed, prompt in enumerate(prompts)]
    with start_engine(folder) as llm:
        found = generate(llm, model.text, requests)
    samples = model.generate_requests(requests)
    assert found == [sample.token_ids for sample in samples]
    for ids, sample in zip(found, samples, strict=True):
        (image,) = sample.decoded_parts
        codes = [model.vocabulary.id_to_code(id_) for id_ in ids if id_ in model.vocabulary.codes]
        assert not isinstance(image, str) and model.decode_image(codes).tobytes() == image.tobytes()
