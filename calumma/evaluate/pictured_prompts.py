"""How questions about pictures are put to a model: examples with their answers, then the question.

Gone on with (as models are that were only pre-trained) a prompt is one document, an example a line;
in turns, examples are earlier turns of the conversation. Examples are encoded once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import PIL.Image

from calumma.documents.document import Image, Part, Text, Turn
from calumma.errors import EvaluationError
from calumma.evaluate.captioning import GREEDY
from calumma.evaluate.held_out import PIECES, Options, chosen
from calumma.evaluate.pictured_files import Published, Question
from calumma.generate.config import Request
from calumma.generate.model import Model
from calumma.tokens.sequence import encode_prompt, encode_turns
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
    options: Options

    def prompt(self, question: Question) -> list[str | PIL.Image.Image]:
        """What is put, as texts and pictures in their order; turns end where a text does."""
        parts: list[str | PIL.Image.Image] = []
        for number, texts in enumerate(self._texts(question)):
            asked = [*self.examples, question][number]
            parts += [asked.image.open(), *texts]
        return parts

    def _texts(self, question: Question) -> list[list[str]]:
        """The texts behind each picture: those of the examples, and the question's own."""
        behind = self.options.question
        made = []
        for each in (*self.examples, question):
            asked = behind if self.kind.captions else f"Question: {each.text} Answer:"
            if each is question:
                made.append([asked] if asked else [])
            elif self.options.turns:
                made.append([*([asked] if asked else []), each.said_most])
            else:
                made.append([f"{asked} {each.said_most}\n".lstrip(" ")])
        return made

    def ids(self, question: Question, codes: Sequence[int]) -> list[int]:
        """The prompt's ids, given the codes of the question's picture."""
        rows: list[list[Part]] = [
            [Image(data=b""), *(Text(text) for text in texts)] for texts in self._texts(question)
        ]
        all_codes = [*self._codes, codes]
        if not self.options.turns:
            parts = [part for row in rows for part in row]
            return encode_prompt(parts, self.model.text, all_codes, answer=False)
        turns = []
        for row in rows[:-1]:
            turns += [Turn("user", tuple(row[:-1])), Turn("assistant", (row[-1],))]
        turns.append(Turn("user", tuple(rows[-1])))
        return encode_turns(turns, self.model.text, all_codes)

    @cached_property
    def _codes(self) -> list[list[int]]:
        return self._encoded(self.examples)

    def _encoded(self, questions: Sequence[Question]) -> list[list[int]]:
        """The codes of pictures: padded in turns, as in fine-tuning, else cropped."""
        fit: Fit = "pad" if self.options.turns else "crop"
        return self.model.image.encode_images([q.image.open() for q in questions], mode=fit)

    def write(self, asked: Sequence[Question]) -> list[str]:
        """The likeliest text behind each question, id by id, up to the end of its line."""
        written: list[str] = []
        for start in range(0, len(asked), PIECES):
            piece = asked[start : start + PIECES]
            written += self._written(piece)
            self.options.tick(len(written), len(asked))
        return written

    def _written(self, piece: Sequence[Question]) -> list[str]:
        engine = self.model.engine
        works = engine.submit_all(
            [
                Request(
                    ids=tuple(self.ids(question, codes)),
                    max_new_tokens=self.kind.tokens,
                    text=GREEDY,
                    max_images=0,
                )
                for question, codes in zip(piece, self._encoded(piece), strict=True)
            ]
        )
        for work, _ in engine.follow(works):
            if "\n" in self._text(work.ids).lstrip():
                engine.cancel(work)
        return [self._text(work.ids).strip().partition("\n")[0].strip() for work in works]

    def _text(self, ids: Sequence[int]) -> str:
        text = self.model.vocabulary.text
        return self.model.text.decode([id_ for id_ in ids if id_ in text])


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
                f"expected room for an answer of {kind.tokens}. Take a model with longer rows."
            )
        examples = examples[:-1]
