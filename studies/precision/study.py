"""Train the demo in bfloat16 and in float32, and ablate what a bfloat16 step keeps in float32.

    python studies/precision/study.py --out out/precision              both parts, then the tables
    python studies/precision/study.py --out out/precision --only demos --seeds 1

The demos are complete. Both precisions of a seed have the same documents, tokenizers (the image
tokenizer is the shipped model's) and shards, and differ in pre-training and fine-tuning. The
ablation trains decoders on the shards of the float32 demo of seed 0. Finished runs are skipped and
a killed one resumes, so the same command goes on; several processes may run different seeds.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from calumma.checkpoints.model_folder import ModelComponents
from calumma.demo.config import DemoConfig, load_demo_config
from calumma.demo.measure import measure_and_report
from calumma.demo.pipeline import DemoPipeline
from calumma.documents.readers import read_documents
from calumma.evaluate.context import EvalConfig
from calumma.evaluate.evaluator import evaluate
from calumma.files import read_json, write_json
from calumma.generate.model import Model
from calumma.model import attention_backends
from calumma.model.qk_norm import QKNorm
from calumma.runtime import use_deterministic_algorithms
from calumma.tokens.folder import Tokenizers
from calumma.train import decoder_trainer, loss
from calumma.train.config import ComputeConfig, PretrainConfig
from calumma.train.pretraining import pretrain
from calumma.train.training_loop import TrainCallbacks

PRECISIONS = ("float32", "bfloat16")
BITS = ("text_bits_per_token", "code_bits_per_token")

Patches = Callable[[ExitStack], None]


def attention_in_bfloat16(stack: ExitStack) -> None:
    """Compute attention of packed documents in bfloat16, its softmax included."""
    attend = attention_backends.causal_attention

    def lower(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q.bfloat16(), k.bfloat16(), v.bfloat16()).float()

    stack.enter_context(patch.object(attention_backends, "causal_attention", lower))


def norms_in_bfloat16(stack: ExitStack) -> None:
    """Round the input, the parameters and the output of every norm to bfloat16."""

    def norm(self: nn.RMSNorm, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return F.rms_norm(x.bfloat16(), self.normalized_shape, self.weight.bfloat16(), self.eps).to(x.dtype)

    def qk_norm(self: QKNorm, x: Tensor, head_dim: int, weight: Tensor, bias: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            lower = F.layer_norm(x.bfloat16(), (head_dim,), weight.bfloat16(), bias.bfloat16(), self.epsilon)
        return lower.to(x.dtype)

    stack.enter_context(patch.object(nn.RMSNorm, "forward", norm))
    stack.enter_context(patch.object(QKNorm, "_normalize", qk_norm))


def residual_stream_in_bfloat16(stack: ExitStack) -> None:
    """Round the embedding's output to bfloat16; the branches of the blocks are bfloat16 already."""

    def embed(self: nn.Embedding, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight).bfloat16()

    stack.enter_context(patch.object(nn.Embedding, "forward", embed))
    forward = nn.RMSNorm.forward
    stack.enter_context(patch.object(nn.RMSNorm, "forward", lambda self, x: forward(self, x.float())))


def loss_in_bfloat16(stack: ExitStack) -> None:
    """Compute softmax, log Z and cross-entropy on bfloat16 logits with bfloat16 results."""

    def terms(logits: Tensor, targets: Tensor, z_loss_weight: float) -> loss.ChunkTerms:
        return loss._terms_in_place(logits, targets, z_loss_weight, has_scale=False)

    stack.enter_context(patch.object(loss, "_terms", lambda device: terms))


def head_in_float32(stack: ExitStack) -> None:
    """Compute the products of the head in float32, the gradients' included."""
    stack.enter_context(patch.object(loss, "cast_for_matmul", lambda tensor: tensor.float()))


def weights_in_bfloat16(stack: ExitStack) -> None:
    """Round the weights to bfloat16 after each step: no master weights."""
    _after_each_step(stack, lambda optimizer: [p for group in optimizer.param_groups for p in group["params"]])


def optimizer_state_in_bfloat16(stack: ExitStack) -> None:
    """Round the averages of AdamW and Muon to bfloat16 after each step."""
    _after_each_step(
        stack, lambda optimizer: [x for state in optimizer.state.values() for x in state.values() if x.ndim]
    )


