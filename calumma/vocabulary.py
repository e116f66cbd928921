"""The layout of token ids, shared by the whole package.

    0    1    2    3    4 ...          |      |      |           |      |        |          size
    bos  pad  eos  unk  image codes    eoi    boi    sentinels   eot    <image>  reserved   text
                        IMGIMGAZ ...   <eoss> <racm3:break>      <reserved08706>

The order is that of the Chameleon release. At full size (8,192 codes, 512 sentinels, 7,672 reserved
slots, 49,152 text tokens) every id is the release's own; small vocabularies keep the order and have
no unused slots. End-of-image comes before begin-of-image, as in the release.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from math import ceil, isqrt
from typing import Any

from calumma.errors import VocabularyError
from calumma.files import fingerprint

BOS_NAME, PAD_NAME, EOS_NAME, UNK_NAME = "<s>", "<pad>", "</s>", "<unk>"
END_IMAGE_NAME = "<eoss>"
BEGIN_IMAGE_NAME = "<racm3:break>"
END_TURN_NAME = "<reserved08706>"
IMAGE_PLACEHOLDER_NAME = "<image>"
PLACEHOLDER_NAMES = (IMAGE_PLACEHOLDER_NAME, "<reserved08707>")
"""The placeholder's name in transformers, and in the release."""

_DIGITS = str.maketrans("0123456789", "ABCDEFGHIJ")
_LETTERS = str.maketrans("ABCDEFGHIJ", "0123456789")
_FIRST_CODE = 4


def code_name(code: int) -> str:
    """Return the token name of an image code: its decimal digits as letters, not padded.

    >>> code_name(53), code_name(0)
    ('IMGIMGFDZ', 'IMGIMGAZ')
    """
    return f"IMGIMG{str(code).translate(_DIGITS)}Z"


def code_from_name(name: str) -> int | None:
    """Return the image code of a token name, or None if it names something else.

    >>> code_from_name("IMGIMGFDZ"), code_from_name("IMGIMGZ"), code_from_name("cat")
    (53, None, None)
    """
    if not (name.startswith("IMGIMG") and name.endswith("Z")):
        return None
    digits = name[6:-1].translate(_LETTERS)
    return int(digits) if digits.isdecimal() else None


@dataclass(frozen=True)
class TokenCounts:
    """Number of tokens of each modality."""

    text_tokens: int = 0
    """Text and special tokens."""

    image_tokens: int = 0
    """Image codes with the begin-of-image and end-of-image tokens around them."""

    @property
    def total(self) -> int:
        """Number of tokens of both modalities."""
        return self.text_tokens + self.image_tokens


Grid = tuple[int, int]
"""Rows and columns of an image's cells."""


