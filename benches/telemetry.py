"""Measure what logging, diagnostics and stability monitoring cost in a training run.

    python benches/telemetry.py                    minutes, on the embedded corpus
    python benches/telemetry.py --quick            seconds, a tiny decoder
    python benches/telemetry.py --shards FOLDER    on other shards; --device cuda on a GPU

`ours` is a run of `calumma pretrain`: metrics of every step, diagnostics every 20 steps, the
stability monitor over 100 steps, `metrics.jsonl`, and `report.html` every 30 seconds. The peer
`direct` has the same decoder, loss, gradient clipping and optimizer, and nothing else. The sides
run interleaved, 20 steps each, on the same batches, which the peer has in memory.

`overhead` is the median over the rounds of the ratio of seconds, minus 1; `cpu_overhead` is the
same for the CPU time of the process, which other load on the machine does not change (on a GPU it
means nothing). `data_wait_fraction` is the fraction of our time that is spent waiting for batches;
the peer never waits, so `overhead_without_waiting` is the cost of the telemetry.
"""

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))  # the repository, when run as a script

from benches.measure import OURS, describe_machine, format_result
from calumma.batches.batch import Batch
from calumma.batches.loader import DataConfig, PackedLoader
from calumma.corpora.embedded import load_embedded
from calumma.documents.document import Text
from calumma.documents.writers import write_jsonl
from calumma.model.config import DecoderConfig
from calumma.model.decoder import Decoder
from calumma.shards.executors import build_local
from calumma.shards.reader import ShardReader
from calumma.shards.tasks import BuildJob
from calumma.tokens.folder import Tokenizers
from calumma.tokens.image import ImageTokenizer
from calumma.tokens.text import TextTokenizer
from calumma.tokens.vq.config import VQConfig
from calumma.tokens.vq.network import VQModel
from calumma.train.compile_and_recompute import apply_recompute_and_compile, autocast_context, compute_dtype
from calumma.train.config import (
    CheckpointConfig,
    DecoderShapeConfig,
    DiagnosticsConfig,
    OptimizerConfig,
    PretrainConfig,
    StageConfig,
    StageTwoConfig,
)
from calumma.train.loss import cross_entropy_and_z_loss
from calumma.train.optimizer import make_optimizers
from calumma.train.parallelize import RankLayout
from calumma.train.pretraining import pretrain
from calumma.train.training_loop import TrainCallbacks


@dataclass(frozen=True)
class BenchSetting:
    """Parameters of the benchmark."""

    shards: Path
    shape: DecoderShapeConfig
    seq_len: int
    batch_size: int
    num_rounds: int
    steps_per_turn: int
    """Steps of one side before the other side runs."""

    device: str
    num_workers: int | Literal["auto"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--shards", type=Path)
    parser.add_argument("--size", help="a preset such as 94M instead of width 160 and five layers")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=240)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=-1, help="loader processes; -1 is auto")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shards = args.shards or embedded_shards(folder / "shards", 120 if args.quick else 4000)
        shape = DecoderShapeConfig(model_dim=160, num_layers=5, num_heads=5, num_kv_heads=5, feed_forward_dim=448)
        if args.quick:
            shape = DecoderShapeConfig(model_dim=32, num_layers=2, num_heads=2, num_kv_heads=2)
        if args.size:
            shape = DecoderShapeConfig(**DecoderShapeConfig.size(args.size))
        setting = BenchSetting(
            shards=shards,
            shape=shape,
            seq_len=args.length,
            batch_size=2 if args.quick else args.rows,
            num_rounds=2 if args.quick else args.rounds,
            steps_per_turn=4 if args.quick else 20,
            device=args.device,
            num_workers="auto" if args.workers < 0 else args.workers,
        )
        ours, direct = measure(setting, folder / "run")
    settings = {"quick": args.quick, "setting": asdict(setting) | {"shards": str(args.shards or "")}}
    threads = torch.get_num_threads()
    print(format_result("telemetry", {OURS: ours, "direct": direct}, describe_machine(threads), **settings))


