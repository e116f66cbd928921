"""API keys: generated once, stored as hashes, rejected when unknown."""

import hashlib
from pathlib import Path

import pytest

from calumma.errors import ConfigError
from calumma.serve.api_keys import create_api_key, load_api_keys, parse_api_keys


def test_a_new_key_is_known_and_its_file_contains_only_its_hash(tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    first, second = create_api_key("anna", path), create_api_key("ben", path)
    keys = load_api_keys(path)
    assert (keys.lookup(first), keys.lookup(second)) == ("anna", "ben")
    assert keys.lookup(first + "x") is None
    assert keys.lookup("") is None
    assert keys.lookup("\ud800") is None
    assert first not in path.read_text()
    assert path.stat().st_mode & 0o077 == 0


def test_a_key_file_has_names_hashes_and_comments() -> None:
    keys = parse_api_keys(f"# ours\n\nanna {hashlib.sha256(b'secret').hexdigest()}\n", "keys")
    assert keys.lookup("secret") == "anna"


INVALID_LINE = (
    "not a key, or a name that occurs twice; expected NAME and the 64 hex digits of the key's "
    "SHA-256. `calumma serve --create-api-key NAME --api-keys-file FILE` writes such a line."
)


@pytest.mark.parametrize("text", ["anna", "cal-plain-key", f"a {'0' * 64}\na {'1' * 64}", f"a b {'0' * 64}"])
def test_an_invalid_line_is_rejected_and_not_repeated(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_api_keys(text, "keys")
    assert str(caught.value) == f"keys, line {len(text.splitlines())}: {INVALID_LINE}"


def test_a_file_without_keys_is_rejected() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_api_keys("# empty\n", "keys")
    assert str(caught.value) == (
        "keys contains no keys; expected at least one. Create one: calumma serve --create-api-key "
        "NAME --api-keys-file FILE."
    )


def test_a_file_that_cannot_be_read_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_api_keys(tmp_path / "none")
    assert "cannot be read as a key file" in str(caught.value)


def test_a_second_key_of_a_name_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    create_api_key("anna", path)
    with pytest.raises(ConfigError) as caught:
        create_api_key("anna", path)
    assert str(caught.value) == (
        f"{path} already has a key for anna; expected another name. Choose one, or delete its line "
        "from the file first."
    )


def test_an_invalid_name_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        create_api_key("an na", tmp_path / "keys")
    assert str(caught.value) == (
        "'an na' cannot be the name of a key; expected 1 to 64 letters, digits, dots or dashes. Choose another name."
    )
