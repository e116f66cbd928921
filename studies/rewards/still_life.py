"""Prompts and scores for tuning the shipped model by rewards (GRPO).

    python studies/rewards/still_life.py seeds still-life --out out/rewards

tunes a model with three seeds, scores all and draws the rewards; one step each:

    python studies/rewards/still_life.py prompts out/rewards/prompts.parquet \
        --kinds new-questions new-questions captions refusals
    python studies/rewards/still_life.py prompts out/rewards/anchors.parquet --seed 1 \
        --kinds captions questions training training training edits
    calumma finetune runs/still-life-grpo.toml --out out/rewards/seed-0 --seed 0
    python studies/rewards/still_life.py score still-life out/rewards/seed-0/model --out out/rewards/scores.json
    python studies/rewards/still_life.py curves out/rewards/seed-* --out studies/rewards/curves.svg

Kinds of prompts, each with the rendered scene or the right answer as the reference:

    wordings       training scenes in wordings that pre-training never has
    edits          an image of a training scene and an instruction, half of them to replace a thing
    training       training scenes as in pre-training, such as the skills draw
    kept-edits     edits of the background or a color, at which the model is good
    combinations   half of the combinations that pre-training never shows; the others stay held out
    questions      an image of a training scene and a question of a hard kind, for `exact_answer`
    new-questions  the same of every kind in wordings that training never has, for `text_reward`
    captions       an image of a training scene and a request to describe it, for `text_reward`
    refusals       a request for a thing that the model does not know, for `text_reward`

A reward needs no image of a scene in the corpus, so these prompts cost no training document.
"""

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import calumma
from calumma.charts import Chart, Curve
from calumma.corpora.still_life import COLORS, THING_SIZES, THINGS, StillLife, Thing, sample_still_life
from calumma.corpora.still_life_captions import (
    QUESTION_KINDS,
    Question,
    choose,
    make_caption,
    make_questions,
    with_article,
)
from calumma.corpora.still_life_documents import (
    DESCRIBE_REQUESTS,
    DRAW_REQUESTS,
    HELD_OUT_UNKNOWN_THINGS,
    UNKNOWN_THINGS,
    refusal,
    sentence,
)
from calumma.corpora.still_life_edits import StillLifeEdit, sample_edit
from calumma.documents.document import Document, Image, Part, Text, Turn
from calumma.documents.writers import write_parquet
from calumma.evaluate.still_life_judge import read_still_life
from calumma.evaluate.still_life_prompts import (
    DRAWING_SKILLS,
    sample_drawing_prompts,
    sample_held_out_edits,
    sample_held_out_scenes,
)
from calumma.evaluate.still_life_scores import caption_agreement, score_caption, score_edit
from calumma.evaluate.still_lifes import first_image
from calumma.files import write_text
from calumma.generate.best_of import RewardInput, join_texts
from calumma.generate.events import Sample
from calumma.generate.loglikelihood import token_logprobs
from calumma.generate.model import Model

TEXT_KINDS = ("questions", "new-questions", "captions", "refusals")
PROMPT_KINDS = ("wordings", "edits", "training", "kept-edits", "combinations", *TEXT_KINDS)
WORDING_LAYOUTS = ("row", "column") * 2 + ("triple", "corners", "single")
"""Layouts of `wordings`: most of those in which more than the background is worded in a new way."""

ANCHOR_SKILLS = ("one_object", "one_object", "one_object", "counting", "position", "color_of_each")
"""Skills of `training`: most often the one that lost most by tuning on texts."""

EDITED_LAYOUTS = ("single", "row", "column", "corners")

HARD_QUESTIONS = ("where", "existence", "relation check", "count of", "color")
NEW_QUESTIONS = (*QUESTION_KINDS, "color", "size", *("count of",) * 3)
"""Kinds of `new-questions`: more of what the shipped model answers wrongly."""

COUNT_LAYOUTS = (("row", 2), ("column", 2), ("triple", 3), ("corners", 4))
MEASURED = {"one_object": "single", "colors": "single", "counting": "count"}
"""Skills whose scenes are divided, with the kind of scene."""

NUM_PROMPTS = 960
CONFIG = Path(__file__).parents[2] / "runs" / "still-life-grpo.toml"
MAX_ANSWER_TOKENS = 64
"""Most tokens of an answer besides those of an image."""

Score = tuple[list[str], list[bool]]
"""The group of each prompt, which is resampled as a whole for intervals, and whether its answer passes."""


