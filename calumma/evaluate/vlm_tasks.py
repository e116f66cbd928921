"""Vision-language benchmarks: captions and answers, scored against human ones.

As in the paper, prompts have two few-shot examples and captions at most 30 tokens.
"""

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
        summary="captions of COCO by CIDEr, 2-shot, at most 30 tokens",
        files=f"{_CAPTION_FILES}; images",
        read=read_captions,
        max_new_tokens=30,
        is_captioning=True,
    ),
    "flickr30k": VlmBenchmark(
        summary="captions of Flickr30k by CIDEr, 2-shot, at most 30 tokens",
        files=f"{_CAPTION_FILES}, or {FLICKR}; images",
        read=read_captions,
        max_new_tokens=30,
        is_captioning=True,
    ),
    "vqav2": VlmBenchmark(
        summary="questions of VQA v2, by agreement with ten human answers",
        files=f"{VQA_QUESTIONS}, {VQA_ANNOTATIONS}; images",
        read=read_vqa,
        max_new_tokens=10,
        is_captioning=False,
    ),
    "easy_vqa": VlmBenchmark(
        summary="questions about plain shapes, of the package easy-vqa (pip)",
        files="test/questions.json, train/questions.json; images",
        read=read_easy_vqa,
        max_new_tokens=10,
        is_captioning=False,
    ),
}
"""By name, which is also the name of the folder of files and the prefix of the metrics."""


def vlm_benchmark(name: str, context: EvalContext, config: EvalConfig) -> list[Metric]:
    """Measure one benchmark of VLM_BENCHMARKS.

    Raises:
        EvaluationError: files or images are missing, or a prompt does not fit the context.
    """
    benchmark = VLM_BENCHMARKS[name]
    splits = benchmark.read(config.benchmark_folder(name))
    questions = subsample(splits.test, config.limit, config.seed)
    if not questions:
        raise EvaluationError(
            f"{name}: found no question; expected a test or validation split. Add its files, or leave the task out."
        )
    examples = select_fewshot(context.model, questions, splits.train, benchmark, config)
    builder = VlmPromptBuilder(context.model, examples, benchmark, config)
    answers = builder.generate_answers(questions)
    responses = VlmResponses(
        name=name, examples=questions, answers=answers, train=splits.train, num_fewshot=len(examples), seed=config.seed
    )
    score = captioning_scores if benchmark.is_captioning else vqa_scores
    metrics, scores = score(responses)
    for question, answer, value in config.first_to_log(questions, answers, scores):
        prompt, target = builder.prompt(question), [" / ".join(question.references)]
        context.logged_samples.append(
            LoggedSample(task=name, prompt=prompt, answer=[answer], target=target, score=float(value))
        )
    return metrics
