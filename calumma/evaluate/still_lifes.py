"""The `still-lifes` task: what a model draws, reads, changes and refuses in the world of still lifes.

Scenes, captions and questions are sampled from the seed and held out from training by construction;
drawn images are read by `still_life_judge`. No documents are needed.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import PIL.Image

from calumma.corpora.still_life import OBJECTS, StillLife
from calumma.corpora.still_life_captions import QUESTION_KINDS, Question, choose, make_questions, with_article
from calumma.corpora.still_life_documents import (
    DESCRIBE_REQUESTS,
    DRAW_REQUESTS,
    HELD_OUT_UNKNOWN_THINGS,
    StillLifeWriter,
    sentence,
)
from calumma.corpora.synthetic_scenes import SHAPES
from calumma.documents.document import Image, Part, Text, Turn
from calumma.documents.image_formats import encode_png
from calumma.evaluate.context import EvalConfig, EvalContext
from calumma.evaluate.image_grid import ImageGrid
from calumma.evaluate.logged_samples import LoggedSample
from calumma.evaluate.metric import Metric, proportion_metric
from calumma.evaluate.still_life_judge import read_still_life
from calumma.evaluate.still_life_prompts import (
    DRAWING_SKILLS,
    DrawingPrompt,
    sample_drawing_prompts,
    sample_held_out_edits,
    sample_held_out_scenes,
    sample_held_out_stories,
)
from calumma.evaluate.still_life_scores import score_caption, score_consistency, score_edit
from calumma.generate.events import Sample
from calumma.generate.model import Model
from calumma.generate.params import Request

STILL_LIFES_TASK = "still-lifes"
_MAX_TEXT_TOKENS = 96
_NUM_NEIGHBORS = 5000
"""Training captions among which the nearest-image baseline searches."""

_SHEET_COLUMNS = 8
NUM_SHEET_PROMPTS = 48
"""Prompts of the sheet: eight of each skill."""


def still_lifes(context: EvalContext, config: EvalConfig) -> list[Metric]:
    """Measure six drawing skills, captions, questions, edits, stories and refusals.

    Raises:
        GenerationError: the model has no image decoder.
    """
    model = context.model
    metrics: list[Metric] = []
    drawn: list[tuple[DrawingPrompt, PIL.Image.Image | None]] = []
    for skill in DRAWING_SKILLS:
        prompts = sample_drawing_prompts(skill, config.max_prompts, config.seed)
        images = draw_captions(model, [prompt.caption for prompt in prompts], config)
        drawn += list(zip(prompts, images, strict=True))[: NUM_SHEET_PROMPTS // len(DRAWING_SKILLS)]
        metrics.append(_drawing_metric(f"draws_{skill}", prompts, images))
    metrics.append(_new_wordings(model, config))
    metrics += _captions(model, config)
    metrics += _questions(model, config)
    metrics += _edits(model, config)
    metrics += _stories(model, config)
    metrics += _when_to_draw(model, config)
    context.image_grids.append(make_sheet(drawn))
    for prompt, image in config.first_to_log(*zip(*drawn, strict=True)):
        answer = [] if image is None else [image]
        context.logged_samples.append(
            LoggedSample(task=STILL_LIFES_TASK, prompt=[prompt.caption], answer=answer, target=[prompt.scene.render()])
        )
    return metrics


def draw_captions(model: Model, captions: Sequence[str], config: EvalConfig) -> list[PIL.Image.Image | None]:
    """Ask for an image of each caption in a turn and return what was drawn, None for an answer without."""
    samples = _answer(model, [[Text(f"Draw {caption}.")] for caption in captions], config)
    return [first_image(sample) for sample in samples]


def first_image(sample: Sample) -> PIL.Image.Image | None:
    """Return the first image of an answer."""
    return next((part for part in sample.decoded_parts if isinstance(part, PIL.Image.Image)), None)


def _answer(model: Model, prompts: Sequence[Sequence[Part]], config: EvalConfig) -> list[Sample]:
    """Answer user turns, each with its own seed."""
    return _continue(model, [model.encode_chat([Turn("user", tuple(parts))]) for parts in prompts], config)


def _continue(model: Model, prompts: Sequence[Sequence[int]], config: EvalConfig) -> list[Sample]:
    """Continue prompts of token ids with at most one image, each with its own seed."""
    requests = [
        Request(
            prompt_token_ids=tuple(token_ids),
            max_new_tokens=model.vocabulary.max_image_tokens(model.image.config.codes_per_image)
            - 2
            + _MAX_TEXT_TOKENS,
            max_images=1,
            seed=config.seed + number,
            text=model.default_text_sampling,
            image=config.image or model.default_image_sampling,
        )
        for number, token_ids in enumerate(prompts)
    ]
    return model.generate_requests(requests, on_progress=config.on_progress)


def _texts(samples: Sequence[Sample]) -> list[str]:
    return ["".join(part for part in sample.parts if isinstance(part, str)).strip() for sample in samples]


def _image_part(scene: StillLife) -> Image:
    return Image(data=scene.to_png(), name="a still life")


def _passes(prompts: Sequence[DrawingPrompt], images: Sequence[PIL.Image.Image | None]) -> list[bool]:
    return [
        image is not None and prompt.score(read_still_life(image).scene)
        for prompt, image in zip(prompts, images, strict=True)
    ]


def _drawing_metric(name: str, prompts: Sequence[DrawingPrompt], images: Sequence[PIL.Image.Image | None]) -> Metric:
    skill = DRAWING_SKILLS[prompts[0].skill]
    metric = proportion_metric(name, _passes(prompts, images), f"{skill.note}; scenes held out from training")
    neighbors = [prompt.score(_nearest_training_scene(prompt.caption)) for prompt in prompts]
    others = [prompts[number - 1].scene for number in range(len(prompts))]
    chance = [prompt.score(other) for prompt, other in zip(prompts, others, strict=True)]
    return metric.with_baselines(
        {"another prompt's image": float(np.mean(chance)), "nearest training image": float(np.mean(neighbors))}
    )


_training_pairs: list[tuple[frozenset[str], StillLife]] = []


def _nearest_training_scene(caption: str) -> StillLife:
    """Return the scene of the training caption that shares most words (Jaccard index)."""
    if not _training_pairs:
        writer = StillLifeWriter(0)
        _training_pairs.extend(
            (frozenset(text.split()), scene) for text, scene in map(writer.captioned_scene, range(_NUM_NEIGHBORS))
        )
    words = frozenset(caption.split())
    return max(_training_pairs, key=lambda pair: len(words & pair[0]) / len(words | pair[0]))[1]


def _new_wordings(model: Model, config: EvalConfig) -> Metric:
    """Draw captions in wordings that training does not have, of all skills in turn."""
    each = -(-config.max_prompts // len(DRAWING_SKILLS))
    new, old = (
        [p for skill in DRAWING_SKILLS for p in sample_drawing_prompts(skill, each, config.seed, new_wording=is_new)]
        for is_new in (True, False)
    )
    hits, seen = (_passes(p, draw_captions(model, [each.caption for each in p], config)) for p in (new, old))
    note = "all skills, in wordings that training does not have; baseline: the same scenes in its wordings"
    metric = proportion_metric("draws_new_wordings", hits, note)
    return metric.with_baselines({"training's wordings": float(np.mean(seen))})


def _captions(model: Model, config: EvalConfig) -> list[Metric]:
    """Describe images of held-out scenes."""
    scenes = sample_held_out_scenes(config.max_prompts, config.seed)
    prompts: list[list[Part]] = [
        [_image_part(scene), Text(DESCRIBE_REQUESTS[n % 4])] for n, scene in enumerate(scenes)
    ]
    texts = _texts(_answer(model, prompts, config))
    scores = [score_caption(scene, text) for scene, text in zip(scenes, texts, strict=True)]
    notes = {
        "things": "kinds of things that the caption names",
        "colors": "colors of named shapes and mentioned backgrounds",
        "positions": "places, where the things are named",
        "counts": "numbers of equal things",
    }
    shuffled = [score_caption(scenes[number - 1], text) for number, text in enumerate(texts)]
    metrics = []
    for name, note in notes.items():
        hits = [hit for score in scores for hit in getattr(score, name)]
        if hits:
            others = [hit for score in shuffled for hit in getattr(score, name)]
            metric = proportion_metric(f"captions_{name}", hits, note)
            metrics.append(metric.with_baselines({"another image's caption": float(np.mean(others or [0.0]))}))
    return metrics


def _questions(model: Model, config: EvalConfig) -> list[Metric]:
    """Ask questions of every kind about held-out scenes."""
    selected = _sample_questions(config)
    answers = _texts(_answer(model, [[_image_part(scene), Text(q.text)] for scene, q in selected], config))
    questions = [question for _, question in selected]
    hits = [q.accepts(answer) for answer, q in zip(answers, questions, strict=True)]
    metrics = [_question_metric("questions", questions, hits, "all kinds"), _new_questions(model, config, hits)]
    for kind in QUESTION_KINDS:
        of_kind = [number for number, question in enumerate(questions) if question.kind == kind]
        name = f"questions_{kind.replace(' ', '_')}"
        metrics.append(
            _question_metric(name, [questions[n] for n in of_kind], [hits[n] for n in of_kind], f"kind: {kind}")
        )
    return metrics


def _new_questions(model: Model, config: EvalConfig, seen: list[bool]) -> Metric:
    """Ask questions of every kind in wordings that training does not have."""
    selected = _sample_questions(config, held_out=True)
    answers = _texts(_answer(model, [[_image_part(scene), Text(q.text)] for scene, q in selected], config))
    hits = [q.accepts(answer) for answer, (_, q) in zip(answers, selected, strict=True)]
    metric = proportion_metric("questions_new_wordings", hits, "all kinds, in wordings that training does not have")
    return metric.with_baselines({"training's wordings": float(np.mean(seen))})


def _sample_questions(config: EvalConfig, *, held_out: bool = False) -> list[tuple[StillLife, Question]]:
    """Return the same number of questions of every kind."""
    each = max(1, config.max_prompts // 5)
    by_kind: dict[str, list[tuple[StillLife, Question]]] = {kind: [] for kind in QUESTION_KINDS}
    random = np.random.default_rng([config.seed, 300])
    for scene in sample_held_out_scenes(each * 60, config.seed + 1):
        questions = [q for q in make_questions(scene, random, held_out=held_out) if len(by_kind[q.kind]) < each]
        if questions:
            question = choose(random, questions)
            by_kind[question.kind].append((scene, question))
    return [pair for pairs in by_kind.values() for pair in pairs]


def _question_metric(name: str, questions: list[Question], hits: list[bool], note: str) -> Metric:
    majority = 0
    for kind in QUESTION_KINDS:
        answers = Counter(question.answer for question in questions if question.kind == kind)
        majority += max(answers.values(), default=0)
    chance = float(np.mean([1 / question.num_options for question in questions]))
    return proportion_metric(name, hits, note).with_baselines(
        {"chance": chance, "most common answer": majority / len(questions)}
    )


def _edits(model: Model, config: EvalConfig) -> list[Metric]:
    """Edit images of held-out scenes, in a turn and in a story."""
    edits = sample_held_out_edits(config.max_prompts, config.seed)
    chats: list[list[Part]] = [[_image_part(edit.before), Text(sentence(edit.instruction))] for edit in edits]
    scores = []
    for edit, sample in zip(edits, _answer(model, chats, config), strict=True):
        image = first_image(sample)
        scores.append(score_edit(edit, None if image is None else read_still_life(image).scene))
    unedited = [score_edit(edit, edit.before) for edit in edits]
    metrics = [
        proportion_metric("edits_exact", [s.exact for s in scores], "the image is the requested one in everything"),
        proportion_metric("edits_changed", [s.changed for s in scores], "what the edit changes is as requested"),
        proportion_metric("edits_unchanged", [s.unchanged for s in scores], "fraction of the rest that stayed"),
    ]
    fields = ("exact", "changed", "unchanged")
    return [
        metric.with_baselines({"the image before": sum(getattr(s, name) for s in unedited) / len(unedited)})
        for metric, name in zip(metrics, fields, strict=True)
    ]


def _stories(model: Model, config: EvalConfig) -> list[Metric]:
    """Draw stories image by image, each after all images that were drawn before it."""
    stories = sample_held_out_stories(-(-config.max_prompts // 2), config.seed)
    token_ids = [model.encode([Text(f"First there is {story.caption}.")]) for story in stories]
    shown: list[list[StillLife | None]] = [[] for _ in stories]
    for step in range(max(len(story.scenes) for story in stories)):
        active = [number for number, story in enumerate(stories) if step < len(story.scenes)]
        if step:
            for number in active:
                token_ids[number] += model.text.encode(f"Then {stories[number].edits[step - 1].instruction}.")
        fitting = [n for n in active if len(token_ids[n]) < model.decoder.config.max_seq_len]
        samples = _continue(model, [token_ids[number] for number in fitting], config)
        samples_by_story = dict(zip(fitting, samples, strict=True))
        for number in active:
            sample = samples_by_story.get(number)
            image = first_image(sample) if sample else None
            shown[number].append(None if image is None else read_still_life(image).scene)
            if sample and image is not None:
                end = sample.token_ids.index(model.vocabulary.end_image)
                token_ids[number] += sample.token_ids[: end + 1]
    pairs = [(s.scenes[n], read) for s, reads in zip(stories, shown, strict=True) for n, read in enumerate(reads)]
    steps = [
        (edit, reads[n], reads[n + 1], shown[number - 1])
        for number, (story, reads) in enumerate(zip(stories, shown, strict=True))
        for n, edit in enumerate(story.edits)
    ]
    others = [score_consistency(edit, other[0], after) for edit, _, after, other in steps]
    return [
        proportion_metric(
            "stories_exact", [read == true for true, read in pairs], "images of stories that are as described"
        ).with_baselines({"the first image": float(np.mean([s.scene == true for s in stories for true in s.scenes]))}),
        proportion_metric(
            "stories_consistent",
            [score_consistency(edit, before, after) for edit, before, after, _ in steps],
            "fraction of what an edit leaves alone that stays from image to image, right or not",
        ).with_baselines({"another story's image": float(np.mean(others))}),
    ]


def _when_to_draw(model: Model, config: EvalConfig) -> list[Metric]:
    """Measure whether an answer has an image if one is requested, and none otherwise."""
    prompts = sample_drawing_prompts("two_objects", config.max_prompts, config.seed + 2)
    requests = [[Text(DRAW_REQUESTS[n % 5].format(p.caption))] for n, p in enumerate(prompts)]
    drawn = [first_image(sample) is not None for sample in _answer(model, requests, config)]
    selected = _sample_questions(config)[: config.max_prompts * 2 : 2]
    answers = _answer(model, [[_image_part(scene), Text(q.text)] for scene, q in selected], config)
    silent = [first_image(sample) is None for sample in answers]
    unknown = [
        [Text(DRAW_REQUESTS[number % 5].format(with_article(thing)))]
        for thing in HELD_OUT_UNKNOWN_THINGS
        for number in range(max(1, min(5, config.max_prompts // len(HELD_OUT_UNKNOWN_THINGS))))
    ]
    samples = _answer(model, unknown, config)
    texts = _texts(samples)
    refused = [first_image(s) is None and "cannot draw" in text for s, text in zip(samples, texts, strict=True)]
    known = f"{len(SHAPES)} shapes and {len(OBJECTS)} objects"
    return [
        proportion_metric("draws_when_asked", drawn, "requests for an image that are answered with one"),
        proportion_metric("draws_not_when_asked_not", silent, "questions that are answered without an image"),
        proportion_metric("refuses_unknown", refused, f"requests for things other than the {known}; names new to it"),
        _refusal_calibration(model, requests[: len(unknown)], unknown),
    ]


def _refusal_calibration(model: Model, known: Sequence[Sequence[Part]], unknown: Sequence[Sequence[Part]]) -> Metric:
    """Measure the probability that an answer begins with an image against whether it should."""
    scores = []
    for prompts, target in ((known, 1.0), (unknown, 0.0)):
        for parts in prompts:
            logits = model.logits(model.encode_chat([Turn("user", tuple(parts))]))[0, -1].float()
            scores.append(1.0 - (float(logits.softmax(dim=-1)[model.vocabulary.begin_image]) - target) ** 2)
    note = "1 - Brier score of the probability of an image, for known and unknown things"
    return proportion_metric("refusal_calibration", scores, note).with_baselines({"always 1/2": 0.75})


def make_sheet(drawn: Sequence[tuple[DrawingPrompt, PIL.Image.Image | None]]) -> ImageGrid:
    """Lay out drawn images in rows of eight, one row per skill."""
    side, gap = 64, 4
    rows = -(-len(drawn) // _SHEET_COLUMNS)
    sheet = PIL.Image.new("RGB", (_SHEET_COLUMNS * (side + gap) + gap, rows * (side + gap) + gap), "white")
    for number, (_, image) in enumerate(drawn):
        if image is not None:
            row, column = divmod(number, _SHEET_COLUMNS)
            sheet.paste(image.resize((side, side)), (gap + column * (side + gap), gap + row * (side + gap)))
    captions = "; ".join(prompt.caption for prompt, _ in drawn)
    return ImageGrid("Still lifes", f"The first prompts of each skill, nothing chosen: {captions}.", encode_png(sheet))
