"""How questions about pictures are put to a model: examples with their answers, then the question.

Gone on with (as models are that were only pre-trained) a prompt is one document, an example a line;
in turns, examples are earlier turns of the conversation. Examples are encoded once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import PIL.Image

from calumma.documents.document import Role
from calumma.errors import EvaluationError
from calumma.evaluate.captioning import GREEDY_TEXT
from calumma.evaluate.context import BATCH_SIZE, EvalConfig, subsample
from calumma.evaluate.vlm_files import VlmExample, VlmSplits
from calumma.generate.model import Model
from calumma.generate.params import Request
from calumma.tokens.image_preprocessing import ResizeMode
from calumma.tokens.sequence import Segment, encode_prompt, encode_turns

VLM_NUM_FEWSHOT = 2
"""Examples before a question about a picture, where a row has room for them."""

_SPARE = 12
"""Ids around a question and its answer: words between them, line, begin and end."""


@dataclass(frozen=True, kw_only=True)
class VlmBenchmark:
    """A benchmark of questions about pictures."""

    summary: str
    files: str
    read: Callable[..., VlmSplits]
    max_new_tokens: int
    """Ids an answer may have: the cap of captions is the paper's."""

    is_captioning: bool
    """Whether captions are asked for, scored by CIDEr, or answers, scored by agreement."""


@dataclass(frozen=True)
class VlmPromptBuilder:
    """Puts a benchmark's questions to a model."""

    model: Model
    examples: Sequence[VlmExample]
    benchmark: VlmBenchmark
    config: EvalConfig

    def prompt(self, question: VlmExample) -> list[str | PIL.Image.Image]:
        """What is put, as texts and pictures in their order; turns end where a text does."""
        parts: list[str | PIL.Image.Image] = []
        for number, texts in enumerate(self._texts(question)):
            asked = [*self.examples, question][number]
            parts += [asked.image.open(), *texts]
        return parts

    def _texts(self, question: VlmExample) -> list[list[str]]:
        """The texts behind each picture: those of the examples, and the question's own."""
        behind = self.config.caption_question
        made = []
        for each in (*self.examples, question):
            asked = behind if self.benchmark.is_captioning else f"Question: {each.question} Answer:"
            if each is question:
                made.append([asked] if asked else [])
            elif self.config.chat_template:
                made.append([*([asked] if asked else []), each.most_common_reference])
            else:
                made.append([f"{asked} {each.most_common_reference}\n".lstrip(" ")])
        return made

    def token_ids(self, question: VlmExample, codes: Sequence[int]) -> list[int]:
        """Encode the prompt of a question whose image has these codes."""
        contents: list[list[Segment]] = [
            [image, *texts]
            for image, texts in zip([*self._codes, codes], self._texts(question), strict=True)
        ]
        if not self.config.chat_template:
            segments = [segment for content in contents for segment in content]
            return encode_prompt(segments, self.model.text, add_generation_prompt=False)
        turns: list[tuple[Role, Sequence[Segment]]] = []
        for content in contents[:-1]:
            turns += [("user", content[:-1]), ("assistant", content[-1:])]
        return encode_turns([*turns, ("user", contents[-1])], self.model.text)

    @cached_property
    def _codes(self) -> list[list[int]]:
        return self._encoded(self.examples)

    def _encoded(self, questions: Sequence[VlmExample]) -> list[list[int]]:
        """The codes of pictures: padded in turns, as in fine-tuning, else cropped."""
        fit: ResizeMode = "pad" if self.config.chat_template else "crop"
        return self.model.image.encode_images([q.image.open() for q in questions], mode=fit)

    def generate_answers(self, asked: Sequence[VlmExample]) -> list[str]:
        """The likeliest text behind each question, id by id, up to the end of its line."""
        written: list[str] = []
        for start in range(0, len(asked), BATCH_SIZE):
            piece = asked[start : start + BATCH_SIZE]
            written += self._written(piece)
            self.config.on_progress(len(written), len(asked))
        return written

    def _written(self, piece: Sequence[VlmExample]) -> list[str]:
        engine = self.model.engine
        works = engine.submit_all(
            [
                Request(
                    prompt_token_ids=tuple(self.token_ids(question, codes)),
                    max_new_tokens=self.benchmark.max_new_tokens,
                    text=GREEDY_TEXT,
                    max_images=0,
                )
                for question, codes in zip(piece, self._encoded(piece), strict=True)
            ]
        )
        for work, _ in engine.stream_tokens(works):
            if "\n" in self._text(work.output_token_ids).lstrip():
                engine.abort(work)
        return [
            self._text(work.output_token_ids).strip().partition("\n")[0].strip() for work in works
        ]

    def _text(self, ids: Sequence[int]) -> str:
        text = self.model.vocabulary.text
        return self.model.text.decode([id_ for id_ in ids if id_ in text])


def select_fewshot(
    model: Model,
    asked: Sequence[VlmExample],
    training: Sequence[VlmExample],
    kind: VlmBenchmark,
    config: EvalConfig,
) -> list[VlmExample]:
    """The examples that are shown before every question: as many as asked for, if a row has room.

    Raises:
        EvaluationError: a question alone does not fit.
    """
    shots = VLM_NUM_FEWSHOT if config.num_fewshot is None else config.num_fewshot
    examples = subsample(training, shots, config.seed) if shots else []
    longest = max(asked, key=lambda each: len(each.question))
    picture = model.image.config.codes_per_image + 2
    row = model.decoder.config.max_seq_len
    while True:
        texts = [each.question + each.most_common_reference for each in examples]
        length = sum(len(model.text.encode(text)) + _SPARE for text in [*texts, longest.question])
        if length + picture * (1 + len(examples)) + kind.max_new_tokens <= row:
            return list(examples)
        if not examples:
            raise EvaluationError(
                f"a question with its picture takes {length + picture} ids of a row of {row}; "
                f"expected room for an answer of {kind.max_new_tokens}. Take a model with longer rows."
            )
        examples = examples[:-1]
