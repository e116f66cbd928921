"""Adapters: frozen and trained weights, and merging."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from calumma.checkpoints.peft_folder import read_adapter
from calumma.errors import ConfigError
from calumma.model.decoder import Decoder
from calumma.model.lora import AdapterBatch
from calumma.model.quantization import Int4Linear, Int8Linear, quantize_int4, quantize_int8
from calumma.tokens.text import TextTokenizer
from calumma.train.adapters import (
    QuantizedLoRALinear,
    apply_adapters,
    frozen_weights,
    image_vocab_rows,
    initial_adapter_weights,
    merge_adapters,
    require_shardable,
    save_adapter,
)
from calumma.train.config_finetune import FinetuneConfig, TrainableConfig
from calumma.train.finetuning import finetune
from calumma.train.loss import cross_entropy_and_z_loss
from calumma.vocabulary import Vocabulary
from tests.train.runs import KilledError, assert_same_weights, dies_after, logged_metrics
from tests.train.test_finetuning import config

LORA = TrainableConfig(blocks="lora", lora_rank=2, lora_alpha=4.0, embeddings="none")
BOTH = TrainableConfig(blocks="lora", lora_rank=2, vocab_rows="image")
ANOLE = TrainableConfig(blocks="none", embeddings="head", vocab_rows="image")
INT4 = replace(LORA, quantization="int4")
INT8 = replace(LORA, quantization="int8")
TABLES = TrainableConfig(blocks="none", embeddings="all")


def adapted(start: Decoder, trainable: TrainableConfig, vocabulary: Vocabulary) -> Decoder:
    """Return a copy of a decoder with initialized adapters."""
    made = Decoder(start.config)
    apply_adapters(made, trainable, vocabulary)
    weights = dict(frozen_weights(made, start)) | dict(initial_adapter_weights(made, start, seed=0))
    made.load_state_dict(weights)
    return made


@pytest.fixture
def vocabulary(text_tokenizer: TextTokenizer) -> Vocabulary:
    return text_tokenizer.vocabulary


IDS = torch.tensor([[0, 4, 5, 40, 41, 20, 21]])


@pytest.mark.parametrize("trainable", [LORA, BOTH, ANOLE, TABLES])
def test_initial_adapters_and_merging_change_nothing(
    trainable: TrainableConfig, decoder: Decoder, vocabulary: Vocabulary
) -> None:
    made = adapted(decoder, trainable, vocabulary)
    assert torch.allclose(made(IDS), decoder(IDS), atol=1e-6)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) / 8)
    merged = merge_adapters(made)
    assert merged.state_dict().keys() == decoder.state_dict().keys()
    assert not torch.allclose(made(IDS), decoder(IDS), atol=1e-3)
    assert torch.allclose(merged(IDS), made(IDS), atol=1e-5)


def trained(made: Decoder) -> set[str]:
    return {name for name, parameter in made.named_parameters() if parameter.requires_grad}


def test_the_configured_weights_are_trained(decoder: Decoder, vocabulary: Vocabulary) -> None:
    assert trained(adapted(decoder, ANOLE, vocabulary)) == {"head.rows"}
    assert trained(adapted(decoder, TABLES, vocabulary)) == {"embedding.weight", "head.weight"}
    lora = trained(adapted(decoder, LORA, vocabulary))
    assert len(lora) == 2 * 7 * decoder.config.num_layers
    assert all(name.endswith((".lora_A", ".lora_B")) for name in lora)
    both = trained(adapted(decoder, BOTH, vocabulary))
    assert both - lora == {"embedding.rows", "head.rows"}
    full = Decoder(decoder.config)
    apply_adapters(full, TrainableConfig(), vocabulary)
    assert trained(full) == {name for name, _ in full.named_parameters()}


def test_the_rows_of_images_are_their_codes_end_and_begin(vocabulary: Vocabulary) -> None:
    rows = image_vocab_rows(vocabulary)
    assert set(rows) == {*vocabulary.codes, vocabulary.end_image, vocabulary.begin_image}


def test_rows_get_their_gradient_of_the_full_table(decoder: Decoder, vocabulary: Vocabulary) -> None:
    full = Decoder(decoder.config)
    full.load_state_dict(decoder.state_dict())
    made = adapted(decoder, replace(ANOLE, embeddings="all"), vocabulary)
    for one in (full, made):
        hidden = one(IDS[:, :-1], head_fn=one.norm)
        mask = torch.ones_like(IDS[:, 1:], dtype=torch.bool)
        sums = cross_entropy_and_z_loss(hidden, one.head, IDS[:, 1:], mask, vocabulary, z_loss_weight=1e-2)
        sums.total.backward()
    rows = image_vocab_rows(vocabulary)
    part = slice(rows.start, rows.stop)
    assert torch.allclose(made.head.rows.grad, full.head.weight.grad[part], atol=1e-6)
    assert torch.allclose(made.embedding.rows.grad, full.embedding.weight.grad[part], atol=1e-6)
    assert made.head.weight.grad is None and made.embedding.weight.grad is None


def tuned(shards: Path, trainable: TrainableConfig, images: bool = False) -> FinetuneConfig:
    made = replace(config(shards), trainable=trainable)
    return replace(made, weights={"pairs": 1.0}) if images else made


def test_a_killed_run_of_adapters_ends_in_the_same_bits(
    shards: Path, decoder: Decoder, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    arguments = (tuned(shards, BOTH), decoder, vocabulary)
    expected = finetune(*arguments, tmp_path / "undisturbed")
    with pytest.raises(KilledError):
        finetune(*arguments, tmp_path / "killed", dies_after(3))
    assert_same_weights(finetune(*arguments, tmp_path / "killed"), expected)


def test_only_image_rows_change_and_are_saved(
    shards: Path, decoder: Decoder, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    made = finetune(tuned(shards, ANOLE, images=True), decoder, vocabulary, tmp_path)
    assert made is not None
    rows = image_vocab_rows(vocabulary)
    for name, tensor in decoder.state_dict().items():
        same = made.state_dict()[name] == tensor
        if name == "head.weight":
            assert not same[rows.start : rows.stop].all(dim=1).any()
            same[rows.start : rows.stop] = True
        assert same.all(), name
    adapter = read_adapter(tmp_path / "adapter", decoder.config)
    assert (*adapter.matrices, *adapter.tables) == ("head",)
    assert adapter.tables["head"].token_ids.tolist() == list(rows)
    assert torch.equal(adapter.tables["head"].rows, made.head.weight[rows.start : rows.stop])


@pytest.mark.parametrize("trainable", [LORA, BOTH, ANOLE, TABLES])
def test_a_saved_adapter_is_the_trained_weights(
    trainable: TrainableConfig, decoder: Decoder, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    made = adapted(decoder, trainable, vocabulary)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) / 8)
    save_adapter(tmp_path, made, Path("out/model"))
    plain = Decoder(decoder.config)
    plain.load_state_dict(decoder.state_dict())
    plain.requires_grad_(False)
    batch = AdapterBatch(plain, {"tuned": read_adapter(tmp_path / "adapter", decoder.config)})
    assert torch.equal(plain(IDS), decoder(IDS))
    batch.select_all("tuned")
    assert torch.allclose(plain(IDS), made(IDS), atol=1e-6)


def test_tensor_parallel_adapters_are_refused() -> None:
    require_shardable(TrainableConfig(), tensor_parallel=2)
    require_shardable(LORA, tensor_parallel=1)
    with pytest.raises(ConfigError) as caught:
        require_shardable(LORA, tensor_parallel=2)
    assert str(caught.value) == (
        "parallel.tensor_parallel=2 with trainable.blocks='lora'; expected 1. Set "
        "parallel.tensor_parallel=1; FSDP2 shards over all ranks."
    )


@pytest.fixture(scope="module")
def wide(decoder: Decoder) -> Decoder:
    """Return a decoder whose matrices can be int4."""
    made = Decoder(replace(decoder.config, feed_forward_dim=64))
    made.init_weights(0)
    return made.eval().requires_grad_(False)


def dequantized(start: Decoder, trainable: TrainableConfig) -> Decoder:
    """Return a decoder with the float values of the quantized weights."""
    made = copy.deepcopy(start)
    (quantize_int4 if trainable.quantization == "int4" else quantize_int8)(made)
    weights = dict(start.state_dict())
    for name, module in made.named_modules():
        if isinstance(module, Int4Linear | Int8Linear):
            weights[f"{name}.weight"] = module.dequantized(torch.float32)
    plain = Decoder(start.config)
    plain.load_state_dict(weights)
    return plain.eval().requires_grad_(False)


@pytest.mark.parametrize("trainable", [INT4, INT8])
def test_adapters_of_quantized_weights_alone_get_gradients(
    trainable: TrainableConfig, wide: Decoder, vocabulary: Vocabulary
) -> None:
    made = adapted(wide, trainable, vocabulary)
    assert torch.allclose(made(IDS), dequantized(wide, trainable)(IDS), atol=1e-5)
    made(IDS).square().sum().backward()
    with_gradients = {name for name, parameter in made.named_parameters() if parameter.grad is not None}
    assert with_gradients == trained(made) == trained(adapted(wide, LORA, vocabulary))
    layers = [module for module in made.modules() if isinstance(module, QuantizedLoRALinear)]
    assert len(layers) == 7 * wide.config.num_layers
    assert not any(isinstance(module, torch.nn.Linear) for module in made.blocks.modules())
    merged = merge_adapters(made)
    assert merged.state_dict().keys() == wide.state_dict().keys()
    assert torch.allclose(merged(IDS), made(IDS), atol=1e-5)


@pytest.mark.parametrize("trainable", [INT4, INT8])
def test_training_over_quantized_weights_is_that_over_their_float_values(
    trainable: TrainableConfig, wide: Decoder, vocabulary: Vocabulary, shards: Path, tmp_path: Path
) -> None:
    made = finetune(tuned(shards, trainable), wide, vocabulary, tmp_path / "quantized")
    plain = finetune(tuned(shards, LORA), dequantized(wide, trainable), vocabulary, tmp_path / "float")
    losses, expected = ([m["loss"] for m in logged_metrics(tmp_path / run)] for run in ("quantized", "float"))
    assert losses == pytest.approx(expected, abs=1e-5)
    assert losses[-1] < losses[0]
    assert made is not None and plain is not None
    for name, tensor in plain.state_dict().items():
        assert torch.allclose(made.state_dict()[name], tensor, atol=1e-5), name
    adapters = [read_adapter(tmp_path / run / "adapter", wide.config).matrices for run in ("quantized", "float")]
    for name, matrices in adapters[1].items():
        assert torch.allclose(adapters[0][name].delta(), matrices.delta(), atol=1e-5), name


def test_a_killed_run_over_int4_weights_ends_in_the_same_bits(
    wide: Decoder, vocabulary: Vocabulary, shards: Path, tmp_path: Path
) -> None:
    start = copy.deepcopy(wide)
    quantize_int4(start)
    expected = finetune(tuned(shards, INT4), start, vocabulary, tmp_path / "undisturbed")
    with pytest.raises(KilledError):
        finetune(tuned(shards, INT4), start, vocabulary, tmp_path / "killed", dies_after(3))
    assert_same_weights(finetune(tuned(shards, INT4), start, vocabulary, tmp_path / "killed"), expected)
    assert_same_weights(finetune(tuned(shards, INT4), wide, vocabulary, tmp_path / "of float"), expected)


def test_int4_weights_are_trained_with_adapters_only(
    wide: Decoder, vocabulary: Vocabulary, shards: Path, tmp_path: Path
) -> None:
    start = copy.deepcopy(wide)
    quantize_int4(start)
    with pytest.raises(ConfigError) as error:
        finetune(tuned(shards, LORA), start, vocabulary, tmp_path)
    assert str(error.value) == (
        "trainable.quantization=None of a model with int4 weights; expected 'int4'. Set trainable.blocks='lora' and "
        "trainable.quantization='int4', or start from the float weights."
    )
    with pytest.raises(ConfigError) as error:
        TrainableConfig(quantization="int8")
    assert str(error.value) == (
        "trainable.quantization='int8' with trainable.blocks='all'; expected 'lora', which freezes the matrices. Set "
        "trainable.blocks='lora', or leave quantization out."
    )
