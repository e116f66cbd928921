"""Documents to token sequences and back.

    plain    <s> text <racm3:break> codes <eoss> text ... </s>
    turns    <s> prompt <reserved08706> answer </s> prompt <reserved08706> answer </s>

Text parts are encoded one by one, with nothing between parts. The loss mask of a plain document is
all ones; in a conversation it covers only the answers, each with the </s> that ends it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from math import isqrt

from calumma.documents.document import Document, Part, Role, SpecialToken, Text
from calumma.errors import DocumentError, TokenizerError
from calumma.tokens.image_preprocessing import ResizeMode
from calumma.tokens.text import TextTokenizer
from calumma.vocabulary import Grid, Vocabulary


class CodeGrid(list[int]):
    """Codes of an image row by row, in a vocabulary with image sizes; they may be incomplete."""

    def __init__(self, codes: Iterable[int], rows: int, columns: int) -> None:
        super().__init__(codes)
        self.rows, self.columns = rows, columns


Segment = str | SpecialToken | Sequence[int]
"""A text, an added token, or the codes of one image."""


@dataclass(frozen=True)
class TokenSequence:
    """The token ids of one document and their loss mask."""

    token_ids: list[int]

    loss_mask: list[bool]
    """Whether each token counts in the loss."""


def encode_image_codes(codes: Sequence[int], vocabulary: Vocabulary) -> list[int]:
    """Return the token ids of an image: begin-of-image, its codes row by row, end-of-image.

    In a vocabulary with image sizes height and width come first, and a newline ends each row.
    """
    ids = [vocabulary.code_to_id(code) for code in codes]
    if (sizes := vocabulary.image_sizes) is not None:
        rows, columns = grid_of(codes)
        lines = [[*ids[start : start + columns], sizes.newline] for start in range(0, len(ids), columns)]
        ids = [sizes.side_token(rows), sizes.side_token(columns), *chain.from_iterable(lines)]
    return [vocabulary.begin_image, *ids, vocabulary.end_image]


def grid_of(codes: Sequence[int]) -> Grid:
    """Return the rows and columns of an image's codes, which are a square unless they say."""
    if isinstance(codes, CodeGrid):
        return codes.rows, codes.columns
    return isqrt(len(codes)), isqrt(len(codes))


def encode_document(document: Document, tokenizer: TextTokenizer, codes: Sequence[Sequence[int]]) -> TokenSequence:
    """Encode a document, given the codes of its images in reading order.

    Raises:
        DocumentError: a conversation does not alternate prompt and answer.
    """
    vocabulary = tokenizer.vocabulary
    images = iter(codes)
    if not document.messages:
        content = _encode_parts(document.content, tokenizer, images)
        ids = [vocabulary.bos, *content, vocabulary.eos]
        return TokenSequence(ids, [True] * len(ids))
    ids, loss_mask = [vocabulary.bos], [False]
    for prompt, answer in _prompt_answer_pairs(document):
        prompt_ids = [*_encode_parts(prompt, tokenizer, images), vocabulary.end_turn]
        answer_ids = [*_encode_parts(answer, tokenizer, images), vocabulary.eos]
        ids += prompt_ids + answer_ids
        loss_mask += [False] * len(prompt_ids) + [True] * len(answer_ids)
    return TokenSequence(ids, loss_mask)


def _encode_parts(parts: Sequence[Part], tokenizer: TextTokenizer, codes: Iterator[Sequence[int]]) -> list[int]:
    segments = [text_segment(p) if isinstance(p, Text) else next(codes) for p in parts]
    return _encode_segments(segments, tokenizer)


def text_segment(part: Text) -> Segment:
    """Return the segment of a text part or a special token."""
    return part if isinstance(part, SpecialToken) else part.text


def _encode_segments(segments: Sequence[Segment], tokenizer: TextTokenizer) -> list[int]:
    ids: list[int] = []
    for segment in segments:
        if isinstance(segment, str):
            ids += tokenizer.encode(segment)
        elif isinstance(segment, SpecialToken):
            ids.append(tokenizer.encode_special_token(segment.text))
        else:
            ids += encode_image_codes(segment, tokenizer.vocabulary)
    return ids


def _prompt_answer_pairs(document: Document) -> Iterator[tuple[tuple[Part, ...], tuple[Part, ...]]]:
    """Yield each prompt with its answer; system turns are part of the prompt."""
    prompt: tuple[Part, ...] = ()
    for turn in document.messages:
        if turn.role != "assistant":
            prompt += turn.parts
            continue
        if not prompt:
            raise DocumentError(
                f"{document.id}: an answer has no prompt; expected a user turn before "
                "every assistant turn. Add the prompt, or join the two answers."
            )
        yield prompt, turn.parts
        prompt = ()
    if prompt:
        raise DocumentError(
            f"{document.id}: the last prompt has no answer; expected an assistant turn after every "
            "user turn. Add the answer, or remove the turn."
        )


def encode_prompt(segments: Sequence[Segment], tokenizer: TextTokenizer, *, add_generation_prompt: bool) -> list[int]:
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


def encode_turns(turns: Iterable[tuple[Role, Sequence[Segment]]], tokenizer: TextTokenizer) -> list[int]:
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
                    "an answer has no prompt; expected a user turn before every assistant "
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


def split_modalities(ids: Sequence[int], vocabulary: Vocabulary) -> list[tuple[str, list[int]]]:
    """Split token ids into runs: ("text", text ids) and ("image", codes).

    Control tokens end a run. An incomplete image is returned with the codes it has; in a vocabulary
    with image sizes codes are a `CodeGrid`.

    Raises:
        TokenizerError: a code is outside an image, or text inside one.
    """
    runs: list[tuple[str, list[int]]] = []
    inside: list[int] | None = None
    new_run = True
    sizes = vocabulary.image_sizes
    for position, id_ in enumerate(ids):
        if id_ == vocabulary.begin_image:
            inside = []
            if sizes is not None:
                sides = [sizes.side_cells(id_) for id_ in ids[position + 1 : position + 3]]
                inside = CodeGrid([], *sides) if len(sides) == 2 else []
            runs.append(("image", inside))
        elif sizes is not None and inside is not None and id_ in sizes:
            continue
        elif id_ == vocabulary.end_image:
            inside, new_run = None, True
        elif id_ in vocabulary.codes:
            if inside is None:
                raise TokenizerError(
                    f"id {id_} at position {position} is an image code outside an image; expected "
                    f"begin-of-image ({vocabulary.begin_image}) before it."
                )
            inside.append(vocabulary.id_to_code(id_))
        elif id_ in vocabulary.text:
            if inside is not None:
                raise TokenizerError(
                    f"id {id_} at position {position} is text inside an image; expected image "
                    f"codes up to end-of-image ({vocabulary.end_image})."
                )
            if new_run or not runs or runs[-1][0] != "text":
                runs.append(("text", []))
            runs[-1][1].append(id_)
            new_run = False
        else:
            inside, new_run = None, True
    return runs
