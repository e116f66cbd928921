"""The trainer of decoders: its state is complete, and micro-batches add up as if they were one batch."""

import copy
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

import calumma.train.loss as loss_module
from calumma.batches.batch import PADDING, Batch
from calumma.batches.loader import DataConfig, PackedLoader
from calumma.checkpoints.training_checkpoint import (
    RetentionPolicy,
    flatten_checkpoint,
    newest_checkpoint,
    write_checkpoint,
)
from calumma.model import attention_backends
from calumma.model.config import DecoderConfig
from calumma.model.decoder import Decoder
from calumma.plan.run_plan import fake_process_group
from calumma.shards.reader import ShardReader
from calumma.train.compile_and_recompute import apply_recompute_and_compile
from calumma.train.config import ComputeConfig, OptimizerConfig, ParallelConfig, ScheduleConfig, TrainConfig
from calumma.train.decoder_trainer import DecoderTrainer, optimizer_step
from calumma.train.distributed import SINGLE_PROCESS, init_distributed
from calumma.train.loss import cross_entropy_and_z_loss
from calumma.train.optimizer import decoder_state, make_optimizers, restore_decoder
from calumma.train.parallelize import SINGLE_RANK, RankLayout, gather_full_decoder, parallelize_decoder
from calumma.train.step_metrics import StepMetrics
from tests.model.cpu_flash_attention import cpu_flash_kernels
from tests.train.runs import assert_same_weights

CONFIG = TrainConfig(
    shards=Path("s"),
    steps=10,
    data=DataConfig(seq_len=32, global_batch_size=2, pack_window=2),
    optimizer=OptimizerConfig(name="muon", lr=1e-2),
    schedule=ScheduleConfig(warmup_steps=2),
)


def trainer(reader: ShardReader, shape: DecoderConfig, seed: int) -> DecoderTrainer:
    decoder = Decoder(shape)
    decoder.init_weights(seed)
    return DecoderTrainer(decoder, PackedLoader(reader, CONFIG.data), CONFIG, lambda step: {"pairs": 1})


def test_a_state_restored_in_another_trainer_makes_it_the_same(
    reader: ShardReader, decoder_config: DecoderConfig, tmp_path: Path
) -> None:
    one, other = trainer(reader, decoder_config, 0), trainer(reader, decoder_config, 1)
    for number in range(3):
        one.step(number)
    other.step(0)
    write_checkpoint(tmp_path, flatten_checkpoint(3, one.state(), {"seed": 0}), RetentionPolicy())
    saved = newest_checkpoint(tmp_path, {"seed": 0})
    assert saved is not None
    other.restore(saved)
    for number in range(3, 6):
        torch.manual_seed(number)
        first = one.step(number).read()
        second = other.step(number).read()
        assert first.loss == second.loss
    assert_same_weights(one.decoder, other.decoder)


def test_the_learning_rate_follows_the_schedule(reader: ShardReader, decoder_config: DecoderConfig) -> None:
    one = trainer(reader, decoder_config, 0)
    assert [one.step(number).read().lr for number in range(2)] == [5e-3, 1e-2]
    assert 0 <= (one.step(2).read().data_wait_seconds or 0.0) <= 60


def test_a_step_without_a_finite_gradient_is_skipped_and_the_run_goes_on(
    reader: ShardReader, decoder_config: DecoderConfig
) -> None:
    one = trainer(reader, decoder_config, 0)
    one.step(0)
    before = copy.deepcopy(one.decoder.state_dict())
    hook = one.decoder.norm.register_forward_hook(lambda module, x, made: made * torch.nan)
    metrics = one.step(1).read()
    hook.remove()
    assert (metrics.step_skipped, math.isnan(metrics.loss)) == (1, True)
    assert all(torch.equal(before[n], t) for n, t in one.decoder.state_dict().items())
    assert one.step(2).read().step_skipped == 0
    assert not torch.equal(before["head.weight"], one.decoder.head.weight)


