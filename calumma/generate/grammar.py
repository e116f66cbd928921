"""Grammar of interleaved documents: which tokens may come next."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from itertools import chain
from math import isqrt

from calumma.errors import GenerationError
from calumma.tokens.vq.config import VQConfig
from calumma.vocabulary import Grid, Vocabulary, parse_grid


class TokenKind(IntEnum):
    """Kinds of the next token; from BEGIN_IMAGE on, the kind allows a single token."""

    TEXT = 0
    """A text token or end-of-sequence."""

    TEXT_OR_IMAGE = 1
    """A text token, end-of-sequence or begin-of-image."""

    IMAGE_OR_EOS = 2
    """Begin-of-image or end-of-sequence."""

    IMAGE_SIDE = 3
    """The height or width of an image whose size is sampled."""

    TEXT_BEFORE_IMAGE = 4
    """A text token or begin-of-image."""

    IMAGE_CODE = 5
    """An image code."""

    BEGIN_IMAGE = 6
    END_IMAGE = 7
    EOS = 8


@cache
def allowed_ids(kind: TokenKind, vocabulary: Vocabulary) -> tuple[range, ...]:
    """Return the token ids that a kind allows.

    Other special tokens, such as end-of-turn or the placeholder, are never sampled.
    """
    eos, begin, end = (range(id_, id_ + 1) for id_ in (vocabulary.eos, vocabulary.begin_image, vocabulary.end_image))
    sizes = vocabulary.image_sizes
    return {
        TokenKind.TEXT: (eos, vocabulary.text),
        TokenKind.TEXT_OR_IMAGE: (eos, begin, vocabulary.text),
        TokenKind.IMAGE_OR_EOS: (eos, begin),
        TokenKind.IMAGE_SIDE: () if sizes is None else (sizes.sides,),
        TokenKind.TEXT_BEFORE_IMAGE: (begin, vocabulary.text),
        TokenKind.IMAGE_CODE: (vocabulary.codes,),
        TokenKind.BEGIN_IMAGE: (begin,),
        TokenKind.END_IMAGE: (end,),
        TokenKind.EOS: (eos,),
    }[kind]


@dataclass
class Grammar:
    """State of the grammar: an image is exactly `codes_per_image` tokens and end-of-image.

    Outside an image no code is allowed, and an image is begun only if it fits. The grammar masks
    logits and does not rely on the model: one stray code would shift all later codes by one cell,
    and the image could not be decoded.

    >>> vocabulary = Vocabulary(num_codes=4, num_text=256)
    >>> grammar = Grammar(vocabulary, codes_per_image=1, max_remaining_tokens=4)
    >>> grammar.next_kind.name
    'TEXT_OR_IMAGE'
    >>> grammar.accept_token(vocabulary.begin_image); grammar.next_kind.name
    'IMAGE_CODE'
    >>> grammar.accept_token(4); grammar.next_kind.name, grammar.forced_token
    ('END_IMAGE', 8)
    """

    vocabulary: Vocabulary
    codes_per_image: int
    """Tokens between begin and end of an image: its codes, and in a vocabulary with image sizes
    the sizes and newlines."""

    max_remaining_tokens: int
    """Tokens that may still be added."""

    max_images: int = 1_000_000
    """Images that may still be begun."""

    image_first: bool = False
    """Whether the next token outside an image must begin one."""

    images_only: bool = False
    """Whether no text is allowed between and after the images."""

    max_leading_text_tokens: int = 0
    """Text tokens that may still precede the first image where only images are allowed."""

    num_codes_remaining: int | None = None
    """Codes the open image still needs; None while no image is open."""

    template: Sequence[int | None] = ()
    """Tokens of the open or next image, None where a code is sampled; empty if all are sampled."""

    next_template: Sequence[int | None] = ()
    """The template of later images."""

    sides: tuple[int, ...] = ()
    """Rows and columns of the open image whose size is sampled, as far as they are known."""

    @property
    def allowed_sides(self) -> set[int]:
        """Token ids of the heights, or widths, that the open image may have."""
        sizes = self.vocabulary.image_sizes
        assert sizes is not None, "images have one size"
        count = len(self.sides)
        return {sizes.side_token(grid[count]) for grid in sizes.grids if grid[:count] == self.sides}

    @property
    def _samples_side(self) -> bool:
        is_open = self.num_codes_remaining is not None
        return is_open and self.vocabulary.image_sizes is not None and not self.template

    @property
    def next_kind(self) -> TokenKind:
        """Kind of the next token."""
        if self._samples_side:
            return TokenKind.IMAGE_SIDE
        if self.num_codes_remaining is not None:
            return TokenKind.IMAGE_CODE if self.num_codes_remaining else TokenKind.END_IMAGE
        return self._kind_outside_image(self.max_remaining_tokens)

    @property
    def kind_after_next(self) -> TokenKind | None:
        """Kind of the token after next, or None if it cannot be predicted.

        It cannot at a sampled side or the last code of an image, before a known code, at the token
        limit, or when only images are allowed. The prediction assumes that the next token outside an image is
        text: begin-of-image and end-of-sequence are mispredictions.
        """
        if self._samples_side:
            return None
        if self.num_codes_remaining is not None:
            is_sampled = self.num_codes_remaining > 1 and self._known_token(1) is None
            return TokenKind.IMAGE_CODE if is_sampled else None
        if self.images_only or self.max_remaining_tokens < 2:
            return None
        return self._kind_outside_image(self.max_remaining_tokens - 1)

    def _kind_outside_image(self, max_remaining_tokens: int) -> TokenKind:
        fits = self.max_images > 0 and max_remaining_tokens >= self.codes_per_image + 2
        if self.images_only and not fits:
            return TokenKind.EOS
        if self.max_leading_text_tokens and max_remaining_tokens > self.codes_per_image + 2:
            return TokenKind.TEXT_BEFORE_IMAGE
        if self.image_first and fits:
            return TokenKind.BEGIN_IMAGE
        if self.images_only:
            return TokenKind.IMAGE_OR_EOS
        return TokenKind.TEXT_OR_IMAGE if fits else TokenKind.TEXT

    @property
    def forced_token(self) -> int | None:
        """The only token allowed next, if there is only one: it needs no forward pass."""
        kind = self.next_kind
        if kind is TokenKind.IMAGE_CODE:
            return self._known_token(0)
        if kind is TokenKind.IMAGE_SIDE:
            sides = self.allowed_sides
            return next(iter(sides)) if len(sides) == 1 else None
        if kind < TokenKind.BEGIN_IMAGE:
            return None
        ((only,),) = allowed_ids(kind, self.vocabulary)
        return only

    def _known_token(self, offset: int) -> int | None:
        """Return the known token of the open image that is `offset` tokens after the next one."""
        if not self.template or not self.num_codes_remaining:
            return None
        return self.template[self.codes_per_image - self.num_codes_remaining + offset]

    @property
    def num_codes_before_known(self) -> int:
        """Codes of the open image that are sampled before the next known token or its end."""
        remaining = self.num_codes_remaining or 0
        known = (offset for offset in range(remaining) if self._known_token(offset) is not None)
        return next(known, remaining) if self.template else remaining

    def allows(self, id_: int) -> bool:
        """Return whether the token may come next."""
        kind = self.next_kind
        if kind is TokenKind.IMAGE_CODE and (known := self._known_token(0)) is not None:
            return id_ == known
        if kind is TokenKind.IMAGE_SIDE:
            return id_ in self.allowed_sides
        return any(id_ in ids for ids in allowed_ids(kind, self.vocabulary))

    def accept_token(self, id_: int) -> None:
        """Advance by a sampled token."""
        assert self.allows(id_), f"id {id_} was not allowed here"
        self.consume(id_)

    def consume(self, id_: int) -> None:
        """Advance by a token of the prompt, or one that `allows` has checked."""
        self.max_remaining_tokens -= 1
        if id_ == self.vocabulary.begin_image:
            self.num_codes_remaining = self.codes_per_image
            self.max_images -= 1
            self.image_first = False
            self.max_leading_text_tokens = 0
            self.sides = ()
        elif id_ == self.vocabulary.end_image:
            self.num_codes_remaining = None
            self.template = self.next_template
            self.codes_per_image = self.longest_image - 2
        elif self._samples_side:
            self._consume_side(id_)
        elif self.num_codes_remaining is not None:
            self.num_codes_remaining -= 1
        elif self.max_leading_text_tokens:
            self.max_leading_text_tokens -= 1

    def _consume_side(self, id_: int) -> None:
        sizes = self.vocabulary.image_sizes
        assert sizes is not None and self.num_codes_remaining is not None
        self.sides += (sizes.side_cells(id_),)
        self.num_codes_remaining -= 1
        if len(self.sides) == 2:
            rows, columns = self.sides
            self.sides = ()
            self.template = image_template(self.vocabulary, (rows, columns))
            self.codes_per_image = len(self.template)
            self.num_codes_remaining = self.codes_per_image - 2

    @property
    def longest_image(self) -> int:
        """Most tokens of a later image, begin and end included."""
        if self.vocabulary.image_sizes is None or self.next_template:
            return (len(self.next_template) or self.codes_per_image) + 2
        return self.vocabulary.image_sizes.max_image_tokens

    @property
    def shortest_image(self) -> int:
        """Fewest tokens of a later image, begin and end included."""
        sizes = self.vocabulary.image_sizes
        if sizes is None or self.next_template:
            return self.longest_image
        return min(rows * (columns + 1) for rows, columns in sizes.grids) + 4

    @property
    def columns(self) -> int:
        """Columns of the open image; 0 until its size is known."""
        sizes = self.vocabulary.image_sizes
        if sizes is None:
            return isqrt(self.codes_per_image)
        return sizes.side_cells(self.template[1] or 0) if self.template else 0


def image_grid_of(size: str, vocabulary: Vocabulary, config: VQConfig) -> Grid | None:
    """Return the rows and columns of images of a size, such as 1024x768 (width x height in pixels).

    Args:
        size: "auto" is None: the model's own square, or with image sizes the one that it chooses.
        vocabulary: its image sizes decide which are possible.
        config: of the image tokenizer.

    Raises:
        GenerationError: the model generates no images of that size.
    """
    own, sizes = f"{config.resolution}x{config.resolution}", vocabulary.image_sizes
    if size == "auto" or (size == own and sizes is None):
        return None
    if sizes is None:
        raise GenerationError(
            f"this model generates images of {own} only; expected that size, or auto. Leave size out."
        )
    grid = parse_grid(size, config.downsampling)
    if grid is None or not sizes.allows(*grid):
        raise GenerationError(
            f"size={size!r}; expected {sizes.describe(config.downsampling)}. Choose another, or auto."
        )
    return grid


def image_length(vocabulary: Vocabulary, codes_per_image: int, grid: Grid | None) -> int:
    """Return the tokens of an image, begin and end included; None is the longest."""
    if grid is None:
        return vocabulary.max_image_tokens(codes_per_image)
    return (len(image_template(vocabulary, grid)) or codes_per_image) + 2


def require_known_codes(known_codes: Sequence[int | None], codes_per_image: int, num_codes: int) -> None:
    """Raise `GenerationError` unless known codes, if any, are those of one image."""
    is_complete = len(known_codes) in (0, codes_per_image)
    if not is_complete or not all(code is None or 0 <= code < num_codes for code in known_codes):
        raise GenerationError(
            f"known_codes has {len(known_codes)} entries; expected {codes_per_image}, the number of this model, each "
            f"None or a code below {num_codes}."
        )


def image_template(
    vocabulary: Vocabulary, grid: Grid, known_codes: Sequence[int | None] = ()
) -> tuple[int | None, ...]:
    """Return the tokens between begin and end of an image, None where a code is sampled.

    Args:
        vocabulary: its image sizes, if any, decide the layout.
        grid: rows and columns of the image.
        known_codes: codes that are not sampled, row by row, None for the others; or none.

    Returns:
        One entry per token; empty if all tokens are sampled codes.

    Raises:
        GenerationError: the number of known codes is another, or the vocabulary has no such image.
    """
    rows, columns = grid
    require_known_codes(known_codes, rows * columns, vocabulary.num_codes)
    tokens = [None if code is None else vocabulary.code_to_id(code) for code in known_codes]
    sizes = vocabulary.image_sizes
    if sizes is None:
        return tuple(tokens)
    if not sizes.allows(rows, columns):
        raise GenerationError(
            f"an image of {rows} x {columns} cells; expected, in cells, {sizes.describe(1)}. Choose another size."
        )
    tokens = tokens or [None] * (rows * columns)
    lines = [[*tokens[start : start + columns], sizes.newline] for start in range(0, len(tokens), columns)]
    return (sizes.side_token(rows), sizes.side_token(columns), *chain.from_iterable(lines))


def require_capacity_for_image(grammar: Grammar) -> None:
    """Raise `GenerationError` if an open image, or the first of an output of images, does not fit."""
    remaining, max_tokens = grammar.num_codes_remaining, grammar.max_remaining_tokens
    codes = grammar.codes_per_image
    if remaining is None:
        if grammar.images_only and max_tokens < codes + 2:
            raise GenerationError(
                f"an image needs {codes + 2} tokens, but {max(max_tokens, 0)} may be generated; "
                "expected enough for the complete image. Raise max_new_tokens, or shorten the "
                "prompt."
            )
        return
    if remaining < 0:
        raise GenerationError(
            f"the prompt's last image is open with {codes - remaining} codes; expected at most "
            f"{codes}, the number of this model. Leave codes out."
        )
    if max_tokens <= remaining:
        raise GenerationError(
            f"an open image still needs {remaining + 1} tokens, but max_new_tokens leaves "
            f"{max_tokens}; expected enough for the complete image. Raise max_new_tokens."
        )
