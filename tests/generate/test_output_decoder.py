"""Ids to events: whole characters, growing pictures, whatever is cut off."""

from __future__ import annotations

from collections.abc import Sequence

import PIL.Image
import pytest

from calumma.generate.events import Event, ImageBegun, ImageDone, ImageProgress, TextPiece
from calumma.generate.output_decoder import OutputDecoder
from calumma.tokens.text import TextTokenizer
from calumma.vocabulary import Vocabulary

V = Vocabulary(num_codes=4, num_text=256)


def spell(id_: int) -> bytes:
    """Every byte is one id."""
    return bytes([id_ - V.text.start])


def ids(text: str) -> list[int]:
    return [V.text.start + byte for byte in text.encode()]


def draw(codes: Sequence[int]) -> PIL.Image.Image:
    """A picture as wide as there are codes."""
    return PIL.Image.new("L", (len(codes), 1))


def told(heard: Sequence[int], codes: Sequence[int] = (), every: int = 2) -> list[Event]:
    teller = OutputDecoder(V, bytes_of=spell, draw=draw, codes_between=every, codes=codes)
    events = [event for id_ in heard for event in teller.push(id_)]
    return [*events, *teller.flush()]


def texts(events: Sequence[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, TextPiece)]


def test_characters_of_several_bytes_come_whole() -> None:
    half = ids("ä")[:1]
    found = texts(told([*ids("aä猫🦎b"), *half]))
    assert found == ["a", "ä", "猫", "🦎", "b", "\N{REPLACEMENT CHARACTER}"]


@pytest.mark.parametrize("place", range(12))
def test_a_stream_cut_anywhere_is_text(place: int) -> None:
    whole = "aä猫🦎b"
    cut = ids(whole)[:place]
    pieces = texts(told(cut))
    assert all(piece.encode().decode() == piece for piece in pieces)
    assert "".join(pieces) == bytes(whole.encode()[:place]).decode(errors="replace")


def test_bytes_that_are_no_text_do_not_hold_up_the_rest() -> None:
    found = texts(told([V.text.start + 0xFF] * 3 + ids("a")))
    assert "".join(found) == "\N{REPLACEMENT CHARACTER}" * 3 + "a"
    assert len(found) == 4


def test_pieces_are_what_the_tokenizer_reads(text_tokenizer: TextTokenizer) -> None:
    v = text_tokenizer.vocabulary
    text = "the small green cross, 123 times! äöü 猫 and\n\ta lizard: 🦎"
    teller = OutputDecoder(v, bytes_of=text_tokenizer.token_bytes, draw=draw, codes_between=1)
    spelt = text_tokenizer.encode(text)
    assert "".join(texts([e for id_ in spelt for e in teller.push(id_)])) == text


def test_a_picture_grows_and_is_done() -> None:
    heard = [*ids("a"), V.begin_image, 4, 5, 6, V.end_image, *ids("b"), V.eos]
    kinds = [type(event) for event in told(heard)]
    assert kinds == [TextPiece, ImageBegun, ImageProgress, ImageDone, TextPiece]
    widths = [e.image.width for e in told(heard) if isinstance(e, ImageProgress | ImageDone)]
    assert widths == [2, 3]


def test_half_a_character_before_a_picture_comes_before_it() -> None:
    events = told([*ids("ä")[:1], V.begin_image])
    assert [type(event) for event in events] == [TextPiece, ImageBegun]


def test_a_picture_that_the_prompt_began_is_finished() -> None:
    events = told([6, 7, V.end_image], codes=[0, 1])
    widths = [e.image.width for e in events if isinstance(e, ImageProgress | ImageDone)]
    assert widths == [4, 4]