def combination(scene: StillLife) -> str:
    """Return what decides the split of a scene of one kind of thing."""
    thing = scene.things[0].name
    return f"{len(scene.things)} {thing} {scene.layout}" if scene.is_count else f"{thing} on {scene.background}"


def held_out_scenes(kind: str) -> list[StillLife]:
    """Return all held-out scenes of a kind, "single" or "count"."""
    shown = [(color, thing) for color in COLORS for thing in THINGS if thing.color != color]
    if kind == "single":
        scenes = [StillLife(color, kind, (thing,), size) for color, thing in shown for size in THING_SIZES]
        return [scene for scene in scenes if scene.split == "combinations"]
    counts = [
        StillLife(color, layout, (thing,) * number) for color, thing in shown for layout, number in COUNT_LAYOUTS
    ]
    return [scene for scene in counts if scene.split == "counts"]


def halves(kind: str) -> tuple[list[StillLife], list[StillLife]]:
    """Return the held-out scenes of a kind whose combinations are prompts, and the others."""
    scenes = held_out_scenes(kind)
    of_prompts = set(sorted({combination(scene) for scene in scenes})[::2])
    return (
        [scene for scene in scenes if combination(scene) in of_prompts],
        [scene for scene in scenes if combination(scene) not in of_prompts],
    )


def prompt_documents(kinds: Sequence[str], count: int, seed: int) -> Iterator[Document]:
    """Yield prompts of some kinds, equally often."""
    singles, counts = halves("single")[0], halves("count")[0]
    for number in range(count):
        random = np.random.default_rng([seed, number, 10])
        kind = choose(random, kinds)
        request: tuple[Part, ...]
        answer: Part
        attributes = {"kind": kind}
        if kind in ("edits", "kept-edits"):
            edit = _sample_edit(kind, random)
            request, answer = (_image(edit.before), Text(sentence(edit.instruction))), _image(edit.after)
        elif kind == "captions":
            scene = sample_still_life(random)
            request = (_image(scene), Text(choose(random, DESCRIBE_REQUESTS)))
            answer = Text(make_caption(scene, random, wordings="plain", complete=True))
            attributes |= _scene_attributes(scene)
        elif kind == "refusals":
            thing = choose(random, UNKNOWN_THINGS)
            request = (Text(choose(random, DRAW_REQUESTS).format(with_article(thing))),)
            answer = Text(refusal(thing))
        elif kind in TEXT_KINDS:
            scene, question = _sample_question(random, is_new=kind == "new-questions")
            request, answer = (_image(scene), Text(question.text)), Text(question.full_answer)
            attributes["answer"] = question.answer
        else:
            if kind == "combinations":
                scene = choose(random, singles if random.random() < 0.75 else counts)
            elif kind == "training":
                scene = _sample_skill_scene(random)
            else:
                scene = sample_still_life(random, choose(random, WORDING_LAYOUTS))
            wordings = "held-out" if kind == "wordings" else "all"
            caption = make_caption(scene, random, wordings=wordings, complete=True)
            request, answer = (Text(choose(random, DRAW_REQUESTS).format(caption)),), _image(scene)
        turns = (Turn("user", request), Turn("assistant", (answer,)))
        yield Document(id=f"prompt-{number}", messages=turns, attributes=attributes)


def _scene_attributes(scene: StillLife) -> dict[str, str]:
    slots = ";".join(thing.name if thing else "" for thing in scene.slots)
    return {"background": scene.background, "layout": scene.layout, "slots": slots, "size": scene.size}


def text_reward(completion: RewardInput) -> float:
    """Reward a text from 0 to 1.

    A caption gets the fraction of facts on which it and the scene agree, an answer 1 if it is right,
    a refusal 1 if it is one; 0 with an image, or if the model does not end.
    """
    found = completion.attributes
    if completion.finish_reason != "stop" or completion.images:
        return 0.0
    if found["kind"] == "refusals":
        return float("cannot draw" in completion.text)
    if "answer" in found:
        return float(Question(found["kind"], "", found["answer"], 1).accepts(completion.text))
    things: dict[str, Thing | None] = {"": None, **{thing.name: thing for thing in THINGS}}
    slots = tuple(things[name] for name in found["slots"].split(";"))
    scene = StillLife(found["background"], found["layout"], slots, found.get("size", ""))
    return caption_agreement(scene, completion.text)


def _sample_skill_scene(random: np.random.Generator) -> StillLife:
    skill = DRAWING_SKILLS[choose(random, ANCHOR_SKILLS)]
    while not skill.accepts(scene := sample_still_life(random, choose(random, skill.layouts))):
        pass
    return scene