def _after_each_step(stack: ExitStack, tensors: Callable[[torch.optim.Optimizer], list[Tensor]]) -> None:
    apply_gradients = decoder_trainer.apply_gradients

    @torch.no_grad()
    def apply_and_round(optimizers: Sequence[torch.optim.Optimizer], grad_norm: Tensor) -> None:
        apply_gradients(optimizers, grad_norm)
        for optimizer in optimizers:
            for tensor in tensors(optimizer):
                tensor.copy_(tensor.bfloat16())

    stack.enter_context(patch.object(decoder_trainer, "apply_gradients", apply_and_round))


ABLATIONS: dict[str, tuple[Patches, ...]] = {
    "float32": (),
    "bfloat16": (),
    "head in float32": (head_in_float32,),
    "attention in bfloat16": (attention_in_bfloat16,),
    "norms in bfloat16": (norms_in_bfloat16,),
    "residual stream in bfloat16": (residual_stream_in_bfloat16,),
    "softmax and loss in bfloat16": (loss_in_bfloat16,),
    "optimizer state in bfloat16": (optimizer_state_in_bfloat16,),
    "weights in bfloat16": (weights_in_bfloat16,),
}
"""The first two as they are, all others changes of the second."""


@contextmanager
def ablation(name: str) -> Iterator[None]:
    """Change what a step computes in which precision."""
    with ExitStack() as stack:
        for change in ABLATIONS[name]:
            change(stack)
        yield


class Progress:
    """Prints the steps of a demo."""

    def begin(self, number: int, name: str) -> None:
        """Print a step that starts."""
        print(f"  {name}", flush=True)

    def skip(self, number: int, name: str) -> None:
        """Ignore a step that was finished before."""

    def training(self, name: str, steps: int) -> TrainCallbacks:
        """Print nothing of the steps of a training."""
        return TrainCallbacks()

    def counting(self, name: str, total: int | None, unit: str) -> Callable[[int], None]:
        """Print nothing of the items of a step."""
        return lambda count: None


def demo_config(path: Path | None, precision: str, seed: int) -> DemoConfig:
    """Return the demo's config with all three trainings in one precision."""
    config = load_demo_config(path, {"seed": seed})
    compute = {"compute": {"precision": precision}}
    tokenizer = config.image_tokenizer
    return replace(
        config,
        image_tokenizer=tokenizer and replace(tokenizer, precision=precision),  # type: ignore[arg-type]
        pretrain=config.pretrain | compute,
        finetune=config.finetune | compute,
    )


def demo_folder(out: Path, precision: str, seed: int) -> Path:
    """Return the folder of a demo."""
    return out / f"{precision}-{seed}"


def run_demos(out: Path, path: Path | None, seeds: Sequence[int]) -> None:
    """Run the demos that are not finished."""
    for seed in seeds:
        for precision in PRECISIONS:
            folder = demo_folder(out, precision, seed)
            print(folder.name, flush=True)
            DemoPipeline(folder, demo_config(path, precision, seed)).run(Progress(), measure_and_report)


def ablation_config(config: DemoConfig, demo: Path, name: str, seed: int, steps: int) -> PretrainConfig:
    """Return the demo's config of pre-training with fewer steps, on the shards of a demo."""
    pretraining = config.pretrain_config(demo)
    return replace(
        pretraining,
        steps=steps,
        seed=seed,
        data=replace(pretraining.data, seed=seed),
        compute=ComputeConfig(precision="float32" if name == "float32" else "bfloat16"),
    )


def run_ablations(out: Path, path: Path | None, seeds: Sequence[int], steps: int) -> None:
    """Train the decoders that are not finished, on the shards of the float32 demo of seed 0."""
    demo = DemoPipeline(demo_folder(out, "float32", 0), load_demo_config(path))
    documents = list(read_documents([demo.held_out]))[: demo.config.max_eval_documents]
    for seed in seeds:
        for name in ABLATIONS:
            folder = out / "ablation" / f"{name.replace(' ', '-')}-{seed}"
            if (folder / "bits.json").is_file():
                continue
            with ablation(name):
                decoder = pretrain(ablation_config(demo.config, demo.out, name, seed, steps), folder)
            assert decoder is not None, "the study is one process"
            model = Model(ModelComponents(decoder, Tokenizers.load(demo.tokenizers)))
            report = evaluate(model, documents, ["likelihood"], EvalConfig())
            bits = {metric.name: metric.value for metric in report.metrics if metric.name in BITS}
            write_json(folder / "bits.json", bits)
            print(folder.name, json.dumps(bits), flush=True)