def parse_grid(size: str, cell: int) -> Grid | None:
    """Return the grid of a size such as 96x64 (width x height in pixels), or None if it has none.

    >>> parse_grid("96x64", 8), parse_grid("97x64", 8), parse_grid("big", 8)
    ((8, 12), None, None)
    """
    found = re.fullmatch(r"(\d{1,6})x(\d{1,6})", size)
    width, height = (int(found[1]), int(found[2])) if found else (0, 0)
    is_grid = width and height and not width % cell and not height % cell
    return (height // cell, width // cell) if is_grid else None


@dataclass(frozen=True, kw_only=True)
class ImageSizeTokens:
    """Reserved tokens of images of any size, in the layout of Lumina-mGPT.

    An image is begin-of-image, its height, its width, its rows of codes, each followed by a
    newline, and end-of-image. Height and width are counted in units of some cells.
    Source: Lumina-mGPT (arXiv:2408.02657), section 2.3, and its public code.
    """

    newline: int
    """Token id after each row."""

    first_size: int
    """Token id of a side of 0 units."""

    max_cells: int
    """Most cells of an image."""

    cells_per_unit: int = 2
    """Cells of a unit; both sides of an image are a multiple."""

    max_aspect_ratio: int = 4
    """Most that the longer side is of the shorter one."""

    buckets: tuple[Grid, ...] = ()
    """The only grids that images have; empty for all within the limits above."""

    @classmethod
    def parse(cls, sizes: str, first: int, *, cell: int, max_cells: int) -> "ImageSizeTokens":
        """Return the tokens of sizes, from the reserved id `first` on.

        `sizes` is "64x64,96x64" in pixels, or "any" of at most `max_cells`; `cell` is a cell's side.
        Raises `VocabularyError` if a size is not a multiple of it.
        """
        if sizes == "any":
            return cls(newline=first, first_size=first + 1, max_cells=max_cells)
        found = {size: parse_grid(size, cell) for size in sizes.split(",")}
        buckets = tuple(grid for grid in found.values() if grid is not None)
        if len(buckets) < len(found):
            wrong = next(size for size, grid in found.items() if grid is None)
            raise VocabularyError(
                f"an image size of {wrong!r}; expected WIDTHxHEIGHT in multiples of {cell} pixels, the side of a "
                "cell, or any. Fix it."
            )
        return cls(
            newline=first,
            first_size=first + 1,
            max_cells=max(rows * columns for rows, columns in buckets),
            cells_per_unit=1 if any(side % 2 for grid in buckets for side in grid) else 2,
            max_aspect_ratio=max(ceil(max(grid) / min(grid)) for grid in buckets),
            buckets=buckets,
        )

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "ImageSizeTokens":
        """Build from the output of `asdict`; raises `TypeError` if it is another."""
        return cls(**{**record, "buckets": tuple((rows, columns) for rows, columns in record.get("buckets", ()))})

    @property
    def sides(self) -> range:
        """Token ids of the sides, from 0 units to the longest."""
        longest = isqrt(self.max_cells * self.max_aspect_ratio) // self.cells_per_unit
        return range(self.first_size, self.first_size + longest + 1)

    def __contains__(self, id_: int) -> bool:
        """Return whether an id is the newline or a size."""
        return id_ == self.newline or id_ in self.sides

    def side_token(self, cells: int) -> int:
        """Return the token id of a height or width."""
        return self.first_size + cells // self.cells_per_unit

    def side_cells(self, id_: int) -> int:
        """Return the number of cells of a height or width token."""
        return (id_ - self.first_size) * self.cells_per_unit

    def allows(self, rows: int, columns: int) -> bool:
        """Return whether an image may have this grid."""
        if self.buckets:
            return (rows, columns) in self.buckets
        sides = sorted((rows, columns))
        is_divisible = not any(side % self.cells_per_unit for side in sides)
        return is_divisible and 0 < sides[1] <= self.max_aspect_ratio * sides[0] and rows * columns <= self.max_cells

    @cached_property
    def grids(self) -> tuple[Grid, ...]:
        """Grids to which images are cropped: the buckets, or those of Lumina-mGPT, widest first.

        From one row of the most units, each grid has one row more, or else one column less.

        >>> ImageSizeTokens(newline=0, first_size=1, max_cells=16, max_aspect_ratio=4).grids
        ((2, 8), (2, 6), (2, 4), (4, 4), (4, 2), (6, 2), (8, 2))
        """
        unit, found = self.cells_per_unit, []
        num_units = self.max_cells // unit**2
        rows, columns = 1, num_units
        while columns:
            if max(rows, columns) <= self.max_aspect_ratio * min(rows, columns):
                found.append((rows * unit, columns * unit))
            if (rows + 1) * columns <= num_units:
                rows += 1
            else:
                columns -= 1
        return self.buckets or tuple(found)

    @cached_property
    def max_image_tokens(self) -> int:
        """Most tokens of an image: cells, newlines, both sides, begin and end."""
        return max(rows * (columns + 1) for rows, columns in self.grids) + 4

    def describe(self, cell: int) -> str:
        """Return the sizes in words, in the unit of `cell`, a cell's side."""
        if self.buckets:
            return " or ".join(f"{columns * cell}x{rows * cell}" for rows, columns in self.buckets)
        return (
            f"WIDTHxHEIGHT in multiples of {cell * self.cells_per_unit}, at most {self.max_cells * cell**2:,} in all, "
            f"with sides that differ at most {self.max_aspect_ratio}-fold"
        )


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The ranges of token ids.

    >>> v = Vocabulary(num_codes=8, num_text=300)
    >>> v.begin_image, v.end_image, v.end_turn, v.text, v.size
    (13, 12, 14, range(16, 316), 316)
    >>> full = Vocabulary.release()
    >>> full.begin_image, full.end_image, full.end_turn, full.placeholder, full.text, full.size
    (8197, 8196, 8710, 8711, range(16384, 65536), 65536)
    """

    num_codes: int
    """Number of image codes: rows of the codebook."""

    num_text: int
    """Number of text tokens: the 256 bytes first, then the merges."""

    num_sentinels: int = 0
    """Number of unused slots between begin-of-image and end-of-turn (512 in the release)."""

    num_reserved: int = 0
    """Number of unused slots between the placeholder and the text (7,672 in the release)."""

    image_sizes: ImageSizeTokens | None = None
    """Tokens of images of any size; None where all images are squares of one size."""

    def __post_init__(self) -> None:
        if self.num_codes < 1 or self.num_text < 0:
            raise VocabularyError(
                f"num_codes={self.num_codes} and num_text={self.num_text}; expected at least one "
                "code and no negative number of text tokens."
            )

    @classmethod
    def release(cls) -> "Vocabulary":
        """Return the vocabulary of the Chameleon release, 65,536 tokens."""
        return cls(num_codes=8192, num_text=49_152, num_sentinels=512, num_reserved=7672)

    @classmethod
    def from_token_names(cls, ids: Mapping[str, int]) -> "Vocabulary":
        """Derive the layout from the token names of a tokenizer.

        Raises:
            VocabularyError: a control token is missing, or has another position than in the
            release.
        """
        codes = {code: id_ for name, id_ in ids.items() if (code := code_from_name(name)) is not None}
        placeholder = next((ids[name] for name in PLACEHOLDER_NAMES if name in ids), None)
        missing = [n for n in (END_IMAGE_NAME, BEGIN_IMAGE_NAME, END_TURN_NAME) if n not in ids]
        if not codes or missing or placeholder is None:
            missing_names = missing or (["IMGIMGAZ"] if not codes else [IMAGE_PLACEHOLDER_NAME])
            raise VocabularyError(
                f"the tokenizer has no token {missing_names[0]}; expected the layout of the "
                "Chameleon release. Train one with `calumma train-text-tokenizer`."
            )
        size = max(ids.values()) + 1
        num_codes, end_turn = len(codes), ids[END_TURN_NAME]
        text_start = ids["!"] if "!" in ids else placeholder + 1
        vocabulary = cls(
            num_codes=num_codes,
            num_text=size - text_start,
            num_sentinels=end_turn - ids[BEGIN_IMAGE_NAME] - 1,
            num_reserved=text_start - placeholder - 1,
        )
        vocabulary._require_release_order(ids, codes, placeholder)
        return vocabulary

    def _require_release_order(self, ids: Mapping[str, int], codes: Mapping[int, int], placeholder: int) -> None:
        expected = {
            BOS_NAME: self.bos,
            EOS_NAME: self.eos,
            PAD_NAME: self.pad,
            END_IMAGE_NAME: self.end_image,
            BEGIN_IMAGE_NAME: self.begin_image,
        }
        for name, id_ in expected.items():
            if ids.get(name) != id_:
                raise VocabularyError(
                    f"token {name} has id {ids.get(name)}; expected {id_}, as in the release's "
                    "order (bos, pad, eos, unk, codes, end of image, begin of image)."
                )
        wrong = next((c for c, id_ in codes.items() if id_ != self.code_to_id(c)), None)
        if wrong is not None or placeholder != self.placeholder:
            what = IMAGE_PLACEHOLDER_NAME if wrong is None else code_name(wrong)
            raise VocabularyError(
                f"token {what} is out of order; expected code c at id c + {_FIRST_CODE} and the "
                "placeholder right after end of turn."
            )

    bos = 0
    pad = 1
    eos = 2
    unk = 3

    @property
    def codes(self) -> range:
        """Token ids of the image codes."""
        return range(_FIRST_CODE, _FIRST_CODE + self.num_codes)

    @property
    def end_image(self) -> int:
        """Token id of end-of-image."""
        return self.codes.stop

    @property
    def begin_image(self) -> int:
        """Token id of begin-of-image."""
        return self.codes.stop + 1

    @property
    def end_turn(self) -> int:
        """Token id of end-of-turn, between a prompt and its answer."""
        return self.begin_image + 1 + self.num_sentinels

    @property
    def placeholder(self) -> int:
        """Token id that replaces an unknown image code; never sampled, never a label."""
        return self.end_turn + 1

    @property
    def text(self) -> range:
        """Token ids of text."""
        start = self.placeholder + 1 + self.num_reserved
        return range(start, start + self.num_text)

    @property
    def size(self) -> int:
        """Number of token ids."""
        return self.text.stop

    def code_to_id(self, code: int) -> int:
        """Return the token id of an image code in [0, num_codes)."""
        return _FIRST_CODE + code

    def id_to_code(self, id_: int) -> int:
        """Return the image code of a token id in `codes`."""
        return id_ - _FIRST_CODE

    def is_image_token(self, id_: int) -> bool:
        """Return whether the token is of an image: its begin, size, codes, newlines or end."""
        return _FIRST_CODE <= id_ <= self.begin_image or (self.image_sizes is not None and id_ in self.image_sizes)

    def count_modalities(self, token_ids: Iterable[int]) -> TokenCounts:
        """Count text and image tokens.

        >>> v = Vocabulary(num_codes=8, num_text=300)
        >>> v.count_modalities([v.bos, v.begin_image, 4, v.end_image, v.text.start])
        TokenCounts(text_tokens=2, image_tokens=3)
        """
        is_image = [self.is_image_token(id_) for id_ in token_ids]
        return TokenCounts(is_image.count(False), is_image.count(True))

    def control_names(self) -> list[str]:
        """Return the names of all tokens before the text, in the order of their ids."""
        numbers = range(self.num_reserved)
        first = self.placeholder + 1 - _FIRST_CODE
        return [
            *(BOS_NAME, PAD_NAME, EOS_NAME, UNK_NAME),
            *(code_name(code) for code in range(self.num_codes)),
            *(END_IMAGE_NAME, BEGIN_IMAGE_NAME),
            *(f"<sentinel:{n}>" for n in range(self.num_sentinels)),
            *(END_TURN_NAME, IMAGE_PLACEHOLDER_NAME),
            *(f"<reserved{first + n:05d}>" for n in numbers),
        ]

    def with_image_sizes(self, sizes: ImageSizeTokens | None) -> "Vocabulary":
        """Return the layout with size tokens, if any, and with as many reserved slots as they need."""
        if sizes is None:
            return self
        num_reserved = max(self.num_reserved, sizes.sides.stop - self.placeholder - 1)
        return replace(self, num_reserved=num_reserved, image_sizes=sizes)

    def max_image_tokens(self, codes_per_image: int) -> int:
        """Return the most tokens of an image, begin and end included; squares have `codes_per_image`."""
        return codes_per_image + 2 if self.image_sizes is None else self.image_sizes.max_image_tokens

    def to_json(self) -> dict[str, Any]:
        """Return the numbers that define the layout."""
        record = asdict(self)
        return record if self.image_sizes else {name: record[name] for name in record if name != "image_sizes"}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Vocabulary":
        """Build from the output of `to_json`."""
        sizes = record.get("image_sizes")
        return cls(**{**record, "image_sizes": ImageSizeTokens.from_json(sizes) if sizes else None})

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits of the layout."""
        return fingerprint(json.dumps(self.to_json(), sort_keys=True))