class FakeCheckpoint:
    """A checkpoint of a state, without files."""

    def __init__(self, state: Any) -> None:
        self.state = tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), state)

    def load_meta(self) -> Any:
        return self.state

    def load_into(self, state: Any) -> None:
        pass


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("rolls_back", [False, True], ids=["resume", "rollback"])
def test_restored_optimizer_state_is_on_the_device_of_the_parameters(
    decoder_config: DecoderConfig, name: Any, rolls_back: bool
) -> None:
    config = OptimizerConfig(name=name)
    on_cpu = Decoder(decoder_config)
    optimizers = make_optimizers(on_cpu, config)

    def take_step(decoder: Decoder, optimizers: list[torch.optim.Optimizer]) -> None:
        for parameter in decoder.parameters():
            parameter.grad = torch.zeros_like(parameter)
        for optimizer in optimizers:
            optimizer.step()

    take_step(on_cpu, optimizers)
    saved: Any = FakeCheckpoint(decoder_state(on_cpu, optimizers) | {"position": {}})
    with FakeTensorMode(allow_non_fake_inputs=True):
        with torch.device("meta"):
            decoder = Decoder(decoder_config)
        weights = {n: torch.empty_like(t, device="cuda") for n, t in decoder.state_dict().items()}
        decoder.load_state_dict(weights, assign=True)
        optimizers = make_optimizers(decoder, config)
        if rolls_back:
            take_step(decoder, optimizers)
        restore_decoder(saved, decoder, optimizers)
        for optimizer in optimizers:
            assert optimizer.state
            for parameter, state in optimizer.state.items():
                assert parameter.device.type == "cuda"
                assert {tensor.device for tensor in state.values()} == {parameter.device}
        take_step(decoder, optimizers)


@pytest.fixture
def model(decoder_config: DecoderConfig) -> Decoder:
    made = Decoder(decoder_config)
    made.init_weights(0)
    return made


@pytest.fixture
def batch(reader: ShardReader) -> Batch:
    """Four rows with very different numbers of loss tokens."""
    loader = PackedLoader(reader, DataConfig(seq_len=32, global_batch_size=4, pack_window=2))
    loader.set_mixture({"pairs": 1.0, "chat": 1.0, "text": 1.0})
    made = loader.next()
    mask = made.loss_mask.copy()
    mask[0, 3:] = False
    return Batch(made.input_ids, made.labels, mask, made.document_ids, made.position_ids)


def step(
    model: Decoder,
    batches: list[Batch],
    reader: ShardReader,
    max_grad_norm: float = 1.0,
    layout: RankLayout = SINGLE_RANK,
) -> StepMetrics:
    return optimizer_step(
        model,
        [torch.optim.SGD(model.parameters(), lr=0.5)],
        batches,
        vocabulary=reader.manifest.vocabulary,
        z_loss_weight=1e-2,
        max_grad_norm=max_grad_norm,
        layout=layout,
    ).read()


@pytest.mark.parametrize("norm", [1.0, 1e9])
def test_one_batch_of_four_is_two_of_one_and_three(
    model: Decoder, batch: Batch, reader: ShardReader, norm: float
) -> None:
    other = copy.deepcopy(model)
    full = step(model, [batch], reader, norm)
    parts = [batch.rows(slice(0, 1)), batch.rows(slice(1, 4))]
    parted = step(other, parts, reader, norm)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.allclose(one, two, atol=1e-5)
    for name in ("loss", "loss_text", "loss_image", "log_z", "grad_norm"):
        assert getattr(full, name) == pytest.approx(getattr(parted, name), rel=1e-4)
    assert full.num_tokens == parted.num_tokens == (batch.document_ids != PADDING).sum()