def measure(setting: BenchSetting, run: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Return seconds per step of both sides, the overheads, and the wait for data."""
    config = run_config(setting)
    synchronize = torch.cuda.synchronize if setting.device.startswith("cuda") else lambda: None
    direct_turn = build_direct_turn(setting, config, synchronize)
    ours: list[Clocks] = []
    direct: list[Clocks] = []
    started = read_clocks()

    def end_step(number: int) -> None:
        nonlocal started
        if number % setting.steps_per_turn == 0:
            synchronize()
            if number:
                ours.append(seconds_since(started))
            direct.append(direct_turn())
            started = read_clocks()

    callbacks = TrainCallbacks(end_step, lambda number, metrics: end_step(number))
    pretrain(config, run, callbacks)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    waited = sum(one["data_wait_fraction"] * one["step_seconds"] for one in lines[1:])
    # The first round is warm-up; the direct side has run one turn more than ours.
    pairs = list(zip(ours[1:], direct[1:-1], strict=True))
    elapsed, processor = ([(one[clock], other[clock]) for one, other in pairs] for clock in (0, 1))
    overhead = statistics.median(one / other for one, other in elapsed) - 1
    data_wait = waited / sum(one["step_seconds"] for one in lines[1:])
    return {
        "seconds_per_step": statistics.median(one for one, _ in elapsed) / setting.steps_per_turn,
        "overhead": overhead,
        "overhead_without_waiting": overhead - data_wait * (1 + overhead),
        "cpu_overhead": statistics.median(one / other for one, other in processor) - 1,
        "data_wait_fraction": data_wait,
    }, {"seconds_per_step": statistics.median(other for _, other in elapsed) / setting.steps_per_turn}


Clocks = tuple[float, float]
"""Wall-clock seconds, and CPU seconds of this process."""


def read_clocks() -> Clocks:
    return time.perf_counter(), time.process_time()


def seconds_since(started: Clocks) -> Clocks:
    now = read_clocks()
    return now[0] - started[0], now[1] - started[1]


def run_config(setting: BenchSetting) -> PretrainConfig:
    """Return a pre-training config that saves at its end only."""
    weights = dict.fromkeys(ShardReader(setting.shards).manifest.sources, 1.0)
    steps = setting.steps_per_turn * (setting.num_rounds + 1)
    return PretrainConfig(
        shards=setting.shards,
        tokenizers=setting.shards,
        steps=steps,
        checkpoint=CheckpointConfig(interval=steps),
        device=setting.device,
        model=setting.shape,
        data=DataConfig(
            seq_len=setting.seq_len, global_batch_size=setting.batch_size, num_workers=setting.num_workers
        ),
        diagnostics=DiagnosticsConfig(interval=setting.steps_per_turn),
        optimizer=OptimizerConfig(lr=1e-4),
        stage_one=StageConfig(weights=weights),
        stage_two=StageTwoConfig(weights=weights),
    )


def build_direct_turn(
    setting: BenchSetting, config: PretrainConfig, synchronize: Callable[[], None]
) -> Callable[[], Clocks]:
    """Return a function that runs plain steps on the same batches and returns its seconds."""
    reader = ShardReader(setting.shards)
    vocabulary = reader.manifest.vocabulary
    device = torch.device(setting.device)
    decoder = Decoder(DecoderConfig(vocabulary_size=vocabulary.size, **asdict(setting.shape)))
    decoder.init_weights(0)
    decoder.to(device).train()
    apply_recompute_and_compile(decoder, config.compute)
    [optimizer] = make_optimizers(decoder, config.optimizer)
    layout = RankLayout(compute_dtype=compute_dtype(config.compute, device))
    loader = PackedLoader(reader, config.data)
    loader.set_mixture(config.stage_one.weights)

    def step(batch: Batch) -> None:
        micro = batch.to(device)

        def read(hidden: torch.Tensor) -> torch.Tensor:
            sums = cross_entropy_and_z_loss(
                decoder.norm(hidden),
                decoder.head,
                micro.labels,
                micro.loss_mask,
                vocabulary,
                z_loss_weight=config.z_loss_weight,
            )
            return sums.total

        with autocast_context(device, layout):
            total = decoder(
                micro.input_ids, document_ids=micro.document_ids, position_ids=micro.position_ids, head_fn=read
            )
        (total / micro.loss_mask.sum()).backward()
        nn.utils.clip_grad_norm_(decoder.parameters(), config.optimizer.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()

    def turn() -> Clocks:
        batches = [loader.next() for _ in range(setting.steps_per_turn)]
        synchronize()
        started = read_clocks()
        for batch in batches:
            step(batch)
        synchronize()
        return seconds_since(started)

    return turn


def embedded_shards(folder: Path, max_documents: int) -> Path:
    """Build shards of the embedded corpus, with an untrained image tokenizer."""
    documents = list(itertools.islice(load_embedded(None, "train"), max_documents))
    documents = [replace(one, source="embedded") for one in documents]
    texts = [p.text for one in documents for p in one.content if isinstance(p, Text)]
    torch.manual_seed(0)
    network = VQModel(
        VQConfig(
            resolution=32,
            base_channels=32,
            channel_multipliers=(1, 1, 1),
            num_res_blocks=1,
            latent_channels=16,
            code_dim=8,
            num_codes=256,
        )
    )
    text = TextTokenizer.train(texts[:500], num_text=512, num_codes=256)
    tokenizers, corpus = folder / "tokenizers", folder / "embedded.jsonl"
    Tokenizers(text, ImageTokenizer(network)).save(tokenizers)
    write_jsonl(corpus, documents)
    build_local(BuildJob(out=folder, tokenizers=tokenizers), [corpus], 1)
    return folder


if __name__ == "__main__":
    main()
