"""Captions and answers that the model writes about published pictures, held against people's.

The paper shows two examples before each picture and cuts captions at 30 tokens; both are so here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import PIL.Image

from calumma.errors import EvaluationError
from calumma.evaluate.captioning import GREEDY
from calumma.evaluate.figure import Figure
from calumma.evaluate.held_out import PIECES, HeldOut, Options, chosen
from calumma.evaluate.pictured_files import (
    COCO,
    FLICKR,
    KARPATHY,
    VQA_ANNOTATIONS,
    VQA_QUESTIONS,
    Published,
    Question,
    read_captions,
    read_easy_vqa,
    read_vqa,
)
from calumma.evaluate.pictured_scores import Answered, answer_scores, caption_scores
from calumma.evaluate.shown import Shown
from calumma.generate.model import Model

Parts = list[str | PIL.Image.Image]


SHOTS = 2
"""Examples before a question about a picture, where a row has room for them."""


@dataclass(frozen=True, kw_only=True)
class Pictured:
    """A benchmark of questions about pictures."""

    summary: str
    files: str
    read: Callable[..., Published]
    tokens: int
    """Ids an answer may have: the cap of captions is the paper's."""

    captions: bool
    """Whether captions are asked for, scored by CIDEr, or answers, scored by agreement."""


_CAPTION_FILES = f"{KARPATHY}, or {COCO}"
PICTURED = {
    "coco": Pictured(
        summary="captions of COCO by CIDEr, two examples, 30 tokens at most",
        files=f"{_CAPTION_FILES}; pictures",
        read=read_captions,
        tokens=30,
        captions=True,
    ),
    "flickr30k": Pictured(
        summary="captions of Flickr30k by CIDEr, two examples, 30 tokens at most",
        files=f"{_CAPTION_FILES}, or {FLICKR}; pictures",
        read=read_captions,
        tokens=30,
        captions=True,
    ),
    "vqav2": Pictured(
        summary="questions of VQA v2, by agreement with ten people",
        files=f"{VQA_QUESTIONS}, {VQA_ANNOTATIONS}; pictures",
        read=read_vqa,
        tokens=10,
        captions=False,
    ),
    "easy_vqa": Pictured(
        summary="questions about plain shapes, of the package easy-vqa (pip)",
        files="test/questions.json, train/questions.json; pictures",
        read=read_easy_vqa,
        tokens=10,
        captions=False,
    ),
}
"""By the names of their folders of files, and of their figures."""


def pictured_benchmark(name: str, held_out: HeldOut, options: Options) -> list[Figure]:
    """Measure one benchmark of PICTURED.

    Raises:
        EvaluationError: files or pictures are not there, or a prompt does not fit a row.
    """
    kind = PICTURED[name]
    published = kind.read(options.data_folder(name))
    asked = chosen(published.asked, options.limit, options.seed)
    if not asked:
        raise EvaluationError(
            f"{name}: found no question to ask; wanted a test or validation split. Add its files, "
            "or leave the task out."
        )
    examples = shots_that_fit(held_out.model, asked, published.training, kind, options)
    written = write_answers(held_out.model, asked, examples, kind, options)
    answered = Answered(
        name=name,
        asked=asked,
        written=written,
        training=published.training,
        num_shots=len(examples),
        seed=options.seed,
    )
    figures, scores = (caption_scores if kind.captions else answer_scores)(answered)
    for question, answer, score in list(zip(asked, written, scores, strict=True))[: options.show]:
        prompt = prompt_of(question, examples, options.question, captions=kind.captions)
        wanted = [" / ".join(question.given)]
        held_out.shown.append(
            Shown(task=name, prompt=prompt, answer=[answer], wanted=wanted, score=float(score))
        )
    return figures


def prompt_of(
    question: Question, examples: Sequence[Question], behind: str, *, captions: bool
) -> Parts:
    """Examples with their answers, each in a line, and the picture that is asked about.

    Args:
        question: what is asked.
        examples: what is shown before.
        behind: text behind a picture whose caption is asked for, such as "Caption:".
        captions: whether captions are asked for, or answers.
    """
    parts: Parts = []
    for example in examples:
        text = _asked(example, behind, captions)
        parts += [example.image.open(), f"{text} {example.said_most}\n".lstrip(" ")]
    parts.append(question.image.open())
    if text := _asked(question, behind, captions):
        parts.append(text)
    return parts


def _asked(question: Question, behind: str, captions: bool) -> str:
    return behind if captions else f"Question: {question.text} Answer:"


def shots_that_fit(
    model: Model,
    asked: Sequence[Question],
    training: Sequence[Question],
    kind: Pictured,
    options: Options,
) -> list[Question]:
    """The examples that are shown before every question: as many as asked for, if a row has room.

    Raises:
        EvaluationError: a question alone does not fit.
    """
    shots = SHOTS if options.shots is None else options.shots
    examples = chosen(training, shots, options.seed) if shots else []
    longest = max(asked, key=lambda each: len(each.text))
    picture = model.image.config.codes_per_image + 2
    row = model.decoder.config.max_tokens
    while True:
        texts = [each.text + each.said_most for each in examples]
        length = sum(len(model.text.encode(text)) + _SPARE for text in [*texts, longest.text])
        if length + picture * (1 + len(examples)) + kind.tokens <= row:
            return list(examples)
        if not examples:
            raise EvaluationError(
                f"a question with its picture takes {length + picture} ids of a row of {row}; "
                f"wanted room for an answer of {kind.tokens}. Take a model with longer rows."
            )
        examples = examples[:-1]


_SPARE = 12
"""Ids around a question and its answer: words between them, line, begin and end."""


def write_answers(
    model: Model,
    asked: Sequence[Question],
    examples: Sequence[Question],
    kind: Pictured,
    options: Options,
) -> list[str]:
    """The likeliest text behind each question, id by id, up to the end of its line."""
    written = []
    for start in range(0, len(asked), PIECES):
        piece = asked[start : start + PIECES]
        samples = model.generate_batch(
            [prompt_of(each, examples, options.question, captions=kind.captions) for each in piece],
            answer=options.turns,
            max_new_tokens=kind.tokens,
            max_images=0,
            text=GREEDY,
        )
        for sample in samples:
            text = "".join(part for part in sample.parts if isinstance(part, str))
            written.append(text.strip().partition("\n")[0].strip())
        options.tick(start + len(piece), len(asked))
    return written
