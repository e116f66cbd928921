"""Vision-language benchmarks: few-shot questions about images, scored against human answers.

For a pre-trained model a prompt is one document with an example per line; with a chat template,
examples are earlier turns of the conversation. As in the paper, prompts have two examples and
captions at most 30 tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import PIL.Image

from calumma.documents.document import Role
from calumma.errors import EvaluationError
from calumma.evaluate.captioning import GREEDY_TEXT
from calumma.evaluate.context import BATCH_SIZE, EvalConfig, EvalContext, subsample
from calumma.evaluate.logged_samples import LoggedSample
from calumma.evaluate.metric import Metric
from calumma.evaluate.vlm_files import (
    COCO,
    FLICKR,
    KARPATHY,
    VQA_ANNOTATIONS,
    VQA_QUESTIONS,
    VlmExample,
    VlmSplits,
    read_captions,
    read_easy_vqa,
    read_vqa,
)
from calumma.evaluate.vlm_metrics import VlmResponses, captioning_scores, vqa_scores
from calumma.generate.model import Model
from calumma.generate.params import Request
from calumma.generate.request import RequestState
from calumma.tokens.image_preprocessing import ResizeMode
from calumma.tokens.sequence import Segment, encode_prompt, encode_turns

VLM_NUM_FEWSHOT = 2
"""Few-shot examples before a question about an image, if they fit the context."""

_EXTRA_TOKENS = 12
"""Tokens around a question and its answer: words between them, line break, begin and end."""


@dataclass(frozen=True, kw_only=True)
class VlmBenchmark:
    """A benchmark of questions about images."""

    summary: str
    files: str
    read: Callable[..., VlmSplits]
    max_new_tokens: int
    """Tokens of an answer, at most; of captions, as in the paper."""

    is_captioning: bool
    """Whether it asks for captions, scored by CIDEr, or for answers, scored by VQA accuracy."""


@dataclass(frozen=True)
class VlmPromptBuilder:
    """Builds a benchmark's prompts and generates the answers."""

    model: Model
    examples: Sequence[VlmExample]
    benchmark: VlmBenchmark
    config: EvalConfig

    def prompt(self, question: VlmExample) -> list[str | PIL.Image.Image]:
        """Return a prompt as texts and images in order."""
        parts: list[str | PIL.Image.Image] = []
        for example, texts in zip([*self.examples, question], self._texts(question), strict=True):
            parts += [example.image.open(), *texts]
        return parts

    def _texts(self, question: VlmExample) -> list[list[str]]:
        """Return the texts after each image: those of the examples, then the question's."""
        texts = []
        for example in (*self.examples, question):
            text = f"Question: {example.question} Answer:"
            if self.benchmark.is_captioning:
                text = self.config.caption_question
            if example is question:
                texts.append([text] if text else [])
            elif self.config.chat_template:
                texts.append([*([text] if text else []), example.most_common_reference])
            else:
                texts.append([f"{text} {example.most_common_reference}\n".lstrip(" ")])
        return texts

    def token_ids(self, question: VlmExample, codes: Sequence[int]) -> list[int]:
        """Encode the prompt of a question whose image has these codes."""
        contents: list[list[Segment]] = [
            [image, *texts] for image, texts in zip([*self._codes, codes], self._texts(question), strict=True)
        ]
        if not self.config.chat_template:
            segments = [segment for content in contents for segment in content]
            return encode_prompt(segments, self.model.text, add_generation_prompt=False)
        turns: list[tuple[Role, Sequence[Segment]]] = []
        for content in contents[:-1]:
            turns += [("user", content[:-1]), ("assistant", content[-1:])]
        return encode_turns([*turns, ("user", contents[-1])], self.model.text)

    @cached_property
    def _codes(self) -> Sequence[Sequence[int]]:
        return self._encode_images(self.examples)

    def _encode_images(self, examples: Sequence[VlmExample]) -> Sequence[Sequence[int]]:
        """Encode images: padded in turns, as in fine-tuning, else cropped."""
        mode: ResizeMode = "pad" if self.config.chat_template else "crop"
        images = [example.image.open() for example in examples]
        return self.model.image.encode_in_layout(images, [mode] * len(images), self.model.vocabulary.image_sizes)

    def generate_answers(self, questions: Sequence[VlmExample]) -> list[str]:
        """Answer each question by greedy decoding, up to the end of the line."""
        answers: list[str] = []
        for start in range(0, len(questions), BATCH_SIZE):
            answers += self._generate(questions[start : start + BATCH_SIZE])
            self.config.on_progress(len(answers), len(questions))
        return answers

    def _generate(self, batch: Sequence[VlmExample]) -> list[str]:
        requests = [
            Request(
                prompt_token_ids=tuple(self.token_ids(question, codes)),
                max_new_tokens=self.benchmark.max_new_tokens,
                text=GREEDY_TEXT,
                max_images=0,
            )
            for question, codes in zip(batch, self._encode_images(batch), strict=True)
        ]

        def stop_at_line_end(state: RequestState, _: int) -> None:
            # Not a stop string: line breaks before the answer are skipped.
            if "\n" in self._text(state.output_token_ids).lstrip():
                self.model.engine.abort(state)

        states = self.model.engine.generate(requests, on_token=stop_at_line_end)
        texts = (self._text(state.output_token_ids) for state in states)
        return [text.strip().partition("\n")[0].strip() for text in texts]

    def _text(self, ids: Sequence[int]) -> str:
        text = self.model.vocabulary.text
        return self.model.text.decode([id_ for id_ in ids if id_ in text])


def select_fewshot(
    model: Model,
    questions: Sequence[VlmExample],
    train: Sequence[VlmExample],
    benchmark: VlmBenchmark,
    config: EvalConfig,
) -> list[VlmExample]:
    """Choose the few-shot examples of every question: as many as fit the context.

    Raises:
        EvaluationError: a question without examples does not fit.
    """
    num_fewshot = VLM_NUM_FEWSHOT if config.num_fewshot is None else config.num_fewshot
    examples = subsample(train, num_fewshot, config.seed) if num_fewshot else []
    longest = max(questions, key=lambda each: len(each.question)).question
    image_tokens = model.vocabulary.max_image_tokens(model.image.config.codes_per_image)
    max_seq_len = model.decoder.config.max_seq_len
    while True:
        texts = [each.question + each.most_common_reference for each in examples] + [longest]
        text_tokens = sum(len(model.text.encode(text)) + _EXTRA_TOKENS for text in texts)
        num_tokens = text_tokens + image_tokens * (1 + len(examples))
        if num_tokens + benchmark.max_new_tokens <= max_seq_len:
            return list(examples)
        if not examples:
            raise EvaluationError(
                f"a question with its image takes {num_tokens} tokens of a max_seq_len of {max_seq_len}; expected "
                f"{benchmark.max_new_tokens} more for the answer. Take a model with a longer context."
            )
        examples = examples[:-1]


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
