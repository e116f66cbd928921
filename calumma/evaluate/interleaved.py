"""Answers of text and pictures: are pictures there where asked, as many, in their places, apt?

Documents are conversations; the last answer of each is the reference, everything before it is the
prompt. What was asked for is read off the reference: its pictures, their number, their places.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import PIL.Image

from calumma.documents.document import Document, Image, Part, Turn
from calumma.errors import EvaluationError
from calumma.evaluate.context import EvalConfig, EvalContext, subsample
from calumma.evaluate.logged_samples import LoggedSample
from calumma.evaluate.metric import Metric, proportion_metric
from calumma.evaluate.retrieval import NUM_CANDIDATES, draw_candidates, top1_accuracy
from calumma.evaluate.text_image_scorer import TextImageScorer
from calumma.evaluate.text_to_image import RETRIEVAL_CHANCE, fit_scorer
from calumma.generate.events import Sample
from calumma.generate.model import Model
from calumma.generate.params import Request
from calumma.generate.request import RequestState
from calumma.text_format import pluralize

_SPARE_IDS = 32
"""Ids an answer may have more than the longest reference."""


@dataclass(frozen=True)
class InterleavedPrompt:
    """What is asked, what a person answered, and what the model did."""

    turns: tuple[Turn, ...]
    """Everything before the last answer."""

    reference: tuple[Part, ...]
    """The last answer."""

    @property
    def prompt(self) -> list[Part]:
        """The parts of all turns, in reading order."""
        return [part for turn in self.turns for part in turn.parts]

    @property
    def text(self) -> str:
        """The prompt's words."""
        return " ".join(part.text for part in self.prompt if not isinstance(part, Image))


Layout = tuple[str, ...]
"""Text and pictures in their order, texts in a row as one."""


def modality_sequence(parts: Sequence[object]) -> Layout:
    """What follows on what; texts without a word do not count.

    >>> kinds_of(["a ", "b", Image(data=b""), "  "])
    ('text', 'image')
    """
    found: list[str] = []
    for part in parts:
        text = part if isinstance(part, str) else getattr(part, "text", None)
        if text is not None and not text.strip():
            continue
        kind = "image" if text is None else "text"
        if kind == "image" or found[-1:] != [kind]:
            found.append(kind)
    return tuple(found)


def interleaved(context: EvalContext, config: EvalConfig) -> list[Metric]:
    """Ask what conversations ask, and compare the answers' make-up with the references'.

    Raises:
        EvaluationError: there is no conversation that ends in an answer, or the model cannot draw.
    """
    known = [each for document in context.documents if (each := last_exchange(document))]
    exchanges = [each for each in known if fits_context(context.model, each)]
    if len(exchanges) < len(known):
        context.skipped.append(
            f"interleaved: {len(known) - len(exchanges)} of {len(known)} conversations, which are "
            "longer than a row."
        )
    if not exchanges:
        raise EvaluationError(
            "interleaved: found no conversation with an answer among "
            f"{pluralize(len(context.documents), 'document')}; "
            "expected documents with turns. Give such documents (--documents), or leave "
            "this task out."
        )
    asked = subsample(exchanges, config.max_prompts, config.seed)
    samples = generate_interleaved(context.model, asked, config)
    for one, sample in config.first_to_log(asked, samples):
        context.logged_samples.append(
            LoggedSample(task="interleaved", prompt=_shown(one.prompt), answer=sample.parts,
                  target=_shown(one.wanted))
        )  # fmt: skip
    figures = layout_metrics(asked, samples)
    drawn = [
        (one.text, part)
        for one, sample in zip(asked, samples, strict=True)
        for part in sample.parts
        if isinstance(part, PIL.Image.Image) and "image" in modality_sequence(one.reference)
    ]
    if len({text for text, _ in drawn}) >= NUM_CANDIDATES and (
        scorer := fit_scorer(context, config)
    ):
        figures.append(image_prompt_match(drawn, scorer))
    return figures


