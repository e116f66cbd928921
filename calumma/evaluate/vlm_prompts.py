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
from calumma.evaluate.captioning import GREEDY
from calumma.evaluate.context import BATCH_SIZE, EvalConfig, subsample
from calumma.evaluate.vlm_files import Published, Question
from calumma.generate.model import Model
from calumma.generate.params import Request
from calumma.tokens.sequence import Segment, encode_prompt, encode_turns
from calumma.tokens.squares import Fit

SHOTS = 2
"""Examples before a question about a picture, where a row has room for them."""

_SPARE = 12
"""Ids around a question and its answer: words between them, line, begin and end."""


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


@dataclass(frozen=True)
class Asker:
    """Puts a benchmark's questions to a model."""

    model: Model
    examples: Sequence[Question]
    kind: Pictured
    options: EvalConfig

    def prompt(self, question: Question) -> list[str | PIL.Image.Image]:
        """What is put, as texts and pictures in their order; turns end where a text does."""
        parts: list[str | PIL.Image.Image] = []
        for number, texts in enumerate(self._texts(question)):
            asked = [*self.examples, question][number]
            parts += [asked.image.open(), *texts]
        return parts

    def _texts(self, question: Question) -> list[list[str]]:
        """The texts behind each picture: those of the examples, and the question's own."""
        behind = self.options.caption_question
        made = []
        for each in (*self.examples, question):
            asked = behind if self.kind.captions else f"Question: {each.text} Answer:"
            if each is question:
                made.append([asked] if asked else [])
            elif self.options.chat_template:
                made.append([*([asked] if asked else []), each.said_most])
            else:
                made.append([f"{asked} {each.said_most}\n".lstrip(" ")])
        return made

    def ids(self, question: Question, codes: Sequence[int]) -> list[int]:
        """Encode the prompt of a question whose image has these codes."""
        contents: list[list[Segment]] = [
            [image, *texts]
            for image, texts in zip([*self._codes, codes], self._texts(question), strict=True)
        ]
        if not self.options.chat_template:
            segments = [segment for content in contents for segment in content]
            return encode_prompt(segments, self.model.text, add_generation_prompt=False)
        turns: list[tuple[Role, Sequence[Segment]]] = []
        for content in contents[:-1]:
            turns += [("user", content[:-1]), ("assistant", content[-1:])]
        return encode_turns([*turns, ("user", contents[-1])], self.model.text)

    @cached_property
    def _codes(self) -> list[list[int]]:
        return self._encoded(self.examples)

    def _encoded(self, questions: Sequence[Question]) -> list[list[int]]:
        """The codes of pictures: padded in turns, as in fine-tuning, else cropped."""
        fit: Fit = "pad" if self.options.chat_template else "crop"
        return self.model.image.encode_images([q.image.open() for q in questions], mode=fit)

    def write(self, asked: Sequence[Question]) -> list[str]:
        """The likeliest text behind each question, id by id, up to the end of its line."""
        written: list[str] = []
        for start in range(0, len(asked), BATCH_SIZE):
            piece = asked[start : start + BATCH_SIZE]
            written += self._written(piece)
            self.options.on_progress(len(written), len(asked))
        return written

    def _written(self, piece: Sequence[Question]) -> list[str]:
        engine = self.model.engine
        works = engine.submit_all(
            [
                Request(
                    prompt_token_ids=tuple(self.ids(question, codes)),
                    max_new_tokens=self.kind.tokens,
                    text=GREEDY,
                    max_images=0,
                )
                for question, codes in zip(piece, self._encoded(piece), strict=True)
            ]
        )
        for work, _ in engine.follow(works):
            if "\n" in self._text(work.output_token_ids).lstrip():
                engine.cancel(work)
        return [
            self._text(work.output_token_ids).strip().partition("\n")[0].strip() for work in works
        ]

    def _text(self, ids: Sequence[int]) -> str:
        text = self.model.vocabulary.text
        return self.model.text.decode([id_ for id_ in ids if id_ in text])


def shots_that_fit(
    model: Model,
    asked: Sequence[Question],
    training: Sequence[Question],
    kind: Pictured,
    options: EvalConfig,
) -> list[Question]:
    """The examples that are shown before every question: as many as asked for, if a row has room.

    Raises:
        EvaluationError: a question alone does not fit.
    """
    shots = SHOTS if options.num_fewshot is None else options.num_fewshot
    examples = subsample(training, shots, options.seed) if shots else []
    longest = max(asked, key=lambda each: len(each.text))
    picture = model.image.config.codes_per_image + 2
    row = model.decoder.config.max_seq_len
    while True:
        texts = [each.text + each.said_most for each in examples]
        length = sum(len(model.text.encode(text)) + _SPARE for text in [*texts, longest.text])
        if length + picture * (1 + len(examples)) + kind.tokens <= row:
            return list(examples)
        if not examples:
            raise EvaluationError(
                f"a question with its picture takes {length + picture} ids of a row of {row}; "
                f"expected room for an answer of {kind.tokens}. Take a model with longer rows."
            )
        examples = examples[:-1]