def test_metrics_are_means_of_the_loss(model: Decoder, batch: Batch, reader: ShardReader) -> None:
    with torch.no_grad():
        stream = model(
            torch.from_numpy(batch.input_ids),
            head_fn=lambda hidden: hidden,
            document_ids=torch.from_numpy(batch.document_ids),
            position_ids=torch.from_numpy(batch.position_ids),
        )
        sums = cross_entropy_and_z_loss(
            model.norm(stream),
            model.head,
            torch.from_numpy(batch.labels),
            torch.from_numpy(batch.loss_mask),
            reader.manifest.vocabulary,
            z_loss_weight=0.0,
        )
    metrics = step(model, [batch], reader)
    assert metrics.loss == pytest.approx(float(sums.total) / batch.num_loss_tokens, rel=1e-5)
    assert metrics.loss_text == pytest.approx(float(sums.text / sums.num_text_tokens), rel=1e-5)
    assert metrics.loss_image == pytest.approx(float(sums.image / sums.num_image_tokens), rel=1e-5)
    inside = torch.from_numpy(batch.document_ids >= 0)
    assert metrics.output_norm == pytest.approx(float(stream[inside].norm(dim=-1).mean()), rel=1e-5)


def test_a_long_gradient_is_clipped(model: Decoder, batch: Batch, reader: ShardReader) -> None:
    before = [parameter.detach().clone() for parameter in model.parameters()]
    step(model, [batch], reader, max_grad_norm=1e-3)
    moved = [(p.detach() - b).square().sum() for p, b in zip(model.parameters(), before, strict=True)]
    assert float(torch.stack(moved).sum().sqrt()) == pytest.approx(0.5 * 1e-3, rel=1e-2)


def test_a_batch_of_padding_changes_nothing(model: Decoder, reader: ShardReader) -> None:
    before = copy.deepcopy(model.state_dict())
    pad = np.full((2, 8), 1)
    nothing = Batch(pad, pad, pad == 0, np.full((2, 8), PADDING), pad * 0)
    metrics = step(model, [nothing], reader)
    assert (metrics.loss, metrics.output_norm, metrics.num_tokens) == (0.0, 0.0, 0)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def test_the_gradient_norm_of_each_group_is_reported(model: Decoder, batch: Batch, reader: ShardReader) -> None:
    metrics = step(model, [batch], reader)
    groups = metrics.grad_norms
    assert set(groups) == {"embedding", "attention", "feed_forward", "norms", "head"}
    assert sum(norm**2 for norm in groups.values()) ** 0.5 == pytest.approx(metrics.grad_norm)
    assert metrics.max_logit > 0


class CollectiveCounter(TorchDispatchMode):
    """Counts collectives by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Count the operation if it is a collective, then run it."""
        if operation.namespace in ("c10d", "_c10d_functional"):
            self.counts[operation._schema.name.partition("::")[2]] += 1
        return operation(*args, **(kwargs or {}))


def test_replicas_reduce_gradients_once_per_step(
    decoder_config: DecoderConfig, batch: Batch, reader: ShardReader
) -> None:
    with fake_process_group(8) as dist:
        with torch.device("meta"):
            decoder = Decoder(decoder_config)
        layout = parallelize_decoder(decoder, dist, ParallelConfig(data_parallel_replicate=2), "cpu", torch.float32)
        decoder.to_empty(device="cpu")
        for parameter in decoder.parameters():
            torch.nn.init.zeros_(parameter.to_local())  # type: ignore[operator]
        optimizers = make_optimizers(decoder, OptimizerConfig())

        def collectives(num_micro_batches: int) -> Counter[str]:
            with CollectiveCounter() as counter:
                optimizer_step(
                    decoder,
                    optimizers,
                    [batch] * num_micro_batches,
                    vocabulary=reader.manifest.vocabulary,
                    z_loss_weight=1e-5,
                    max_grad_norm=1.0,
                    layout=layout,
                )
            return counter.counts

        one, four = collectives(1), collectives(4)
    num_groups = decoder_config.num_layers + 3  # blocks, embedding, norm and head
    assert one["allreduce_"] == four["allreduce_"] == num_groups + 3
    assert (one["_reduce_scatter_base_"], four["_reduce_scatter_base_"]) == (num_groups, 4 * num_groups)


class HostWaits(TorchDispatchMode):
    """Counts the operations that wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Count the operation if its result, or the shape of it, must reach the host."""
        name = operation.name().partition("::")[2].partition(".")[0]
        by_mask = name in ("index", "index_put_", "_index_put_impl_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if by_mask or name in ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero"):
            self.counts[name] += 1
        return operation(*args, **(kwargs or {}))


