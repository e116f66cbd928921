"""Tokens to events: complete characters, partial images, stop strings."""

from collections.abc import Sequence
from typing import Any

import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calumma.generate.events import Event, ImageBegun, ImageDone, ImageProgress, TextPiece
from calumma.generate.output_decoder import OutputDecoder
from calumma.generate.params import Request
from calumma.tokens.text import TextTokenizer
from calumma.vocabulary import Vocabulary

V = Vocabulary(num_codes=4, num_text=256)


class Bytes:
    """A tokenizer in which every byte has one token."""

    vocabulary = V

    def token_bytes(self, id_: int) -> bytes:
        """Return the byte of a token."""
        return bytes([id_ - V.text.start])


def ids(text: str) -> list[int]:
    return [V.text.start + byte for byte in text.encode()]


def decode_image(codes: Sequence[int]) -> PIL.Image.Image:
    """Return an image as wide as there are codes."""
    return PIL.Image.new("L", (len(codes), 1))


def decoder(stop: Sequence[str] = (), prompt: Sequence[int] = ()) -> OutputDecoder:
    request = Request(prompt_token_ids=tuple(prompt), stop=tuple(stop))
    tokenizer: Any = Bytes()
    return OutputDecoder(tokenizer, decode_image, request, partial_image_interval=2)


def decoded(token_ids: Sequence[int], prompt: Sequence[int] = ()) -> list[Event]:
    made = decoder(prompt=prompt)
    events = [event for id_ in token_ids for event in made.push(id_)]
    return [*events, *made.flush()]


def texts(events: Sequence[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, TextPiece)]


def test_text_events_have_complete_characters() -> None:
    half = ids("ä")[:1]
    found = texts(decoded([*ids("aä猫🦎b"), *half]))
    assert found == ["a", "ä", "猫", "🦎", "b", "\N{REPLACEMENT CHARACTER}"]


@pytest.mark.parametrize("length", range(12))
def test_an_output_cut_anywhere_is_text(length: int) -> None:
    text = "aä猫🦎b"
    cut = ids(text)[:length]
    found = texts(decoded(cut))
    assert all(one.encode().decode() == one for one in found)
    assert "".join(found) == bytes(text.encode()[:length]).decode(errors="replace")


def test_invalid_bytes_do_not_delay_the_rest() -> None:
    found = texts(decoded([V.text.start + 0xFF] * 3 + ids("a")))
    assert "".join(found) == "\N{REPLACEMENT CHARACTER}" * 3 + "a"
    assert len(found) == 4


def test_the_text_is_that_of_the_tokenizer(text_tokenizer: TextTokenizer) -> None:
    text = "the small green cross, 123 times! äöü 猫 and\n\ta lizard: 🦎"
    made = OutputDecoder(text_tokenizer, decode_image, Request(prompt_token_ids=()))
    token_ids = text_tokenizer.encode(text)
    assert "".join(texts([e for id_ in token_ids for e in made.push(id_)])) == text


def test_an_image_has_partial_images_and_an_end() -> None:
    token_ids = [*ids("a"), V.begin_image, 4, 5, 6, V.end_image, *ids("b"), V.eos]
    kinds = [type(event) for event in decoded(token_ids)]
    assert kinds == [TextPiece, ImageBegun, ImageProgress, ImageDone, TextPiece]
    widths = [e.image.width for e in decoded(token_ids) if isinstance(e, ImageProgress | ImageDone)]
    assert widths == [2, 3]


def test_an_incomplete_character_comes_before_an_image() -> None:
    events = decoded([*ids("ä")[:1], V.begin_image])
    assert [type(event) for event in events] == [TextPiece, ImageBegun]


def test_an_image_left_open_by_the_prompt_is_finished() -> None:
    events = decoded([6, 7, V.end_image], prompt=[V.bos, V.begin_image, 4, 5])
    widths = [e.image.width for e in events if isinstance(e, ImageProgress | ImageDone)]
    assert widths == [4, 4]


def test_parts_are_texts_and_images_in_order() -> None:
    made = decoder()
    for id_ in [*ids("ab"), V.begin_image, 4, 5, 6, V.end_image, *ids("c"), V.begin_image, 4]:
        assert made.decodes_image(id_) is any(isinstance(event, ImageProgress | ImageDone) for event in made.push(id_))
    first, image, second, unfinished = made.finish()
    assert (first, second, made.num_tokens) == ("ab", "c", 10)
    assert isinstance(image, PIL.Image.Image) and isinstance(unfinished, PIL.Image.Image)
    assert (image.width, unfinished.width) == (3, 1)


def test_an_output_ends_before_its_stop_string() -> None:
    made = decoder(stop=["END", "D.."])
    found = [texts(made.push(id_)) for id_ in ids("eEN. ENDand")]
    assert [text for one in found for text in one] == ["e", "EN.", " "]
    assert (made.is_stopped, made.num_tokens, made.flush()) == (True, 8, [])
    assert made.finish() == ["eEN. "]


def test_the_beginning_of_a_stop_string_is_text_before_an_image_and_at_the_end() -> None:
    made = decoder(stop=["END"])
    token_ids = [*ids("E"), V.begin_image, 4, V.end_image, *ids("EN")]
    events = [event for id_ in token_ids for event in made.push(id_)]
    assert [type(event) for event in events] == [TextPiece, ImageBegun, ImageDone]
    assert texts(made.flush()) == ["EN"]
    assert not made.is_stopped


@given(
    st.text("ab", max_size=30),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(1, 5), max_size=30),
)
@settings(max_examples=200, deadline=None)
def test_the_first_complete_stop_string_ends_the_text(text: str, stop: list[str], cuts: list[int]) -> None:
    made, rest, emitted = decoder(stop=stop), text, ""
    for cut in [*cuts, len(text)]:
        emitted += made._match_stop(rest[:cut]) if not made.is_stopped else ""
        rest = rest[cut:]
    emitted += made._held
    found = {one: text.find(one) for one in stop if one in text}
    assert made.is_stopped is bool(found)
    if not found:
        assert emitted == text
        return
    # The string that is complete first ends the text, at its beginning or that of one around it.
    end = min(start + len(one) for one, start in found.items())
    assert emitted == text[: len(emitted)]
    assert len(emitted) <= end
    assert any(text.startswith(one, len(emitted)) for one in stop)