def _sample_edit(kind: str, random: np.random.Generator) -> StillLifeEdit:
    while True:
        scene = sample_still_life(random, choose(random, EDITED_LAYOUTS))
        change = choose(random, ("background", "recolor")) if kind == "kept-edits" else None
        if kind == "edits" and random.random() < 0.5:
            change = "replace"
        if (edit := sample_edit(scene, random, change)) is not None:
            return edit


def _sample_question(random: np.random.Generator, *, is_new: bool) -> tuple[StillLife, Question]:
    while True:
        scene = sample_still_life(random)
        kind = choose(random, NEW_QUESTIONS if is_new else HARD_QUESTIONS)
        if fitting := [q for q in make_questions(scene, random, held_out=is_new) if q.kind == kind]:
            return scene, fitting[0]


def _image(scene: StillLife) -> Image:
    return Image(data=scene.to_png(), name="a still life")


def answer(model: Model, prompts: Sequence[Sequence[Part]]) -> list[Sample]:
    """Answer prompts with at most one image each, with the model's sampling parameters."""
    length = model.image.config.codes_per_image + MAX_ANSWER_TOKENS
    requests = [
        model.request(parts, max_images=1, max_new_tokens=length, seed=seed) for seed, parts in enumerate(prompts)
    ]
    return model.generate_requests(requests)


def read_scenes(samples: Sequence[Sample]) -> list[StillLife | None]:
    """Read the first image of each answer; None for an answer without."""
    images = [first_image(sample) for sample in samples]
    return [None if image is None else read_still_life(image).scene for image in images]


def draw(model: Model, captions: Sequence[str]) -> list[StillLife | None]:
    """Draw captions and read the images."""
    return read_scenes(answer(model, [[Text(f"Draw {caption}.")] for caption in captions]))


def score_half(model: Model, skill: str, half: int, count: int) -> Score:
    """Draw scenes of one half of the held-out combinations, which are the groups."""
    definition = DRAWING_SKILLS[skill]
    scenes = [scene for scene in halves(MEASURED[skill])[half] if definition.accepts(scene)]
    chosen = [scenes[number % len(scenes)] for number in range(count)]
    wordings = [np.random.default_rng([half, number, 11]) for number in range(count)]
    captions = [make_caption(scene, random, complete=True) for scene, random in zip(chosen, wordings, strict=True)]
    pairs = zip(chosen, draw(model, captions), strict=True)
    passed = [bool(read and definition.score(true, read)) for true, read in pairs]
    return [combination(scene) for scene in chosen], passed


def score_skill(model: Model, skill: str, count: int, *, new_wording: bool = False) -> Score:
    """Draw the prompts of the `still-lifes` task."""
    prompts = sample_drawing_prompts(skill, count, 0, new_wording=new_wording)
    pairs = zip(prompts, draw(model, [prompt.caption for prompt in prompts]), strict=True)
    return [combination(prompt.scene) for prompt in prompts], [bool(read and p.score(read)) for p, read in pairs]


def score_edits(model: Model, count: int) -> Score:
    """Edit images of held-out scenes as the `still-lifes` task does; everything must be right."""
    edits = sample_held_out_edits(count, 0)
    samples = answer(model, [[_image(edit.before), Text(sentence(edit.instruction))] for edit in edits])
    pairs = zip(edits, read_scenes(samples), strict=True)
    return [str(number) for number in range(count)], [score_edit(edit, read).exact for edit, read in pairs]


