"""Captions and answers that the model writes about published pictures, held against people's.

The paper shows two examples before each picture and cuts captions at 30 tokens; both are so here.
"""

from __future__ import annotations

from calumma.errors import EvaluationError
from calumma.evaluate.context import EvalConfig, EvalContext, subsample
from calumma.evaluate.logged_samples import LoggedSample
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
from calumma.evaluate.vlm_metrics import VlmResponses, captioning_scores, vqa_scores
from calumma.evaluate.vlm_prompts import VlmBenchmark, VlmPromptBuilder, select_fewshot

_CAPTION_FILES = f"{KARPATHY}, or {COCO}"
VLM_BENCHMARKS = {
    "coco": VlmBenchmark(
        summary="captions of COCO by CIDEr, two examples, 30 tokens at most",
        files=f"{_CAPTION_FILES}; pictures",
        read=read_captions,
        max_new_tokens=30,
        is_captioning=True,
    ),
    "flickr30k": VlmBenchmark(
        summary="captions of Flickr30k by CIDEr, two examples, 30 tokens at most",
        files=f"{_CAPTION_FILES}, or {FLICKR}; pictures",
        read=read_captions,
        max_new_tokens=30,
        is_captioning=True,
    ),
    "vqav2": VlmBenchmark(
        summary="questions of VQA v2, by agreement with ten people",
        files=f"{VQA_QUESTIONS}, {VQA_ANNOTATIONS}; pictures",
        read=read_vqa,
        max_new_tokens=10,
        is_captioning=False,
    ),
    "easy_vqa": VlmBenchmark(
        summary="questions about plain shapes, of the package easy-vqa (pip)",
        files="test/questions.json, train/questions.json; pictures",
        read=read_easy_vqa,
        max_new_tokens=10,
        is_captioning=False,
    ),
}
"""By the names of their folders of files, and of their figures."""


def vlm_benchmark(name: str, context: EvalContext, config: EvalConfig) -> list[Metric]:
    """Measure one benchmark of PICTURED.

    Raises:
        EvaluationError: files or pictures are not there, or a prompt does not fit a row.
    """
    kind = VLM_BENCHMARKS[name]
    published = kind.read(config.benchmark_folder(name))
    asked = subsample(published.test, config.limit, config.seed)
    if not asked:
        raise EvaluationError(
            f"{name}: found no question to ask; expected a test or validation split. Add its files, "
            "or leave the task out."
        )
    examples = select_fewshot(context.model, asked, published.train, kind, config)
    asker = VlmPromptBuilder(context.model, examples, kind, config)
    written = asker.generate_answers(asked)
    answered = VlmResponses(
        name=name,
        examples=asked,
        answers=written,
        train=published.train,
        num_fewshot=len(examples),
        seed=config.seed,
    )
    figures, scores = (captioning_scores if kind.is_captioning else vqa_scores)(answered)
    for question, answer, score in config.first_to_log(asked, written, scores):
        prompt, wanted = asker.prompt(question), [" / ".join(question.given)]
        context.logged_samples.append(
            LoggedSample(
                task=name, prompt=prompt, answer=[answer], target=wanted, score=float(score)
            )
        )
    return figures
