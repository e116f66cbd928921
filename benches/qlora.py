"""Memory, time and loss of LoRA over float32, int8 and int4 weights.

    python benches/qlora.py            on a CPU: 24 layers of width 512, 20 steps each
    python benches/qlora.py --quick    two layers, 8 steps

Each side trains in a process of its own on one batch of random tokens, from the same weights:
adapters of rank 16 on all matrices of the blocks, vocabulary tables frozen. `weight_bytes` is the
size of all weights, `peak_memory_bytes` the peak of the process in training, without the float
weights that it quantizes before.
"""

import argparse
import copy
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # the repository, when run as a script

from benches.measure import describe_machine
from calumma.batches.batch import Batch
from calumma.model.config import DecoderConfig
from calumma.model.decoder import Decoder
from calumma.model.presets import PRESETS
from calumma.train.adapters import apply_adapters, frozen_weights, initial_adapter_weights
from calumma.train.config import OptimizerConfig
from calumma.train.config_finetune import TrainableConfig
from calumma.train.decoder_trainer import optimizer_step
from calumma.train.optimizer import make_optimizers
from calumma.vocabulary import Vocabulary

SIDES = ("float32", "int8", "int4")

_RETURN_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536"}
"""Lets glibc return the memory of freed tensors, so that the peak is that of live ones."""

SHAPE = replace(PRESETS["94M"], num_layers=24, vocabulary_size=8192)


def train(quantization: str, shape: DecoderConfig, num_steps: int) -> dict[str, float]:
    """Train adapters over one kind of weights, and return the figures."""
    start = Decoder(shape)
    start.init_weights(0)
    trainable = TrainableConfig(
        blocks="lora", embeddings="none", quantization=None if quantization == "float32" else quantization
    )
    vocabulary = Vocabulary(num_text=shape.vocabulary_size - 600, num_codes=512)
    with torch.device("meta"):
        decoder = Decoder(shape)
        apply_adapters(decoder, trainable, vocabulary)
    weights = dict(frozen_weights(decoder, start)) | dict(initial_adapter_weights(decoder, start, seed=0))
    decoder.load_state_dict(copy.deepcopy(weights), assign=True)
    del start, weights
    _reset_peak_memory()
    ids = np.random.default_rng(0).integers(4, shape.vocabulary_size, (1, 129))
    shape_of_batch = (1, 128)
    batch = Batch(
        input_ids=ids[:, :-1].copy(),
        labels=ids[:, 1:].copy(),
        loss_mask=np.ones(shape_of_batch, dtype=np.bool_),
        document_ids=np.zeros(shape_of_batch, dtype=np.int64),
        position_ids=np.arange(128)[None],
    )
    optimizers = make_optimizers(decoder, OptimizerConfig(lr=1e-3))
    losses, seconds = [], []
    for _ in range(num_steps):
        started = time.perf_counter()
        metrics = optimizer_step(
            decoder, optimizers, [batch], vocabulary=vocabulary, z_loss_weight=1e-5, max_grad_norm=1.0
        ).read()
        seconds.append(time.perf_counter() - started)
        losses.append(metrics.loss)
    return {
        "weight_bytes": sum(tensor.nbytes for tensor in decoder.state_dict().values()),
        "peak_memory_bytes": _memory_bytes("VmHWM"),
        "seconds_per_step": float(np.median(seconds)),
        "first_loss": losses[0],
        "last_loss": losses[-1],
    }


def _reset_peak_memory() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _memory_bytes(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def main() -> None:
    """Run every side in a process, and print a table and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="two layers, eight steps")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        shape = replace(SHAPE, num_layers=2) if args.quick else SHAPE
        print(json.dumps(train(args.side, shape, 8 if args.quick else args.steps)))
        return
    results = {}
    for side in SIDES:
        command = [sys.executable, __file__, "--side", side, "--steps", str(args.steps)]
        done = subprocess.run(
            command + ["--quick"] * args.quick,
            check=True,
            capture_output=True,
            text=True,
            env=os.environ | _RETURN_MEMORY,
        )
        results[side] = json.loads(done.stdout.splitlines()[-1])
        print(side, *(f"{name} {value:,.4g}" for name, value in results[side].items()), sep="  ")
    print(json.dumps({"bench": "qlora", "machine": describe_machine(), "sides": results}))


if __name__ == "__main__":
    main()
