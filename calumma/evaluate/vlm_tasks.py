"""Captions and answers that the model writes about published pictures, held against people's.

The paper shows two examples before each picture and cuts captions at 30 tokens; both are so here.
"""

from __future__ import annotations

from calumma.errors import EvaluationError
from calumma.evaluate.context import EvalConfig, EvalContext, subsample
from calumma.evaluate.logged_samples import Shown
from calumma.evaluate.metric import Metric
from calumma.evaluate.vlm_files import (
    COCO,
    FLICKR,
    KARPATHY,
    VQA_ANNOTATIONS,
    VQA_QUESTIONS,
    read_captions,
    read_easy_vqa,
    read_vqa,
)
from calumma.evaluate.vlm_metrics import Answered, answer_scores, caption_scores
from calumma.evaluate.vlm_prompts import Asker, Pictured, shots_that_fit

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


def pictured_benchmark(name: str, held_out: EvalContext, options: EvalConfig) -> list[Metric]:
    """Measure one benchmark of PICTURED.

    Raises:
        EvaluationError: files or pictures are not there, or a prompt does not fit a row.
    """
    kind = PICTURED[name]
    published = kind.read(options.benchmark_folder(name))
    asked = subsample(published.asked, options.limit, options.seed)
    if not asked:
        raise EvaluationError(
            f"{name}: found no question to ask; expected a test or validation split. Add its files, "
            "or leave the task out."
        )
    examples = shots_that_fit(held_out.model, asked, published.training, kind, options)
    asker = Asker(held_out.model, examples, kind, options)
    written = asker.write(asked)
    answered = Answered(
        name=name,
        asked=asked,
        written=written,
        training=published.training,
        num_shots=len(examples),
        seed=options.seed,
    )
    figures, scores = (caption_scores if kind.captions else answer_scores)(answered)
    for question, answer, score in options.first_to_log(asked, written, scores):
        prompt, wanted = asker.prompt(question), [" / ".join(question.given)]
        held_out.logged_samples.append(
            Shown(task=name, prompt=prompt, answer=[answer], wanted=wanted, score=float(score))
        )
    return figures
