"""Minutes until the model of still lifes draws well: a row of `dev/SCOREBOARD.md`.

    python benches/time_to_score.py --out out/evening --change "what changed"
    python benches/time_to_score.py --out out/try --config my.toml --every 500 --num-prompts 40

Runs `calumma demo --size evening` in `--out`, or resumes it, and keeps a model folder every
`--every` steps. The score is the mean of the six drawing skills, `--num-prompts` held-out prompts
each, seed 0. The minutes are those of documents, tokenizers, shards and all training steps before
the first model that reaches `--target`; scoring does not count. The last line is the row.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a file, it finds the other modules too

import calumma
from benches.measure import describe_machine
from calumma.checkpoints.sampling_params import SamplingOptions
from calumma.checkpoints.training_checkpoint import RetentionPolicy, saved_steps
from calumma.demo.evening import EveningConfig, EveningPipeline, load_evening_config
from calumma.evaluate.context import EvalConfig
from calumma.evaluate.still_life_judge import read_still_life
from calumma.evaluate.still_life_prompts import DRAWING_SKILLS, sample_drawing_prompts
from calumma.evaluate.still_lifes import draw_captions
from calumma.generate.model import Model
from calumma.model.config import DecoderConfig
from calumma.tokens.folder import Tokenizers
from calumma.train.hf_export import HFExporter
from calumma.train.training_loop import TrainCallbacks


class Progress:
    """Prints the name of each step."""

    def begin(self, number: int, name: str) -> None:
        """Print the name of a step that starts."""
        print(f"[{number}] {name}", flush=True)

    def skip(self, number: int, name: str) -> None:
        """Do nothing for a step that was finished before."""

    def training(self, name: str, steps: int) -> TrainCallbacks:
        """Return callbacks that do nothing."""
        return TrainCallbacks()

    def counting(self, name: str, total: int | None, unit: str) -> Callable[[int], None]:
        """Return a callback that does nothing."""
        return lambda number: None


def still_life_score(model: Model, num_prompts: int) -> float:
    """Return the mean of the six drawing skills."""
    config = EvalConfig(seed=0, max_prompts=num_prompts)
    passed = []
    for skill in DRAWING_SKILLS:
        prompts = sample_drawing_prompts(skill, num_prompts, 0)
        images = draw_captions(model, [prompt.caption for prompt in prompts], config)
        pairs = zip(prompts, images, strict=True)
        passed += [image is not None and prompt.score(read_still_life(image).scene) for prompt, image in pairs]
    return float(np.mean(passed))


def run(out: Path, config: EveningConfig, every: int) -> EveningPipeline:
    """Run the pipeline, keeping a model folder every some steps."""
    kept = {**config.pretrain, "checkpoint": {"keep_every": every}}
    interval = min(config.checkpoint_interval, every)
    pipeline = EveningPipeline(out, replace(config, pretrain=kept, checkpoint_interval=interval, max_prompts=1))
    pipeline.run(Progress())
    return pipeline


def models(pipeline: EveningPipeline, every: int) -> list[tuple[int, Path]]:
    """Write the model folder of each kept checkpoint, and return steps and folders in order."""
    config, tokenizers = pipeline.config, Tokenizers.load(pipeline.tokenizers)
    shape = asdict(config.pretrain_config(pipeline.out).model)
    exporter = HFExporter(
        run=pipeline.run_folder("pretrain"),
        shape=DecoderConfig(vocabulary_size=tokenizers.text.vocabulary.size, **shape),
        retention=RetentionPolicy(keep_every=every),
        tokenizers=tokenizers,
        sampling=SamplingOptions(text=config.text_sampling, image=config.image_sampling),
    )
    exporter.export_missing()
    kept = [step for step in saved_steps(exporter.run) if exporter.retention.is_permanent(step)]
    return [(step, exporter.folder(step)) for step in kept]


def minutes_until(pipeline: EveningPipeline, step: int) -> float:
    """Return the minutes of all work until a step of pre-training."""
    after = ("pre-training", "fine-tuning", "report")
    before = [seconds for name, seconds in pipeline.seconds().items() if name not in after]
    steps = [metrics["step_seconds"] or 0.0 for metrics in pipeline.metrics("pretrain") if metrics["step"] <= step]
    return (sum(before) + sum(steps)) / 60


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--config", type=Path, help="a TOML file instead of the shipped config")
    parser.add_argument("--target", type=float, default=0.8)
    parser.add_argument("--every", type=int, default=1000, help="steps between two scores")
    parser.add_argument("--num-prompts", type=int, default=40, help="prompts of each skill")
    parser.add_argument("--change", default="", help="what changed, for the row")
    args = parser.parse_args()
    pipeline = run(args.out, load_evening_config(args.config), args.every)
    minutes = "not reached"
    for step, folder in models(pipeline, args.every):
        score = still_life_score(calumma.load(folder), args.num_prompts)
        print(f"step {step:,}: score {score:.3f}, {minutes_until(pipeline, step):.1f} minutes", flush=True)
        if score >= args.target:
            minutes = f"{minutes_until(pipeline, step):.0f}"
            break
    shown = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    commit = shown.stdout.strip() or calumma.__version__
    print(f"| {date.today()} | {commit} | {describe_machine()} | {minutes} | {args.change} |")


if __name__ == "__main__":
    main()
