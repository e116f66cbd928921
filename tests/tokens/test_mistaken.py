"""A model's folder where tokenizers are expected."""

from __future__ import annotations

from pathlib import Path

import pytest

from calumma.errors import TokenizerError
from calumma.tokens.image import ImageTokenizer
from calumma.tokens.mistaken import refuse_model
from calumma.tokens.text import TextTokenizer


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
def test_the_command_that_helps_is_named(
    files: dict[str, str],
    named: str,
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in files.items():
        _put(Path(name), text)
    for load in (refuse_model, ImageTokenizer.load):
        with pytest.raises(TokenizerError) as caught:
            load(Path(named))
        assert str(caught.value) == (
            f"{named} is a model's folder; expected one of tokenizers alone. Write the model's into "
            f"one with `calumma convert {model} tokenizers --to tokenizers`, and name that."
        )


def test_a_release_is_no_text_tokenizer(tmp_path: Path) -> None:
    _put(tmp_path / "models" / "7b" / "params.json")
    with pytest.raises(TokenizerError, match="is a model's folder; expected one of tokenizers"):
        TextTokenizer.load(tmp_path)


@pytest.mark.parametrize("text", ['{"steps": 4}', "[1]", "cut {", ""])
def test_a_run_s_folder_is_no_model_s(text: str, tmp_path: Path) -> None:
    _put(tmp_path / "config.json", text)
    _put(tmp_path / "vqgan.yaml")
    refuse_model(tmp_path)
    refuse_model(tmp_path / "nothing")
