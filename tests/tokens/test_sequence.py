"""Documents as sequences of ids: both layouts by hand, what counts, and the way back."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from calumma.documents.document import (
    Document,
    Image,
    Role,
    SpecialToken,
    Text,
    Turn,
    document_from_json,
    document_to_json,
)
from calumma.errors import DocumentError, TokenizerError
from calumma.tokens.sequence import (
    TokenSequence,
    encode_document,
    encode_image_codes,
    encode_prompt,
    encode_turns,
    split_modalities,
)
from calumma.tokens.text import TextTokenizer
from calumma.vocabulary import Vocabulary

TOKENIZER = TextTokenizer.train([], num_text=256, num_codes=3)
V = TOKENIZER.vocabulary
A, B, C = (TOKENIZER.encode(letter)[0] for letter in "abc")
IMAGE = Image(data=b"")
BOS, EOS, TURN, BEGIN, END = 0, 2, 9, 8, 7


def test_an_image_by_hand() -> None:
    assert encode_image_codes([2, 0], V) == [BEGIN, 6, 4, END]


def test_a_plain_document_by_hand() -> None:
    document = Document(id="d", content=(Text("ab"), IMAGE, Text("c"), IMAGE))
    made = encode_document(document, TOKENIZER, [[0, 1], [2, 2]])
    assert made.token_ids == [BOS, A, B, BEGIN, 4, 5, END, C, BEGIN, 6, 6, END, EOS]
    assert made.loss_mask == [True] * 13


def test_a_conversation_by_hand() -> None:
    turns = (
        Turn("system", (Text("a"),)),
        Turn("user", (IMAGE,)),
        Turn("assistant", (Text("b"), IMAGE)),
        Turn("user", (Text("c"),)),
        Turn("assistant", (Text("a"),)),
    )
    made = encode_document(Document(id="d", messages=turns), TOKENIZER, [[0], [1]])
    first = [BOS, A, BEGIN, 4, END, TURN, B, BEGIN, 5, END, EOS]
    assert made == TokenSequence([*first, C, TURN, A, EOS], [False] * 6 + [True] * 5 + [False] * 2 + [True] * 2)


def test_a_prompt_by_hand() -> None:
    for add_generation_prompt, end in ((False, []), (True, [TURN])):
        ids = encode_prompt(["a", [1]], TOKENIZER, add_generation_prompt=add_generation_prompt)
        assert ids == [BOS, A, BEGIN, 5, END, *end]


def test_the_prompt_of_an_answer_is_the_document_up_to_it() -> None:
    turns: list[tuple[Role, list[str | list[int]]]] = [
        ("system", ["a"]),
        ("user", [[0]]),
        ("assistant", ["b", [1]]),
        ("user", ["c"]),
        ("assistant", ["a"]),
    ]
    document = Document(
        id="d",
        messages=tuple(
            Turn(role, tuple(Text(s) if isinstance(s, str) else IMAGE for s in segments)) for role, segments in turns
        ),
    )
    expected = encode_document(document, TOKENIZER, [[0], [1]]).token_ids
    assert encode_turns(turns[:4], TOKENIZER) == expected[:-2]
    assert encode_turns(turns, TOKENIZER) == expected[:-1]
    assert encode_turns(turns[:2], TOKENIZER) == [BOS, A, BEGIN, 4, END, TURN]


@pytest.mark.parametrize("roles", ["a", "uaa"])
def test_an_assistant_turn_without_a_prompt_is_refused(roles: str) -> None:
    turns: list[tuple[Role, list[str]]] = [("user" if role == "u" else "assistant", ["a"]) for role in roles]
    with pytest.raises(DocumentError) as caught:
        encode_turns(turns, TOKENIZER)
    assert str(caught.value) == (
        "an answer has no prompt; expected a user turn before every assistant turn. Add "
        "the prompt, or join the two answers."
    )


def test_an_answer_without_a_prompt_is_refused() -> None:
    turn = Turn("assistant", (Text("a"),))
    with pytest.raises(DocumentError) as caught:
        encode_document(Document(id="chat/7", messages=(turn,)), TOKENIZER, [])
    assert str(caught.value) == (
        "chat/7: an answer has no prompt; expected a user turn before every assistant "
        "turn. Add the prompt, or join the two answers."
    )


def test_a_prompt_without_an_answer_is_refused() -> None:
    turn = Turn("user", (Text("a"),))
    with pytest.raises(DocumentError) as caught:
        encode_document(Document(id="chat/7", messages=(turn,)), TOKENIZER, [])
    assert str(caught.value) == (
        "chat/7: the last prompt has no answer; expected an assistant turn after every user turn. "
        "Add the answer, or remove the turn."
    )


def test_ids_are_cut_into_runs() -> None:
    ids = [BOS, A, B, BEGIN, 4, 5, END, C, EOS, A, TURN, B, BEGIN, 6]
    assert split_modalities(ids, V) == [
        ("text", [A, B]),
        ("image", [0, 1]),
        ("text", [C]),
        ("text", [A]),
        ("text", [B]),
        ("image", [2]),
    ]


def test_an_image_that_the_sequence_s_end_cuts_off_ends_there() -> None:
    assert split_modalities([BEGIN, 4, EOS, BOS, A], V) == [("image", [0]), ("text", [A])]


def test_two_images_and_two_texts_stay_apart() -> None:
    assert split_modalities([BEGIN, 4, END, BEGIN, 4, END], V) == [("image", [0]), ("image", [0])]
    assert split_modalities([A, 1, B], V) == [("text", [A]), ("text", [B])]


RUNS = st.lists(
    st.one_of(
        st.tuples(st.just("text"), st.text(alphabet="abc ", min_size=1)),
        st.tuples(st.just("image"), st.lists(st.integers(0, 2), min_size=1, max_size=4)),
    ),
    max_size=6,
)


@settings(max_examples=100, deadline=None)
@given(RUNS)
def test_a_document_is_recovered_from_tokens(runs: list[tuple[str, str | list[int]]]) -> None:
    # Adjacent texts become one run, as nothing separates parts.
    parts = [run for index, run in enumerate(runs) if index == 0 or [run[0], runs[index - 1][0]] != ["text"] * 2]
    content = tuple(Text(value) if kind == "text" else IMAGE for kind, value in parts)
    codes = [value for kind, value in parts if kind == "image"]
    made = encode_document(Document(id="d", content=content), TOKENIZER, codes)
    read = [(k, TOKENIZER.decode(v) if k == "text" else v) for k, v in split_modalities(made.token_ids, V)]
    assert read == parts


def test_a_code_outside_an_image_is_refused() -> None:
    with pytest.raises(TokenizerError) as caught:
        split_modalities([BOS, 4], Vocabulary(num_codes=3, num_text=256))
    assert str(caught.value) == (
        "id 4 at position 1 is an image code outside an image; expected begin-of-image (8) before it."
    )


def test_text_inside_an_image_is_refused() -> None:
    with pytest.raises(TokenizerError) as caught:
        split_modalities([BEGIN, 4, 11], V)
    assert str(caught.value) == (
        "id 11 at position 2 is text inside an image; expected image codes up to end-of-image (7)."
    )


def test_a_special_token_is_one_id_of_its_own() -> None:
    library = Tokenizer.from_str(TOKENIZER.tokenizer.to_str())
    library.add_tokens([AddedToken("<my task>", special=True)])
    tokenizer = TextTokenizer(library)
    task = V.size
    record = {"content": ["a<my task>", {"type": "special_token", "text": "<my task>"}, "b"]}
    document = document_from_json(record, None, "d")
    made = encode_document(document, tokenizer, [])
    assert made.token_ids == [BOS, A, *TOKENIZER.encode("<my task>"), task, B, EOS]
    again = document_to_json(document)
    assert again["content"][1] == {"type": "special_token", "text": "<my task>"}
    assert document_from_json(again, None, "d").content == document.content
    assert encode_prompt(["a", SpecialToken("<my task>")], tokenizer, add_generation_prompt=True) == [
        BOS,
        A,
        task,
        TURN,
    ]
    with pytest.raises(TokenizerError, match="'<eoss>' is not an added token"):
        encode_prompt([SpecialToken("<eoss>")], tokenizer, add_generation_prompt=True)
