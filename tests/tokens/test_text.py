"""Text to ids and back; what a user types is never a control token."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from calumma.errors import TokenizerError
from calumma.tokens.image import ImageTokenizer
from calumma.tokens.text import TextTokenizer, raise_if_model_folder

FORBIDDEN = ["<eoss>", "<racm3:break>", "IMGIMGAZ", "</s>", "<s>", "<image>", "<reserved08706>"]
HOSTILE = "a " + " b".join(FORBIDDEN) + "".join(FORBIDDEN)
TINY = TextTokenizer.train(["low lower lowest"] * 4, num_text=260, num_codes=4)


def test_the_ids_of_a_tiny_tokenizer_by_hand() -> None:
    vocabulary = TINY.vocabulary
    assert (vocabulary.num_codes, vocabulary.num_text, vocabulary.text.start) == (4, 260, 12)
    # The merges in order: l + o, lo + w, " " + low, then one more.
    assert TINY.tokenizer.id_to_token(12 + 256) == "lo"
    assert TINY.tokenizer.id_to_token(12 + 257) == "low"
    assert TINY.encode("low") == [12 + 257]


@pytest.mark.parametrize("text", [*FORBIDDEN, HOSTILE])
def test_text_that_spells_control_tokens_is_text(text: str, text_tokenizer: TextTokenizer) -> None:
    ids = text_tokenizer.encode(text)
    assert ids == text_tokenizer.encode_batch([text])[0]
    assert set(ids) <= set(text_tokenizer.vocabulary.text)
    assert text_tokenizer.decode(ids) == text


def test_control_tokens_that_others_added_as_ordinary_ones_are_not_spelt_by_text_either() -> None:
    record = json.loads(TINY.tokenizer.to_str())
    for token in record["added_tokens"]:
        token["special"] = False
    theirs = TextTokenizer(Tokenizer.from_str(json.dumps(record)))
    assert theirs.vocabulary == TINY.vocabulary
    assert theirs.encode(HOSTILE) == TINY.encode(HOSTILE)


def test_digits_and_punctuation_are_split_off() -> None:
    texts = ["2024 2024 2024, (2024)... (2024)... a.b.c.a.b.c."] * 9
    tokenizer = TextTokenizer.train(texts, num_text=257, num_codes=1)
    tokens = [tokenizer.decode([id_]) for id_ in tokenizer.encode("(2024)...")]
    assert tokens == ["(", "2", "0", "2", "4", ")", ".", ".", "."]


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_any_text_comes_back(text: str) -> None:
    ids = TINY.encode(text)
    assert set(ids) <= set(TINY.vocabulary.text)
    assert TINY.decode(ids) == text


def test_text_that_utf_8_cannot_encode_is_refused(text_tokenizer: TextTokenizer) -> None:
    with pytest.raises(TokenizerError) as caught:
        text_tokenizer.encode("a\udcff")
    assert str(caught.value) == (
        "the text 'a\\udcff' is no valid Unicode; expected text that UTF-8 can encode. Fix its encoding."
    )


def test_the_same_texts_train_the_same_tokenizer(text_tokenizer: TextTokenizer) -> None:
    again = TextTokenizer.train(["low lower lowest"] * 4, num_text=260, num_codes=4)
    assert again.tokenizer.to_str() == TINY.tokenizer.to_str()


def test_a_saved_tokenizer_is_the_same(tmp_path: Path) -> None:
    TINY.save(tmp_path)
    loaded = TextTokenizer.load(tmp_path)
    assert loaded.vocabulary == TINY.vocabulary
    assert loaded.encode(HOSTILE) == TINY.encode(HOSTILE)


def test_transformers_puts_the_begin_of_sequence_first(tmp_path: Path) -> None:
    TINY.save(tmp_path)
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    assert theirs("lowest")["input_ids"] == [0, *TINY.encode("lowest")]
    assert theirs("lowest", add_special_tokens=False)["input_ids"] == TINY.encode("lowest")


def test_fewer_ids_than_bytes_are_refused() -> None:
    with pytest.raises(TokenizerError) as caught:
        TextTokenizer.train(["a"], num_text=255, num_codes=1)
    assert str(caught.value) == ("num_text=255; expected at least 256, one token per byte.")


def test_too_little_text_is_refused() -> None:
    with pytest.raises(TokenizerError) as caught:
        TextTokenizer.train(["ab"], num_text=300, num_codes=1)
    assert str(caught.value) == ("the texts give 257 text tokens; expected 300. Give more text, or lower --num-text.")


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError) as caught:
        TextTokenizer.load(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} holds no tokenizer.json; expected a text tokenizer. Train one with "
        "`calumma train-text-tokenizer DOCS --out DIR`."
    )


def test_a_broken_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(TokenizerError) as caught:
        TextTokenizer.load(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path / 'tokenizer.json'}: not a tokenizer (EOF while parsing an object at line 1 "
        "column 1); expected the JSON of the tokenizers library. Copy it again, or train one with "
        "`calumma train-text-tokenizer`."
    )


def _put(path: Path, text: str = "{}") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("files", "named", "model"),
    [
        ({"m/config.json": '{"model_type": "chameleon"}', "m/tokenizer.json": "{}"}, "m", "m"),
        ({"m/models/7b/params.json": "{}"}, "m", "m"),
        ({"m/models/7b/params.json": "{}"}, "m/models/7b", "m/models/7b"),
        ({"m/models/7b/params.json": "{}", "m/tokenizer/vqgan.yaml": ""}, "m/tokenizer", "m"),
    ],
)
def test_a_model_folder_is_refused_with_the_command_that_converts_it(
    files: dict[str, str], named: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in files.items():
        _put(Path(name), text)
    for load in (raise_if_model_folder, ImageTokenizer.load):
        with pytest.raises(TokenizerError) as caught:
            load(Path(named))
        assert str(caught.value) == (
            f"{named} is a model folder; expected a folder of tokenizers. Write the model's into "
            f"one with `calumma convert {model} tokenizers --to tokenizers`, and name that."
        )


def test_a_release_is_no_text_tokenizer(tmp_path: Path) -> None:
    _put(tmp_path / "models" / "7b" / "params.json")
    with pytest.raises(TokenizerError, match="is a model folder; expected a folder of tokenizers"):
        TextTokenizer.load(tmp_path)


@pytest.mark.parametrize("text", ['{"steps": 4}', "[1]", "cut {", ""])
def test_the_folder_of_a_run_is_no_model_folder(text: str, tmp_path: Path) -> None:
    _put(tmp_path / "config.json", text)
    _put(tmp_path / "vqgan.yaml")
    raise_if_model_folder(tmp_path)
    raise_if_model_folder(tmp_path / "nothing")


ADDED = ["<my task>", "<任务>", "任务", "<é>", "<task>"]


def with_added_tokens(*, special: bool) -> TextTokenizer:
    tokenizer = Tokenizer.from_str(TINY.tokenizer.to_str())
    tokenizer.add_tokens([AddedToken(text, special=special, normalized=False) for text in ADDED])
    return TextTokenizer(tokenizer)


@pytest.mark.parametrize("special", [False, True])
def test_added_tokens_are_decoded_as_their_text(special: bool) -> None:
    tokenizer = with_added_tokens(special=special)
    first = TINY.vocabulary.size
    assert tokenizer.added_tokens == {text: first + n for n, text in enumerate(ADDED)}
    for text, id_ in tokenizer.added_tokens.items():
        assert tokenizer.token_bytes(id_) == text.encode()
        assert tokenizer.decode([id_]) == text
        assert tokenizer.encode_special_token(text) == id_
        assert (tokenizer.encode(text) == [id_]) is not special
    ids = [*tokenizer.encode("low <e> ä"), *tokenizer.added_tokens.values()]
    assert tokenizer.decode(ids) == "low <e> ä" + "".join(ADDED)


@pytest.mark.parametrize("name", ["<eoss>", "<s>", "IMGIMGAZ", "<reserved08706>", "low", ""])
def test_only_added_tokens_are_special_parts(name: str) -> None:
    with pytest.raises(TokenizerError) as caught:
        with_added_tokens(special=True).encode_special_token(name)
    assert str(caught.value) == (
        f"{name!r} is not an added token; expected one of: <my task>, <任务>, 任务, <é>, <task>. "
        "Add it to the tokenizer, or write it as text."
    )
    with pytest.raises(TokenizerError, match="one of: none, as this tokenizer has no added tokens"):
        TINY.encode_special_token(name)


def test_an_id_without_a_token_has_no_bytes() -> None:
    assert TINY.token_bytes(TINY.vocabulary.size + 5) == b""


def test_an_added_character_does_not_break_others_whose_bytes_it_names() -> None:
    library = Tokenizer.from_str(TINY.tokenizer.to_str())
    library.add_tokens([AddedToken("é", normalized=False)])
    tokenizer = TextTokenizer(library)
    assert tokenizer.decode(tokenizer.encode("鐘")) == "鐘"