def read_results(out: Path) -> dict[str, dict[str, Any]]:
    """Return the figures of the finished runs by name."""
    demos = {
        folder.parent.name: {row["name"]: row for row in read_json(folder)["figures"]}
        for folder in sorted(out.glob("*-*/report.json"))
    }
    ablations = {path.parent.name: read_json(path) for path in sorted(out.glob("ablation/*/bits.json"))}
    return {"demos": demos, "ablation": ablations}


def mean(values: Sequence[float]) -> float:
    """Return the mean; `nan` of nothing."""
    return sum(values) / len(values) if values else float("nan")


def demo_table(demos: dict[str, Any], seeds: Sequence[int]) -> Iterator[str]:
    """Yield the rows of the table of metrics: each seed in float32 and bfloat16, and the means."""
    seeds = [seed for seed in seeds if all(f"{precision}-{seed}" in demos for precision in PRECISIONS)]
    yield "| metric | float32 | bfloat16 | mean, difference | within the interval of float32 |"
    yield "|---|---|---|---|---|"
    for name in demos[f"float32-{seeds[0]}"] if seeds else ():
        rows = {p: [demos[f"{p}-{seed}"][name] for seed in seeds] for p in PRECISIONS}
        values = {p: [row["value"] for row in rows[p]] for p in PRECISIONS}
        intervals = [row["interval"] for row in rows["float32"]]
        pairs = zip(intervals, values["bfloat16"], strict=True)
        inside = [interval[0] <= value <= interval[1] for interval, value in pairs if interval]
        means = mean(values["float32"]), mean(values["bfloat16"])
        difference = f"{(means[1] / means[0] - 1) * 100:+.1f} %" if means[0] else ""
        cells = [", ".join(f"{value:.3f}" for value in values[p]) for p in PRECISIONS]
        yield (
            f"| `{name}` | {cells[0]} | {cells[1]} | {means[0]:.3f}, {means[1]:.3f}: {difference} | "
            f"{sum(inside)} of {len(inside)} |"
        )


def ablation_table(ablations: dict[str, Any], seeds: Sequence[int]) -> Iterator[str]:
    """Yield the rows of the table of ablations: bits of each seed and the difference from float32."""
    yield "| variant | text bits | code bits | difference from float32: text, codes |"
    yield "|---|---|---|---|"
    for name in ABLATIONS:
        found = [f"-{seed}" for seed in seeds if f"{name.replace(' ', '-')}-{seed}" in ablations]
        if not found:
            continue
        rows = [ablations[name.replace(" ", "-") + seed] for seed in found]
        base = [ablations["float32" + seed] for seed in found]
        cells = [", ".join(f"{row[metric]:.3f}" for row in rows) for metric in BITS]
        changes = [mean([r[metric] / b[metric] - 1 for r, b in zip(rows, base, strict=True)]) for metric in BITS]
        yield f"| {name} | {' | '.join(cells)} | {changes[0] * 100:+.2f} %, {changes[1] * 100:+.2f} % |"


def main() -> None:
    """Run what is missing, print the tables, and write `results.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", choices=["demos", "ablation", "tables"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ablation-seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=250, help="of a decoder of the ablation")
    parser.add_argument("--config", type=Path, help="of the demo (default: the shipped one)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    use_deterministic_algorithms()
    if args.only in (None, "demos"):
        run_demos(args.out, args.config, args.seeds)
    if args.only in (None, "ablation"):
        run_ablations(args.out, args.config, args.ablation_seeds, args.steps)
    results = read_results(args.out)
    write_json(args.out / "results.json", results)
    print("\n".join([*demo_table(results["demos"], args.seeds), "", *ablation_table(results["ablation"], args.seeds)]))


if __name__ == "__main__":
    main()
