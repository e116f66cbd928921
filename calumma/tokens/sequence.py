"""Documents to sequences of ids and back.

    plain    <s> text <racm3:break> codes <eoss> text ... </s>
    turns    <s> prompt <reserved08706> answer </s> prompt <reserved08706> answer </s>

Text parts are encoded one by one and nothing is put between parts. Every id of a plain document
counts in the loss; of a conversation only the answers count, each with the </s> that ends it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from calumma.documents.document import Document, Part, Role, Text
from calumma.errors import DocumentError, TokenizerError
from calumma.tokens.image_preprocessing import ResizeMode
from calumma.tokens.text import TextTokenizer
from calumma.vocabulary import Vocabulary

Segment = str | Seq[int]
"""A text, or the codes of one image."""


@dataclass(frozen=True)
class TokenSequence:
    """The ids of one document, and which of them count in a loss."""

    token_ids: list[int]
    loss_mask: list[bool]


def encode_image_codes(codes: Seq[int], vocabulary: Vocabulary) -> list[int]:
    """The ids of one image: begin, its codes row by row, end."""
    inside = [vocabulary.code_to_id(code) for code in codes]
    return [vocabulary.begin_image, *inside, vocabulary.end_image]


def encode_document(
    document: Document, tokenizer: TextTokenizer, codes: Seq[Seq[int]]
) -> TokenSequence:
    """The sequence of a document whose pictures have these codes, in reading order.

    Raises:
        DocumentError: a conversation does not alternate prompt and answer.
    """
    vocabulary = tokenizer.vocabulary
    pictures = iter(codes)
    if not document.messages:
        inside = _encode_parts(document.content, tokenizer, pictures)
        ids = [vocabulary.bos, *inside, vocabulary.eos]
        return TokenSequence(ids, [True] * len(ids))
    ids, counted = [vocabulary.bos], [False]
    for prompt, answer in _pairs(document):
        asked = [*_encode_parts(prompt, tokenizer, pictures), vocabulary.end_turn]
        answered = [*_encode_parts(answer, tokenizer, pictures), vocabulary.eos]
        ids += asked + answered
        counted += [False] * len(asked) + [True] * len(answered)
    return TokenSequence(ids, counted)


def _encode_parts(
    parts: Seq[Part], tokenizer: TextTokenizer, codes: Iterator[Seq[int]]
) -> list[int]:
    segments = [part.text if isinstance(part, Text) else next(codes) for part in parts]
    return _encode_segments(segments, tokenizer)


def _encode_segments(segments: Seq[Segment], tokenizer: TextTokenizer) -> list[int]:
    ids: list[int] = []
    for segment in segments:
        if isinstance(segment, str):
            ids += tokenizer.encode(segment)
        else:
            ids += encode_image_codes(segment, tokenizer.vocabulary)
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
    segments: Seq[Segment], tokenizer: TextTokenizer, *, add_generation_prompt: bool
) -> list[int]:
    """Encode a prompt: begin-of-sequence, then its texts and images in reading order.

    Args:
        segments: texts and image codes.
        tokenizer: encodes the texts.
        add_generation_prompt: append end-of-turn, after which the model answers; without it the
            model continues the prompt.
    """
    vocabulary = tokenizer.vocabulary
    ids = [vocabulary.bos, *_encode_segments(segments, tokenizer)]
    return [*ids, vocabulary.end_turn] if add_generation_prompt else ids


def encode_turns(turns: Iterable[tuple[Role, Seq[Segment]]], tokenizer: TextTokenizer) -> list[int]:
    """Encode a conversation as the prompt of its next answer, laid out as in a document of turns.

    After a user turn the model answers; an assistant turn that comes last is continued.

    Raises:
        DocumentError: an assistant turn has no prompt.
    """
    vocabulary = tokenizer.vocabulary
    ids, previous_role = [vocabulary.bos], ""
    for role, segments in turns:
        if role == "assistant":
            if previous_role in ("", "assistant"):
                raise DocumentError(
                    "an answer stands without a prompt; expected a user turn before every assistant "
                    "turn. Add the prompt, or join the two answers."
                )
            ids.append(vocabulary.end_turn)
        elif previous_role == "assistant":
            ids.append(vocabulary.eos)
        ids += _encode_segments(segments, tokenizer)
        previous_role = role
    return ids if previous_role == "assistant" else [*ids, vocabulary.end_turn]


def image_resize_mode(role: Role) -> ResizeMode:
    """Return how images of a turn become square: the assistant's are cropped, others padded."""
    return "crop" if role == "assistant" else "pad"


def split_modalities(ids: Seq[int], vocabulary: Vocabulary) -> list[tuple[str, list[int]]]:
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
            inside.append(vocabulary.id_to_code(id_))
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
