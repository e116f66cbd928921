"""Compare logits and gradients with other software, and round trips bit for bit."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.nn import functional as F

from calumma.checkpoints.conversion import ConversionTarget, convert_model, open_model
from calumma.checkpoints.hf_weights import hf_decoder_names, num_norm_heads
from calumma.checkpoints.model_folder import ModelComponents, load_model
from calumma.model.decoder import Decoder
from tests.checkpoints.meta_reference import run_release
from tests.checkpoints.random_models import GQA, MHA, folder_bytes, mixed_token_ids, save_random_model

ORDERS: dict[str, dict[str, Any]] = {"pre": {}, "reordered": {"norm_order": "reordered"}}
HEADS = {"MHA": MHA, "GQA": GQA}
GROUPS: dict[str, dict[str, Any]] = {"1 group": {}, "4 groups": {"qk_norm_groups": 4}}
SHAPES = {
    f"{order}, {heads}, {groups}": ORDERS[order] | HEADS[heads] | GROUPS[groups]
    for order in ORDERS
    for heads in HEADS
    for groups in GROUPS
}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    yield
    transformers.logging.set_verbosity(before)


def their_logits(theirs: Any, ids: Tensor) -> Tensor:
    """Return the logits of transformers before it masks the image tokens."""
    return theirs.lm_head(theirs.model(input_ids=ids).last_hidden_state)


def backpropagate(logits: Tensor, ids: Tensor) -> None:
    F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()


def assert_same_gradients(theirs: Any, ours: Decoder) -> None:
    """Compare to 1e-3 of each parameter's largest; QK-norms are summed over a group's heads."""
    found, reference = dict(ours.named_parameters()), dict(theirs.named_parameters())
    names = hf_decoder_names(ours.config)
    assert set(names) == set(found)
    for name, their_name in names.items():
        gradient, expected = found[name].grad, reference[their_name].grad
        assert gradient is not None
        if num_norm_heads(name, ours.config):
            expected = expected.unflatten(0, (len(gradient), -1)).sum(1)
        assert expected.abs().max() > 0, name
        error = (gradient - expected).abs().max() / expected.abs().max()
        assert error < 1e-3, (name, float(error))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_transformers_chameleon(shape: dict[str, Any], model_parts: ModelComponents, tmp_path: Path) -> None:
    ours = save_random_model(tmp_path, model_parts, **shape)
    theirs = transformers.ChameleonForConditionalGeneration.from_pretrained(tmp_path)
    ids = mixed_token_ids(model_parts)
    reference, found = their_logits(theirs, ids), ours(ids)
    assert found.std() > 0.1
    assert torch.allclose(found, reference, atol=1e-4, rtol=0)
    backpropagate(reference, ids)
    backpropagate(found, ids)
    assert_same_gradients(theirs, ours)


@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
def test_transformers_qwen3(heads: dict[str, Any], model_parts: ModelComponents, tmp_path: Path) -> None:
    ours = save_random_model(tmp_path / "own", model_parts, qk_norm="rms", rope_theta=500.0, **heads)
    source = tmp_path / "own"
    convert_model(open_model(source), source, tmp_path / "qwen3", ConversionTarget(layout="qwen3"))
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "qwen3", output_loading_info=True)
    assert type(theirs) is transformers.Qwen3ForCausalLM
    assert {key: list(found) for key, found in report.items() if found} == {}
    ids = mixed_token_ids(model_parts)
    with torch.no_grad():
        difference = (theirs(ids).logits - ours(ids)).abs().max()
    assert difference < 1e-5
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "qwen3")
    assert tokenizer("a red circle")["input_ids"] == [0, *model_parts.tokenizers.text.encode("a red circle")]
    assert theirs.generation_config.eos_token_id == 2


@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
def test_release_computed_shard_by_shard(
    shards: int, order: dict[str, Any], heads: dict[str, Any], model_parts: ModelComponents, tmp_path: Path
) -> None:
    source, out = tmp_path / "own", tmp_path / "release"
    ours = save_random_model(source, model_parts, qk_norm_groups=shards, **order, **heads)
    convert_model(open_model(source), source, out, ConversionTarget(layout="meta"))
    (folder,) = (out / "models").iterdir()
    params = json.loads((folder / "params.json").read_text())
    ids = mixed_token_ids(model_parts)
    with torch.no_grad():
        reference = run_release(folder, params, ids)
        assert torch.allclose(ours(ids), reference, atol=1e-4, rtol=0)
    back = tmp_path / "back"
    convert_model(open_model(out), out, back, ConversionTarget(layout="calumma"))
    assert folder_bytes(back) == folder_bytes(source)


@pytest.mark.parametrize(
    ("shards", "groups", "dtype"),
    [(1, 1, torch.float32), (4, 1, torch.bfloat16), (4, 4, torch.float32), (4, 2, torch.bfloat16)],
)
def test_transformers_to_meta_and_back_is_bit_exact(
    shards: int, groups: int, dtype: torch.dtype, model_parts: ModelComponents, tmp_path: Path
) -> None:
    """Convert hf -> calumma -> meta -> calumma -> hf, as transformers writes and reads it."""
    save_random_model(tmp_path / "random", model_parts, qk_norm_groups=groups)
    hf = tmp_path / "hf"
    model_class = transformers.ChameleonForConditionalGeneration
    theirs = model_class.from_pretrained(tmp_path / "random", dtype=dtype)
    theirs.save_pretrained(hf, max_shard_size=100_000)
    assert len(list(hf.glob("model-*-of-*.safetensors"))) > 2
    for name in ("tokenizer.json", "vq_decoder.safetensors"):
        (hf / name).write_bytes((tmp_path / "random" / name).read_bytes())
    steps = [
        ("one", ConversionTarget(layout="calumma")),
        ("two", ConversionTarget(layout="meta", num_shards=shards)),
        ("three", ConversionTarget(layout="calumma", max_shard_bytes=40_000)),
        ("four", ConversionTarget(layout="calumma")),
    ]
    source = hf
    for name, target in steps:
        convert_model(open_model(source), source, tmp_path / name, target)
        source = tmp_path / name
    assert folder_bytes(tmp_path / "one") == folder_bytes(tmp_path / "four")
    assert len(list((tmp_path / "three").glob("model-*-of-*.safetensors"))) > 2
    for name in ("tokenizer.json", "vq_decoder.safetensors"):
        assert (tmp_path / "four" / name).read_bytes() == (hf / name).read_bytes()

    first, last = model_class.from_pretrained(hf), model_class.from_pretrained(tmp_path / "three")
    reference, found = first.state_dict(), last.state_dict()
    assert set(reference) == set(found)
    assert [name for name in reference if not torch.equal(reference[name], found[name])] == []
    assert {tensor.dtype for tensor in found.values()} == {dtype}
    changed = {"model_parallel_size"} if groups == 1 else set()
    before, after = first.config.to_dict(), last.config.to_dict()
    assert {key for key in before if before[key] != after[key]} <= changed | {"_name_or_path"}


def test_image_tokenizer_round_trip_with_decoder(model_parts: ModelComponents, tmp_path: Path) -> None:
    source = tmp_path / "own"
    save_random_model(source, model_parts)
    convert_model(open_model(source), source, tmp_path / "meta", ConversionTarget(layout="meta"))
    checkpoint = torch.load(tmp_path / "meta/tokenizer/vqgan.ckpt", weights_only=True)
    names = set(checkpoint["state_dict"])
    assert {"encoder.down.0.block.0.conv1.weight", "quantize.embedding.weight"} <= names
    assert {"decoder.up.3.upsample.conv.bias", "decoder.mid.attn_1.proj_out.weight"} <= names
    convert_model(open_model(tmp_path / "meta"), source, tmp_path / "back", ConversionTarget(layout="calumma"))
    assert load_model(tmp_path / "back").tokenizers.image.fingerprint == model_parts.tokenizers.image.fingerprint