def score_questions(model: Model, count: int, *, is_new: bool = False) -> Score:
    """Ask as many questions of every kind about held-out scenes."""
    random = np.random.default_rng([0, 500])
    each = -(-count // len(QUESTION_KINDS))
    by_kind: dict[str, list[tuple[StillLife, Question]]] = {kind: [] for kind in QUESTION_KINDS}
    for scene in sample_held_out_scenes(each * 60, 1):
        for question in make_questions(scene, random, held_out=is_new):
            if len(by_kind[question.kind]) < each:
                by_kind[question.kind].append((scene, question))
    selected = [pair for pairs in by_kind.values() for pair in pairs]
    texts = _texts(answer(model, [[_image(scene), Text(question.text)] for scene, question in selected]))
    return (
        [str(number) for number in range(len(selected))],
        [q.accepts(text) for text, (_, q) in zip(texts, selected, strict=True)],
    )


def score_captions(model: Model, count: int) -> Score:
    """Describe images of held-out scenes, which are the groups; a hit is a thing that is named."""
    scenes = sample_held_out_scenes(count, 0)
    requests = [[_image(scene), Text(DESCRIBE_REQUESTS[n % len(DESCRIBE_REQUESTS)])] for n, scene in enumerate(scenes)]
    named = [score_caption(s, text).things for s, text in zip(scenes, _texts(answer(model, requests)), strict=True)]
    groups = [str(number) for number, hits in enumerate(named) for _ in hits]
    return groups, [hit for hits in named for hit in hits]


def score_refusals(model: Model) -> Score:
    """Ask for images of things that training never names, which are the groups."""
    requests = [(thing, request) for thing in HELD_OUT_UNKNOWN_THINGS for request in DRAW_REQUESTS]
    samples = answer(model, [[Text(request.format(with_article(thing)))] for thing, request in requests])
    refused = [first_image(sample) is None for sample in samples]
    texts = zip(refused, _texts(samples), strict=True)
    return [thing for thing, _ in requests], [is_text and "cannot draw" in text for is_text, text in texts]


def _texts(samples: Sequence[Sample]) -> list[str]:
    return [join_texts(sample.parts) for sample in samples]


def caption_bits(model: Model, count: int) -> float:
    """Return the mean bits per token of captions after the images of training scenes."""
    scenes = [sample_still_life(np.random.default_rng([number, 12])) for number in range(count)]
    sequences, lengths = [], []
    for number, scene in enumerate(scenes):
        prompt = model.encode_chat([{"role": "user", "content": [scene.render(), "What do you see?"]}])
        caption = model.text.encode(make_caption(scene, np.random.default_rng([number, 13]), complete=True))
        sequences.append([*prompt, *caption])
        lengths.append(len(caption))
    found = token_logprobs(model.decoder, sequences)
    return -float(np.mean(np.concatenate([row[-n:] for row, n in zip(found, lengths, strict=True)]))) / np.log(2)


def interval(names: Sequence[str], before: Sequence[float], after: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean difference and its 95 % interval, by a bootstrap of whole groups."""
    groups: dict[str, list[float]] = {}
    for name, old, new in zip(names, before, after, strict=True):
        groups.setdefault(name, []).append(float(new) - float(old))
    sums, sizes = (np.array([function(values) for values in groups.values()]) for function in (np.sum, len))
    chosen = np.random.default_rng(0).integers(len(sums), size=(10_000, len(sums)))
    low, high = np.quantile(sums[chosen].sum(axis=1) / sizes[chosen].sum(axis=1), [0.025, 0.975])
    return float(sums.sum() / sizes.sum()), float(low), float(high)


def measure(folder: str, count: int, *, with_halves: bool) -> dict[str, Any]:
    """Return all scores of a model."""
    model = calumma.load(folder, device="cpu")
    scores: dict[str, Score] = {}

    def note(name: str, score: Score) -> None:
        scores[name] = score
        print(f"{folder}: {name} {np.mean(score[1]):.3f}", file=sys.stderr, flush=True)

    new = [score_skill(model, skill, -(-count // len(DRAWING_SKILLS)), new_wording=True) for skill in DRAWING_SKILLS]
    note("new wordings", ([name for names, _ in new for name in names], [hit for _, hits in new for hit in hits]))
    note("edits", score_edits(model, count))
    for skill in DRAWING_SKILLS:
        note(skill, score_skill(model, skill, count))
    note("refusals of unknown things", score_refusals(model))
    note("captions: things", score_captions(model, count))
    note("questions", score_questions(model, count))
    note("questions in new wordings", score_questions(model, count, is_new=True))
    for skill in MEASURED if with_halves else ():
        for half, name in enumerate(("prompts", "held out")):
            note(f"{skill}, combinations {name}", score_half(model, skill, half, count))
    return {"scores": scores, "caption_bits": caption_bits(model, count)}


def table(models: dict[str, dict[str, Any]]) -> str:
    """Format the scores of models and their mean next to those of the first one, as Markdown."""
    first, *others = models
    if not others:
        rows = [f"| {name} | {np.mean(hits):.1%} |" for name, (_, hits) in models[first]["scores"].items()]
        bits = f"| captions, bits per token | {models[first]['caption_bits']:.4f} |"
        return "\n".join([f"| score | {first} |", "|---|---|", *rows, bits])
    lines = [f"| score | {' | '.join(models)} | mean difference |", "|---" * (len(models) + 2) + "|"]
    for name, (groups, before) in models[first]["scores"].items():
        results = [models[other]["scores"][name][1] for other in others]
        mean, low, high = interval(groups, before, np.mean(results, axis=0))
        means = " | ".join(f"{np.mean(result):.1%}" for result in (before, *results))
        lines.append(f"| {name} | {means} | {100 * mean:+.1f} ({100 * low:.1f} to {100 * high:.1f}) |")
    bits = [model["caption_bits"] for model in models.values()]
    change = np.mean(bits[1:]) / bits[0] - 1
    lines.append(f"| captions, bits per token | {' | '.join(f'{each:.4f}' for each in bits)} | {change:+.1%} |")
    return "\n".join(lines)


def tune(model: str, out: Path, seeds: Sequence[int], changes: Sequence[str]) -> list[Path]:
    """Tune a model with several seeds by `runs/still-life-grpo.toml`, and return the folders of the runs."""
    files = {
        "prompts": (["new-questions", "new-questions", "captions", "refusals"], 0),
        "anchors": (["captions", "questions", "training", "training", "training", "edits"], 1),
    }
    for name, (kinds, seed) in files.items():
        write_parquet(out / f"{name}.parquet", prompt_documents(kinds, NUM_PROMPTS, seed))
    files_by_field = [
        word for name in files for word in (f"--grpo.{name}", json.dumps([str(out / f"{name}.parquet")]))
    ]
    runs = [out / f"seed-{seed}" for seed in seeds]
    for seed, run in zip(seeds, runs, strict=True):
        words = ["--model", model, "--out", str(run), "--seed", str(seed), *files_by_field, *changes]
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        subprocess.run([sys.executable, "-m", "calumma", "finetune", str(CONFIG), *words], check=True)
        seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
        print(f"{run}: {seconds:.0f} s of processor time", file=sys.stderr, flush=True)
    return runs


def curves(runs: Sequence[Path]) -> str:
    """Return an SVG of the reward of runs by step."""
    found = {}
    for run in runs:
        steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        found[run.name] = Curve.from_points((step["step"], step["reward"]) for step in steps if "reward" in step)
    return Chart("mean reward of a step", found, smooth=True).to_svg_file()


def main() -> None:
    """Tune with several seeds, write prompts, score models and print a table, or draw curves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    tuned = commands.add_parser("seeds", help="tune a model with several seeds; more options go to calumma finetune")
    tuned.add_argument("models", nargs=1, metavar="MODEL")
    tuned.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N")
    prompts = commands.add_parser("prompts", help="write the prompts of the rollouts")
    prompts.add_argument("out", type=Path)
    prompts.add_argument("--kinds", nargs="+", choices=PROMPT_KINDS, default=["new-questions"])
    prompts.add_argument("--count", type=int, default=NUM_PROMPTS, metavar="N")
    prompts.add_argument("--seed", type=int, default=0, metavar="N")
    score = commands.add_parser("score", help="score models, the first one as the baseline")
    score.add_argument("models", nargs="+", metavar="MODEL")
    score.add_argument("--halves", action="store_true", help="score both halves of the held-out combinations too")
    score.add_argument("--out", type=Path, metavar="FILE", help="write the results as JSON")
    drawn = commands.add_parser("curves", help="draw the rewards of runs by step")
    drawn.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    for command in (tuned, drawn):
        command.add_argument("--out", type=Path, required=True, metavar="PATH")
    for command in (tuned, score):
        command.add_argument("--count", type=int, default=200, metavar="N", help="prompts of each score")
    arguments, changes = parser.parse_known_args()
    if changes and arguments.command != "seeds":
        parser.error(f"unknown options {' '.join(changes)}; see --help")
    if arguments.command == "prompts":
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        write_parquet(arguments.out, prompt_documents(arguments.kinds, arguments.count, arguments.seed))
        return
    if arguments.command == "curves":
        write_text(arguments.out, curves(arguments.runs))
        return
    folders, out = list(arguments.models), arguments.out
    if arguments.command == "seeds":
        out.mkdir(parents=True, exist_ok=True)
        runs = tune(folders[0], out, arguments.seeds, changes)
        write_text(out / "rewards.svg", curves(runs))
        folders += [str(run / "model") for run in runs]
        out /= "scores.json"
    torch.set_num_threads(1)
    with_halves = arguments.command == "score" and arguments.halves
    models = {folder: measure(folder, arguments.count, with_halves=with_halves) for folder in folders}
    if out:
        out.write_text(json.dumps(models) + "\n")
    print(table(models))


if __name__ == "__main__":
    main()
