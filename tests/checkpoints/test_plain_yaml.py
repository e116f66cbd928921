"""The part of YAML that is read, against a library that knows all of it."""

from __future__ import annotations

import pytest
import yaml

from calumma.checkpoints.plain_yaml import parse_yaml, write_yaml
from calumma.errors import FileError

TEXT = """\
---
model:            # a comment
  base_rate: 4.5e-06
  target: taming.models.vqgan.VQModel
  params:
    embed_dim: 256
    ckpt_path:
    nothing: null
    lossconfig:
      target: some.module.Loss
      params:
        disc_conditional: false
        weights: [1.0, -2, .5]
    ddconfig:
      double_z: False
      ch_mult:
      - 1
      - 2
      attn_resolutions: []
      words:
        - "a: b"
        - 'c'
        - plain words
      dropout: 0.0
data:
  workers: 12
"""


def test_what_is_read_is_what_the_library_reads() -> None:
    expected = yaml.safe_load(TEXT)
    # YAML 1.1 takes 4.5e-06 for a number only with a sign in the exponent, as here.
    assert parse_yaml(TEXT, "x.yaml") == expected


def test_what_is_written_is_read_by_both() -> None:
    value = {"a": {"b": [1, 2, 3], "c": None, "d": True, "e": 0.5, "f": []}, "g": "word"}
    assert parse_yaml(write_yaml(value), "x.yaml") == value
    assert yaml.safe_load(write_yaml(value)) == value


@pytest.mark.parametrize(
    ("text", "line", "told"),
    [
        ("a: &anchor 1\n", 1, "a: &anchor 1"),
        ("a: 1\nb: {c: 2}\n", 2, "b: {c: 2}"),
        ("a: |\n  text\n", 1, "a: |"),
        ("a: 1\n   b: 2\n", 2, "b: 2"),
        ("a: 1\na: 2\n", 2, "a: 2"),
        ("only words\n", 1, "only words"),
        ("a:\n- b: 1\n", 2, "- b: 1"),
        ("a: [1, 2\n", 1, "a: [1, 2"),
    ],
)
def test_what_is_beyond_is_refused_with_its_line(text: str, line: int, told: str) -> None:
    with pytest.raises(FileError) as caught:
        parse_yaml(text, "x.yaml")
    assert str(caught.value) == (
        f"x.yaml:{line}: cannot be read ({told}); expected plain YAML: names, numbers, words and "
        "lists of them, by indentation. Write the line so."
    )
