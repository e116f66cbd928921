"""The container of both tokenizers, and its folder."""

from pathlib import Path

import pytest

from calumma.errors import TokenizerError
from calumma.tokens.folder import Tokenizers
from calumma.tokens.text import TextTokenizer
from tests.checkpoints.random_models import without_image_decoder


def test_saved_tokenizers_are_read_back(tokenizers: Tokenizers, tmp_path: Path) -> None:
    tokenizers.save(tmp_path / "tok")
    loaded = Tokenizers.load(tmp_path / "tok")
    assert loaded.fingerprints == tokenizers.fingerprints
    assert loaded.has_image_decoder
    without_image_decoder(tokenizers).save(tmp_path / "encoder")
    encoder = Tokenizers.load(tmp_path / "encoder")
    assert not encoder.has_image_decoder
    assert encoder.fingerprints.keys() == {"text_tokenizer", "image_tokenizer", "preprocessing"}


def test_the_precision_of_the_image_encoder_is_in_the_fingerprints(tokenizers: Tokenizers, tmp_path: Path) -> None:
    tokenizers.save(tmp_path)
    quick = Tokenizers.load(tmp_path, image_precision="bfloat16")
    assert quick.image.precision == "bfloat16"
    differing = [key for key, value in tokenizers.fingerprints.items() if quick.fingerprints[key] != value]
    assert differing == ["image_tokenizer"]


def test_tokenizers_with_different_numbers_of_codes_are_refused(tokenizers: Tokenizers) -> None:
    other = TextTokenizer.train([], num_text=256, num_codes=3)
    with pytest.raises(TokenizerError) as caught:
        Tokenizers(other, tokenizers.image)
    assert str(caught.value) == (
        "the image tokenizer has 16 codes, the text tokenizer's vocabulary 3; expected the same "
        "number. Train the text tokenizer with --num-codes 16."
    )
