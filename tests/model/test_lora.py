"""Adapters at inference: each row of a batch computed with its own."""

import copy
import threading

import pytest
import torch

from calumma.errors import GenerationError
from calumma.model.decoder import Decoder
from calumma.model.lora import Adapter, AdapterBatch, LoRAMatrices, TokenRows, find_rows, require_adapter

IDS = torch.tensor([[0, 4, 5, 40, 41, 20, 21]])


def random_adapter(decoder: Decoder, seed: int, *, tables: bool = True) -> Adapter:
    """Return an adapter of rank 2 on two matrices of each block, and of rows of both tables."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) / 4

    matrices = {}
    for layer in range(decoder.config.num_layers):
        for part in ("attention.query", "feed_forward.down"):
            outputs, inputs = decoder.get_submodule(f"blocks.{layer}.{part}").weight.shape  # type: ignore[misc]
            matrices[f"blocks.{layer}.{part}"] = LoRAMatrices(random(2, inputs), random(outputs, 2), 1.5)
    rows = {
        name: TokenRows(torch.tensor([4, 5, 18, 40]), random(4, decoder.config.model_dim))
        for name in ("embedding", "head")
    }
    return Adapter(matrices=matrices, tables=rows if tables else {})


def merged(decoder: Decoder, adapter: Adapter) -> Decoder:
    """Return a plain decoder with the weights of an adapter."""
    made = copy.deepcopy(decoder)
    for name, update in adapter.matrices.items():
        weight = made.get_submodule(name).weight
        weight.copy_(weight + update.delta())  # type: ignore[operator]
    for name, table in adapter.tables.items():
        made.get_submodule(name).weight[table.token_ids] = table.rows  # type: ignore[index]
    return made


@pytest.fixture
def adapters(decoder: Decoder) -> dict[str, Adapter]:
    return {"one": random_adapter(decoder, 1), "two": random_adapter(decoder, 2, tables=False)}


def test_an_adapter_computes_what_merged_weights_do(decoder: Decoder, adapters: dict[str, Adapter]) -> None:
    adapted = copy.deepcopy(decoder)
    batch = AdapterBatch(adapted, adapters)
    assert torch.equal(adapted(IDS), decoder(IDS))
    for name, adapter in adapters.items():
        batch.select_all(name)
        expected = merged(decoder, adapter)(IDS)
        assert torch.allclose(adapted(IDS), expected, atol=1e-5)
        assert not torch.allclose(expected, decoder(IDS), atol=1e-2)
    batch.select_all("")
    assert torch.equal(adapted(IDS), decoder(IDS))


def test_rows_of_a_call_have_adapters_of_their_own(decoder: Decoder, adapters: dict[str, Adapter]) -> None:
    adapted = copy.deepcopy(decoder)
    batch = AdapterBatch(adapted, adapters)
    batch.select([("one", 7), ("", 7), ("two", 7), ("one", 7)])
    logits = adapted(IDS.repeat(4, 1))
    decoders = merged(decoder, adapters["one"]), decoder, merged(decoder, adapters["two"])
    one, plain, two = (each(IDS)[0] for each in decoders)
    for found, expected in zip(logits, (one, plain, two, one), strict=True):
        assert torch.allclose(found, expected, atol=1e-5)


def test_threads_select_adapters_of_their_own(decoder: Decoder, adapters: dict[str, Adapter]) -> None:
    adapted = copy.deepcopy(decoder)
    batch = AdapterBatch(adapted, adapters)
    batch.select_all("one")
    found: list[torch.Tensor] = []
    thread = threading.Thread(target=lambda: found.append(adapted(IDS)))
    thread.start()
    thread.join()
    assert torch.equal(found[0], decoder(IDS))


def test_rows_are_found_among_sorted_ids() -> None:
    index, is_found = find_rows(torch.tensor([3, 5, 9]), torch.tensor([5, 4, 9, 10, 3]))
    assert is_found.tolist() == [True, False, True, False, True]
    assert index[is_found].tolist() == [1, 2, 0]


def test_an_adapter_that_is_not_loaded_is_refused(decoder: Decoder, adapters: dict[str, Adapter]) -> None:
    batch = AdapterBatch(copy.deepcopy(decoder), adapters)
    require_adapter("", None)
    require_adapter("two", batch)
    with pytest.raises(GenerationError) as caught:
        require_adapter("three", batch)
    assert str(caught.value) == (
        "adapter 'three' is not loaded; expected one of the loaded ones: one, two. Load it with the model, by "
        "adapters={name: folder}."
    )
    with pytest.raises(GenerationError, match="the loaded ones: none"):
        require_adapter("one", None)
