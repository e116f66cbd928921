"""The decoder in vLLM: the tokens are those of this package's engine, for all variants of norms.

Each variant runs text, images, both, and images in prompts, greedily and sampled, with guidance in
two and three sequences and without, all at once.
"""

from typing import Any

import pytest

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