def last_exchange(document: Document) -> InterleavedPrompt | None:
    """The last answer of a conversation and everything before it, if it has one."""
    turns = document.messages
    if [turn.role for turn in turns[-2:]] != ["user", "assistant"]:
        return None
    return InterleavedPrompt(turns[:-1], turns[-1].parts)


def fits_context(model: Model, one: InterleavedPrompt) -> bool:
    """Whether prompt and answer, and an id around each turn, are no longer than a row."""
    room = model.decoder.config.max_seq_len - len(one.turns) - _SPARE_IDS
    return _length(model, [*one.prompt, *one.reference]) <= room


def _length(model: Model, parts: Sequence[Part]) -> int:
    picture = model.image.config.codes_per_image + 2
    return sum(
        picture if isinstance(part, Image) else len(model.text.encode(part.text)) for part in parts
    )


def _shown(parts: Sequence[Part]) -> list[str | PIL.Image.Image]:
    return [part.open() if isinstance(part, Image) else part.text for part in parts]


def generate_interleaved(
    model: Model, asked: Sequence[InterleavedPrompt], config: EvalConfig
) -> list[Sample]:
    """The model's answers, each from a seed of its own."""
    longest = max(_length(model, one.reference) for one in asked) + _SPARE_IDS
    works = model.engine.submit_all(
        [
            Request(
                prompt_token_ids=tuple(model.encode_chat(one.turns)),
                max_new_tokens=longest,
                seed=config.seed + number,
                image=config.image,
            )
            for number, one in enumerate(asked)
        ]
    )
    ended: set[RequestState] = set()
    for work, _ in model.engine.stream_tokens(works):
        if work.is_finished and work not in ended:
            ended.add(work)
            config.on_progress(len(ended), len(works))
    return [model.sample_of(work) for work in works]


def layout_metrics(asked: Sequence[InterleavedPrompt], samples: Sequence[Sample]) -> list[Metric]:
    """Shares of answers with pictures where asked and none elsewhere, as many, in their places,
    and of those that ended by themselves. The baseline always does what most references do.
    """
    wanted = [modality_sequence(one.reference) for one in asked]
    got = [modality_sequence(sample.parts) for sample in samples]
    figures = []
    ways: dict[str, tuple[Callable[[Layout], Hashable], str]] = {
        "present": (
            lambda kinds: "image" in kinds,
            "a picture where asked for, and none elsewhere",
        ),
        "counted": (lambda kinds: kinds.count("image"), "as many pictures as asked for"),
        "placed": (lambda kinds: kinds, "texts and pictures in the order asked for"),
    }
    for name, (read, note) in ways.items():
        truth = [read(kinds) for kinds in wanted]
        hits = [read(kinds) == true for kinds, true in zip(got, truth, strict=True)]
        common = Counter(truth).most_common(1)[0][1] / len(truth)
        made = proportion_metric(f"interleaved_{name}", hits, note)
        figures.append(made.with_baselines({"always the commonest": common}))
    for name, image in (("drawn_where_asked", True), ("silent_where_not", False)):
        part = [
            ("image" in kinds) == image
            for kinds, true in zip(got, wanted, strict=True)
            if ("image" in true) == image
        ]
        if part:
            figures.append(proportion_metric(f"interleaved_{name}", part, "of those that ask so"))
    ended = [sample.finish_reason == "stop" for sample in samples]
    figures.append(proportion_metric("interleaved_ended", ended, "answers that end by themselves"))
    return figures


def image_prompt_match(
    drawn: Sequence[tuple[str, PIL.Image.Image]], scorer: TextImageScorer
) -> Metric:
    """The share of drawn pictures that fit their own prompt best of ten, by the scorer."""
    texts = [text for text, _ in drawn]
    rows = np.array(draw_candidates(texts, seed=0))
    scores = scorer.scores(scorer.image_features([picture for _, picture in drawn]), texts)
    hits = top1_accuracy(np.take_along_axis(scores, rows, axis=1))
    note = f"a drawn picture fits its own prompt best of {NUM_CANDIDATES}, by the scorer"
    return proportion_metric("interleaved_on_topic", hits, note).with_baselines(
        {"chance": RETRIEVAL_CHANCE}
    )