class CopyEvent:
    """A CUDA event that counts how often it is waited for."""

    waits: ClassVar[int] = 0

    def record(self) -> None:
        pass

    def synchronize(self) -> None:
        type(self).waits += 1


def plain_flex_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, block_mask: Any, enable_gqa: bool
) -> torch.Tensor:
    """Attend with the full mask; FlexAttention has no backward pass on a CPU."""
    rows, positions = torch.arange(len(q))[:, None, None], torch.arange(q.shape[2])
    mask = block_mask.mask_mod(rows, None, positions[:, None], positions)[:, None]
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=enable_gqa)


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the tensors of the CPU pass for those of a GPU, where code chooses by `is_cuda`."""
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: True), raising=False)
    monkeypatch.setattr(attention_backends, "_flex_attention", lambda device_type: plain_flex_attention)
    monkeypatch.setattr(torch.cuda, "Event", CopyEvent)
    monkeypatch.setattr(loss_module, "_terms", lambda device_type: loss_module._terms_compiled)
    monkeypatch.setattr(CopyEvent, "waits", 0)


def test_a_step_on_a_gpu_waits_once_for_all_metrics(
    model: Decoder, batch: Batch, reader: ShardReader, as_on_a_gpu: None
) -> None:
    optimizers = make_optimizers(model, OptimizerConfig())
    with HostWaits() as waits:
        launched = optimizer_step(
            model,
            optimizers,
            [batch.rows(slice(0, 1)), batch.rows(slice(1, 4))],
            vocabulary=reader.manifest.vocabulary,
            z_loss_weight=1e-2,
            max_grad_norm=1.0,
        )
    assert (waits.counts, CopyEvent.waits) == ({}, 0)
    with HostWaits() as waits:
        launched.read()
    assert (waits.counts, CopyEvent.waits) == ({}, 1)


def test_the_step_of_a_gpu_is_that_of_a_cpu(
    model: Decoder, batch: Batch, reader: ShardReader, request: pytest.FixtureRequest
) -> None:
    other = copy.deepcopy(model)
    expected = step(model, [batch], reader)
    request.getfixturevalue("as_on_a_gpu")
    made = step(other, [batch], reader)
    for (name, one), two in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.allclose(one, two, atol=1e-6), name
    assert made.to_dict() == pytest.approx(expected.to_dict(), rel=1e-5)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # the compiler looks at it
@pytest.mark.slow
def test_the_compiled_sharded_step_of_a_gpu_is_that_of_a_cpu(
    model: Decoder,
    batch: Batch,
    reader: ShardReader,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.compiler.reset()
    counters.clear()
    other = copy.deepcopy(model)
    expected = [step(model, [batch], reader) for _ in range(2)]
    request.getfixturevalue("as_on_a_gpu")
    monkeypatch.setattr(attention_backends, "has_flash_kernel", lambda device, dtype, head_dim: True)
    cpu = torch.device("cpu")
    with cpu_flash_kernels(), init_distributed(cpu, tmp_path, groups_one_rank=True):
        layout = parallelize_decoder(other, SINGLE_PROCESS, ParallelConfig(), "cpu", torch.float32)
        compute = ComputeConfig(compile="aot_eager", activation_checkpointing="selective")
        apply_recompute_and_compile(other, compute)
        # One micro-batch or two: documents and shapes differ.
        parts = [batch.rows(slice(0, 2)), batch.rows(slice(2, 4))]
        made = [step(other, batches, reader, layout=layout) for batches in ([batch], parts)]
        full = gather_full_decoder(other, layout)
    assert full is not None
    graphs = counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())
    assert graphs == (2, 0)  # the first shapes, then any; the layers share them
    for (name, one), two in zip(model.named_parameters(), full.parameters(), strict=True):
        assert torch.allclose(one, two, atol=1e-5), name
    for one_step, other_step in zip(made, expected, strict=True):
        assert one_step.to_dict() == pytest.approx(other_step.to_dict(), rel=1e-4)
