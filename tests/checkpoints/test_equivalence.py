"""The same function as in other software: logits and gradients, and back to the same bits."""

from __future__ import annotations

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
from calumma.checkpoints.hf_weight_names import hf_decoder_names, num_norm_heads
from calumma.checkpoints.model_folder import ModelParts, load_model
from calumma.model.decoder import Decoder
from tests.checkpoints.drawn import GQA, MHA, bytes_of, mixed_ids, save_drawn
from tests.checkpoints.meta_reference import run_release

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
    """What the port computes before it masks the image codes."""
    return theirs.lm_head(theirs.model(input_ids=ids).last_hidden_state)


def learn(logits: Tensor, ids: Tensor) -> None:
    F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()


def assert_same_gradients(theirs: Any, ours: Decoder) -> None:
    """Equal to a thousandth of each parameter's largest; norms summed over a group's heads."""
    found, wanted = dict(ours.named_parameters()), dict(theirs.named_parameters())
    names = hf_decoder_names(ours.config)
    assert set(names) == set(found)
    for name, their_name in names.items():
        gradient, expected = found[name].grad, wanted[their_name].grad
        assert gradient is not None
        if num_norm_heads(name, ours.config):
            expected = expected.unflatten(0, (len(gradient), -1)).sum(1)
        assert expected.abs().max() > 0, name
        error = (gradient - expected).abs().max() / expected.abs().max()
        assert error < 1e-3, (name, float(error))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_logits_and_gradients_of_transformers_chameleon(
    shape: dict[str, Any], model_parts: ModelParts, tmp_path: Path
) -> None:
    ours = save_drawn(tmp_path, model_parts, **shape)
    theirs = transformers.ChameleonForConditionalGeneration.from_pretrained(tmp_path)
    ids = mixed_ids(model_parts)
    wanted, found = their_logits(theirs, ids), ours(ids)
    assert found.std() > 0.1
    assert torch.allclose(found, wanted, atol=1e-4, rtol=0)
    learn(wanted, ids)
    learn(found, ids)
    assert_same_gradients(theirs, ours)


@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
def test_logits_of_transformers_qwen3(
    heads: dict[str, Any], model_parts: ModelParts, tmp_path: Path
) -> None:
    ours = save_drawn(tmp_path / "own", model_parts, qk_norm="rms", rope_theta=500.0, **heads)
    source = tmp_path / "own"
    convert_model(open_model(source), source, tmp_path / "qwen3", ConversionTarget(layout="qwen3"))
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "qwen3", output_loading_info=True
    )
    assert type(theirs) is transformers.Qwen3ForCausalLM
    assert {key: list(found) for key, found in report.items() if found} == {}
    ids = mixed_ids(model_parts)
    with torch.no_grad():
        difference = (theirs(ids).logits - ours(ids)).abs().max()
    assert difference < 1e-5
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "qwen3")
    assert tokenizer("a red circle")["input_ids"] == [
        0,
        *model_parts.tokenizers.text.encode("a red circle"),
    ]
    assert theirs.generation_config.eos_token_id == 2


@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
def test_logits_of_a_release_computed_shard_by_shard(
    shards: int,
    order: dict[str, Any],
    heads: dict[str, Any],
    model_parts: ModelParts,
    tmp_path: Path,
) -> None:
    source, out = tmp_path / "own", tmp_path / "release"
    ours = save_drawn(source, model_parts, qk_norm_groups=shards, **order, **heads)
    convert_model(open_model(source), source, out, ConversionTarget(layout="meta"))
    (folder,) = (out / "models").iterdir()
    params = json.loads((folder / "params.json").read_text())
    ids = mixed_ids(model_parts)
    with torch.no_grad():
        wanted = run_release(folder, params, ids)
        assert torch.allclose(ours(ids), wanted, atol=1e-4, rtol=0)
    back = tmp_path / "back"
    convert_model(open_model(out), out, back, ConversionTarget(layout="calumma"))
    assert bytes_of(back) == bytes_of(source)


@pytest.mark.parametrize(
    ("shards", "groups", "dtype"),
    [
        (1, 1, torch.float32),
        (4, 1, torch.bfloat16),
        (4, 4, torch.float32),
        (4, 2, torch.bfloat16),
    ],
)
def test_from_transformers_through_meta_and_back_no_bit_is_lost(
    shards: int, groups: int, dtype: torch.dtype, model_parts: ModelParts, tmp_path: Path
) -> None:
    """hf -> calumma -> meta -> calumma -> hf; transformers itself writes the ends."""
    save_drawn(tmp_path / "drawn", model_parts, qk_norm_groups=groups)
    hf = tmp_path / "hf"
    port = transformers.ChameleonForConditionalGeneration
    theirs = port.from_pretrained(tmp_path / "drawn", dtype=dtype)
    theirs.save_pretrained(hf, max_shard_size=100_000)
    assert len(list(hf.glob("model-*-of-*.safetensors"))) > 2
    for name in ("tokenizer.json", "vq_decoder.safetensors"):
        (hf / name).write_bytes((tmp_path / "drawn" / name).read_bytes())
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
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "four")
    assert len(list((tmp_path / "three").glob("model-*-of-*.safetensors"))) > 2
    for name in ("tokenizer.json", "vq_decoder.safetensors"):
        assert (tmp_path / "four" / name).read_bytes() == (hf / name).read_bytes()

    first, last = port.from_pretrained(hf), port.from_pretrained(tmp_path / "three")
    wanted, found = first.state_dict(), last.state_dict()
    assert set(wanted) == set(found)
    assert [name for name in wanted if not torch.equal(wanted[name], found[name])] == []
    assert {tensor.dtype for tensor in found.values()} == {dtype}
    changed = {"model_parallel_size"} if groups == 1 else set()
    before, after = first.config.to_dict(), last.config.to_dict()
    assert {key for key in before if before[key] != after[key]} <= changed | {"_name_or_path"}


def test_the_image_tokenizer_comes_back_with_its_decoder(
    model_parts: ModelParts, tmp_path: Path
) -> None:
    source = tmp_path / "own"
    save_drawn(source, model_parts)
    convert_model(open_model(source), source, tmp_path / "meta", ConversionTarget(layout="meta"))
    checkpoint = torch.load(tmp_path / "meta/tokenizer/vqgan.ckpt", weights_only=True)
    names = set(checkpoint["state_dict"])
    assert {"encoder.down.0.block.0.conv1.weight", "quantize.embedding.weight"} <= names
    assert {"decoder.up.3.upsample.conv.bias", "decoder.mid.attn_1.proj_out.weight"} <= names
    convert_model(
        open_model(tmp_path / "meta"), source, tmp_path / "back", ConversionTarget(layout="calumma")
    )
    assert (
        load_model(tmp_path / "back").tokenizers.image.fingerprint
        == model_parts.tokenizers.image.fingerprint
    )
