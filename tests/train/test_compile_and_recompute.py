"""Recomputation and compilation give the same gradients."""

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.utils.checkpoint import CheckpointPolicy
from torch.utils.flop_counter import FlopCounterMode

from calumma.model.decoder import Decoder
from calumma.model.presets import preset
from calumma.train.compile_and_recompute import _selective_contexts, apply_recompute_and_compile, compute_dtype
from calumma.train.config import ComputeConfig

CONFIG = preset("tiny", vocabulary_size=50, dropout=0.1)
DOCUMENT_IDS = torch.tensor([[0] * 7 + [1] * 5, [0] * 12])


def learned(**compute: str) -> tuple[dict[str, Tensor], int, int]:
    """Gradients of one step, the bytes autograd kept for them, and all operations done."""
    decoder = Decoder(CONFIG)
    decoder.init_weights(0)
    decoder.train()
    apply_recompute_and_compile(decoder, ComputeConfig(**compute))  # type: ignore[arg-type]
    torch.manual_seed(0)
    ids = torch.randint(50, (2, 12))
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = decoder(ids, document_ids=DOCUMENT_IDS, head_fn=decoder.norm)
        out.square().sum().backward()
    gradients = {n: p.grad for n, p in decoder.named_parameters() if p.grad is not None}
    return gradients, sum(kept.values()), counter.get_total_flops()


def test_recomputation_changes_no_gradient() -> None:
    plain = learned()[0]
    for way in ("selective", "full"):
        made = learned(activation_checkpointing=way)[0]
        assert made.keys() == plain.keys()
        assert all(torch.equal(made[name], plain[name]) for name in plain), way


def test_full_recomputation_saves_less_and_computes_more() -> None:
    _, much, plain = learned()
    _, little, more = learned(activation_checkpointing="full")
    assert little < 0.8 * much
    assert more > 1.2 * plain


def test_selective_recomputation_repeats_no_matrix_product() -> None:
    assert learned(activation_checkpointing="selective")[2] == learned()[2]


@pytest.mark.parametrize("name", ["_scaled_mm", "_flash_attention_forward", "_scaled_dot_product_cudnn_attention"])
def test_selective_recomputation_saves_products_and_attention_of_gpus(name: str) -> None:
    forward, _ = _selective_contexts()
    operation = getattr(torch.ops.aten, name).default
    assert forward.policy_fn(None, operation) == CheckpointPolicy.MUST_SAVE
    assert forward.policy_fn(None, torch.ops.aten.mul.Tensor) == CheckpointPolicy.PREFER_RECOMPUTE


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # the compiler looks at it
@pytest.mark.parametrize("recompute", ["none", "selective"])
def test_compiled_blocks_give_the_same_gradients(recompute: str) -> None:
    plain = learned()[0]
    made = learned(compile="aot_eager", activation_checkpointing=recompute)[0]
    for name in plain:
        assert torch.allclose(made[name], plain[name], rtol=1e-4, atol=1e-5), name


@pytest.mark.filterwarnings("ignore:The .grad attribute")
@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_a_block_is_one_graph_whatever_is_recomputed(recompute: str) -> None:
    torch.compiler.reset()
    counters.clear()
    decoder = Decoder(CONFIG)
    apply_recompute_and_compile(decoder, ComputeConfig(compile="aot_eager", activation_checkpointing=recompute))  # type: ignore[arg-type]
    decoder(torch.zeros(2, 12, dtype=torch.int64)).sum().backward()
    assert (counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())) == (1, 0)


def test_the_dtype_depends_on_the_device() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert compute_dtype(ComputeConfig(), gpu) == torch.bfloat16
    assert compute_dtype(ComputeConfig(precision="float32"), gpu) == torch.float32
    assert compute_dtype(ComputeConfig(precision="bfloat16"), cpu) == torch.bfloat16


@pytest.mark.parametrize("has_products", [True, False])
def test_a_cpu_trains_in_bfloat16_where_that_is_quicker(has_products: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_products)
    cpu, quicker = torch.device("cpu"), torch.bfloat16 if has_products else torch.float32
    assert compute_dtype(ComputeConfig(), cpu, 96) == quicker
    assert compute_dtype(ComputeConfig(), cpu, 64) == compute_dtype(ComputeConfig(), cpu) == torch.float32
    assert compute_dtype(ComputeConfig(precision="float32"), cpu, 96) == torch.float32
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    assert compute_dtype(ComputeConfig(), cpu, 96) == torch.float32
