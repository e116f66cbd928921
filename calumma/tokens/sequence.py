"""Documents to sequences of ids and back.

    plain    <s> text <racm3:break> codes <eoss> text ... </s>
    turns    <s> prompt <reserved08706> answer </s> prompt <reserved08706> answer </s>

Text parts are encoded one by one and nothing is put between parts. Every id of a plain document
counts in the loss; of a conversation only the answers count, each with the </s> that ends it.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from calumma.documents.document import Document, Part, Text, Turn
from calumma.errors import DocumentError, TokenizerError
from calumma.tokens.text import TextTokenizer
from calumma.vocabulary import Vocabulary


@dataclass(frozen=True)
class Sequence:
    """The ids of one document, and which of them count in a loss."""

    ids: list[int]
    counted: list[bool]


def encode_codes(codes: Seq[int], vocabulary: Vocabulary) -> list[int]:
    """The ids of one image: begin, its codes row by row, end."""
    inside = [vocabulary.id_of_code(code) for code in codes]
    return [vocabulary.begin_image, *inside, vocabulary.end_image]


def encode_document(document: Document, tokenizer: TextTokenizer, codes: Seq[Seq[int]]) -> Sequence:
    """The sequence of a document whose pictures have these codes, in reading order.

    Raises:
        DocumentError: a conversation does not alternate prompt and answer.
    """
    vocabulary = tokenizer.vocabulary
    pictures = iter(codes)
    if not document.messages:
        inside = _encode_parts(document.content, tokenizer, pictures)
        ids = [vocabulary.bos, *inside, vocabulary.eos]
        return Sequence(ids, [True] * len(ids))
    ids, counted = [vocabulary.bos], [False]
    for prompt, answer in _pairs(document):
        asked = [*_encode_parts(prompt, tokenizer, pictures), vocabulary.end_turn]
        answered = [*_encode_parts(answer, tokenizer, pictures), vocabulary.eos]
        ids += asked + answered
        counted += [False] * len(asked) + [True] * len(answered)
    return Sequence(ids, counted)


def _encode_parts(
    parts: Seq[Part], tokenizer: TextTokenizer, pictures: Iterator[Seq[int]]
) -> list[int]:
    ids: list[int] = []
    for part in parts:
        if isinstance(part, Text):
            ids += tokenizer.encode(part.text)
        else:
            ids += encode_codes(next(pictures), tokenizer.vocabulary)
    return ids


def _pairs(document: Document) -> Iterator[tuple[tuple[Part, ...], tuple[Part, ...]]]:
    """Prompts with their answers; system turns are read as the start of the prompt."""
    prompt: tuple[Part, ...] = ()
    for turn in document.messages:
        if turn.role != "assistant":
            prompt += turn.parts
            continue
        if not prompt:
            raise DocumentError(
                f"{document.id}: an answer stands without a prompt; expected a user turn before "
                "every assistant turn. Add the prompt, or join the two answers."
            )
        yield prompt, turn.parts
        prompt = ()
    if prompt:
        raise DocumentError(
            f"{document.id}: the last prompt has no answer; expected an assistant turn after every "
            "user turn. Add the answer, or drop the turn."
        )


def encode_prompt(
    parts: Seq[Part], tokenizer: TextTokenizer, codes: Seq[Seq[int]], *, answer: bool
) -> list[int]:
    """The ids a model goes on from: bos and the parts, and end of turn to ask for an answer."""
    vocabulary = tokenizer.vocabulary
    ids = [vocabulary.bos, *_encode_parts(parts, tokenizer, iter(codes))]
    return [*ids, vocabulary.end_turn] if answer else ids


def encode_turns(turns: Seq[Turn], tokenizer: TextTokenizer, codes: Seq[Seq[int]]) -> list[int]:
    """The ids behind which a conversation goes on, laid out as in a document of turns.

    Behind a user's turn the answer begins; an assistant's turn that comes last is gone on with.

    Raises:
        DocumentError: an answer stands without a prompt.
    """
    vocabulary, pictures = tokenizer.vocabulary, iter(codes)
    ids, before = [vocabulary.bos], ""
    for turn in turns:
        if turn.role == "assistant":
            if before in ("", "assistant"):
                raise DocumentError(
                    "an answer stands without a prompt; expected a user turn before every assistant "
                    "turn. Add the prompt, or join the two answers."
                )
            ids.append(vocabulary.end_turn)
        elif before == "assistant":
            ids.append(vocabulary.eos)
        ids += _encode_parts(turn.parts, tokenizer, pictures)
        before = turn.role
    return ids if before == "assistant" else [*ids, vocabulary.end_turn]


def split_ids(ids: Seq[int], vocabulary: Vocabulary) -> list[tuple[str, list[int]]]:
    """Cut ids into runs: ("text", text ids) and ("image", codes); control ids end a run.

    An image that is not closed comes out with the codes it has.

    Raises:
        TokenizerError: a code stands outside an image, or text inside one.
    """
    runs: list[tuple[str, list[int]]] = []
    inside: list[int] | None = None
    new_run = True
    for place, id_ in enumerate(ids):
        if id_ == vocabulary.begin_image:
            inside = []
            runs.append(("image", inside))
        elif id_ == vocabulary.end_image:
            inside, new_run = None, True
        elif id_ in vocabulary.codes:
            if inside is None:
                raise TokenizerError(
                    f"id {id_} at place {place} is an image code outside an image; expected "
                    f"begin-of-image ({vocabulary.begin_image}) before it."
                )
            inside.append(vocabulary.code_of_id(id_))
        elif id_ in vocabulary.text:
            if inside is not None:
                raise TokenizerError(
                    f"id {id_} at place {place} is text inside an image; expected image codes up to "
                    f"end-of-image ({vocabulary.end_image})."
                )
            if new_run or not runs or runs[-1][0] != "text":
                runs.append(("text", []))
            runs[-1][1].append(id_)
            new_run = False
        else:
            inside, new_run = None, True
    return runs
