"""The layout of token ids: the release's numbers, code names, and invalid tables."""

import pytest

from calumma.errors import VocabularyError
from calumma.vocabulary import Vocabulary, code_from_name, code_name

SMALL = Vocabulary(num_codes=3, num_text=2)


def names(vocabulary: Vocabulary) -> dict[str, int]:
    """Return a tokenizer's table with this layout; text starts with "!", as in byte-level BPE."""
    text = ["!", *(f"t{n}" for n in range(1, vocabulary.num_text))]
    return {name: id_ for id_, name in enumerate([*vocabulary.control_names(), *text])}


def test_the_small_table_written_out() -> None:
    assert names(SMALL) == {
        "<s>": 0,
        "<pad>": 1,
        "</s>": 2,
        "<unk>": 3,
        "IMGIMGAZ": 4,
        "IMGIMGBZ": 5,
        "IMGIMGCZ": 6,
        "<eoss>": 7,
        "<racm3:break>": 8,
        "<reserved08706>": 9,
        "<image>": 10,
        "!": 11,
        "t1": 12,
    }
    assert SMALL.text == range(11, 13)


def test_the_release_has_the_numbers_of_the_release() -> None:
    release = Vocabulary.release()
    assert (release.bos, release.pad, release.eos, release.unk) == (0, 1, 2, 3)
    assert release.codes == range(4, 8196)
    assert (release.end_image, release.begin_image) == (8196, 8197)
    assert (release.end_turn, release.placeholder) == (8710, 8711)
    assert release.text == range(16384, 65536)
    table = release.control_names()
    assert len(table) == 16384
    assert len(set(table)) == len(table)
    assert (table[8710], table[8712]) == ("<reserved08706>", "<reserved08708>")


def test_every_code_has_one_name_and_one_id() -> None:
    release = Vocabulary.release()
    for code in range(release.num_codes):
        assert code_from_name(code_name(code)) == code
        assert release.id_to_code(release.code_to_id(code)) == code
        assert release.code_to_id(code) in release.codes


@pytest.mark.parametrize("vocabulary", [SMALL, Vocabulary.release()])
def test_a_layout_is_derived_from_token_names(vocabulary: Vocabulary) -> None:
    assert Vocabulary.from_token_names(names(vocabulary)) == vocabulary


def test_the_release_s_own_name_of_the_placeholder_will_do() -> None:
    table = {("<reserved08707>" if n == "<image>" else n): i for n, i in names(SMALL).items()}
    assert Vocabulary.from_token_names(table) == SMALL


def test_two_tables_share_a_fingerprint_only_when_they_are_the_same() -> None:
    other = Vocabulary(num_codes=3, num_text=3)
    assert SMALL.fingerprint == Vocabulary(**SMALL.to_json()).fingerprint
    assert len(SMALL.fingerprint) == 12
    assert SMALL.fingerprint != other.fingerprint


def refusal(table: dict[str, int]) -> str:
    """Return the error message for a tokenizer's table."""
    with pytest.raises(VocabularyError) as caught:
        Vocabulary.from_token_names(table)
    return str(caught.value)


def test_a_vocabulary_has_codes() -> None:
    with pytest.raises(VocabularyError) as caught:
        Vocabulary(num_codes=0, num_text=5)
    assert str(caught.value) == (
        "num_codes=0 and num_text=5; expected at least one code and no negative number of text tokens."
    )


@pytest.mark.parametrize(("prefix", "missing"), [("IMGIMG", "IMGIMGAZ"), ("<eoss>", "<eoss>"), ("<image>", "<image>")])
def test_a_tokenizer_without_a_control_token_is_refused(prefix: str, missing: str) -> None:
    table = {name: id_ for name, id_ in names(SMALL).items() if not name.startswith(prefix)}
    assert refusal(table) == (
        f"the tokenizer has no token {missing}; expected the layout of the Chameleon release. "
        "Train one with `calumma train-text-tokenizer`."
    )


def test_controls_in_another_order_are_refused() -> None:
    table = names(SMALL) | {"<pad>": 2, "</s>": 1}
    assert refusal(table) == (
        "token </s> has id 1; expected 2, as in the release's order (bos, pad, eos, unk, codes, "
        "end of image, begin of image)."
    )


def test_codes_in_another_order_are_refused() -> None:
    table = names(SMALL) | {"IMGIMGAZ": 5, "IMGIMGBZ": 4}
    assert refusal(table) == (
        "token IMGIMGAZ is out of order; expected code c at id c + 4 and the placeholder right after end of turn."
    )
