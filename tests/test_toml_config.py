"""Configs: a TOML file, dotted changes, and what is wrong with them in one line."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from calumma.errors import ConfigError
from calumma.toml_config import config_tree, load_config, make_config, show_config


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.1
    kind: Literal["plain", "fancy"] = "plain"
    betas: tuple[float, float] = (0.9, 0.95)

    def __post_init__(self) -> None:
        if self.rate < 0:
            raise ConfigError(f"rate={self.rate}; expected at least 0.")


@dataclass(frozen=True, kw_only=True)
class Mixture:
    weights: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Outer:
    shards: Path
    num_steps: int = 10
    inner: Inner = field(default_factory=Inner)
    stage_one: Mixture = field(default_factory=Mixture)
    other: Inner | None = None


GOOD = """
shards = "a/b"
[inner]
kind = "fancy"
betas = [0.8, 0.9]
[stage_one.weights]
any-name = 0.5
"""


def load(tmp_path: Path, text: str, *changes: str) -> Outer:
    path = tmp_path / "run.toml"
    path.write_text(text)
    return load_config(Outer, path, changes)


def refused(tmp_path: Path, text: str, *changes: str) -> str:
    """The message, with the file's name cut to its last part; it must be one line."""
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, *changes)
    message = str(caught.value).replace(f"{tmp_path}/", "")
    assert "\n" not in message
    return message


def test_a_file_becomes_a_dataclass_with_its_defaults(tmp_path: Path) -> None:
    assert load(tmp_path, GOOD) == Outer(
        shards=Path("a/b"),
        inner=Inner(kind="fancy", betas=(0.8, 0.9)),
        stage_one=Mixture(weights={"any-name": 0.5}),
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["--inner.rate", "3e-4"], Inner(rate=3e-4, kind="fancy", betas=(0.8, 0.9))),
        (["--inner.rate=3e-4"], Inner(rate=3e-4, kind="fancy", betas=(0.8, 0.9))),
        (["--inner.kind", "plain"], Inner(betas=(0.8, 0.9))),
        (["--inner.betas", "[0.1, 0.2]"], Inner(kind="fancy", betas=(0.1, 0.2))),
    ],
)
def test_dotted_changes_of_both_spellings(
    tmp_path: Path, changes: list[str], expected: Inner
) -> None:
    assert load(tmp_path, GOOD, *changes).inner == expected


def test_dashes_in_changes_are_underscores_in_fields(tmp_path: Path) -> None:
    assert load(tmp_path, GOOD, "--num-steps", "7").num_steps == 7


def test_tables_that_the_file_lacks_can_be_made_on_the_command_line(tmp_path: Path) -> None:
    changed = load(tmp_path, 'shards = "s"', "--stage-one.weights.web", "2", "--other.rate=1")
    assert changed.stage_one.weights == {"web": 2.0}
    assert changed.other == Inner(rate=1.0)


REFUSED = [
    (
        "shards = 's'\nnum_step = 3",
        "run.toml: there is no field num_step; expected perhaps num_steps.",
    ),
    (
        "shards = 's'\n[iner]\nrate = 3",
        "run.toml: there is no field iner; expected perhaps inner.",
    ),
    (
        "shards = 's'\n[inner]\nkin = 'plain'",
        "run.toml: there is no field inner.kin; expected perhaps inner.kind.",
    ),
    (
        "shards = 's'\n[other]\nratte = 1",
        "run.toml: there is no field other.ratte; expected perhaps other.rate.",
    ),
    (
        "shards = 's'\n[inner]\nzzz = 1",
        "run.toml: there is no field inner.zzz; expected one of inner.rate, inner.kind, inner.betas.",
    ),
    (
        "num_steps = 3",
        "run.toml: shards is missing; expected a value. Write it there or give --shards VALUE.",
    ),
    (
        "shards = 's'\nnum_steps = 'many'",
        "run.toml: num_steps: found 'many'; expected a valid integer. "
        "Fix it there or give --num-steps VALUE.",
    ),
    (
        "shards = 's'\n[inner]\nkind = 'odd'",
        "run.toml: inner.kind: found 'odd'; expected 'plain' or 'fancy'. "
        "Fix it there or give --inner.kind VALUE.",
    ),
    (
        "shards = 's'\n[inner]\nbetas = [0.1, 'x']",
        "run.toml: inner.betas: found 'x'; expected a valid number. "
        "Fix it there or give --inner.betas VALUE.",
    ),
    (
        "shards = 's'\ninner = 3",
        "run.toml: inner: found 3; expected a table with fields such as inner.rate. "
        "Fix it there or give --inner VALUE.",
    ),
    (
        "shards = 's'\n[other]\nkind = 'odd'",
        "run.toml: other.kind: found 'odd'; expected 'plain' or 'fancy'. "
        "Fix it there or give --other.kind VALUE.",
    ),
    (
        "shards = 's'\n[stage_one.weights]\nweb = 'much'",
        "run.toml: stage_one.weights.web: found 'much'; expected a valid number. "
        "Fix it there or give --stage-one.weights.web VALUE.",
    ),
    ("shards = 's'\n[inner]\nrate = -1", "run.toml: rate=-1.0; expected at least 0."),
    (
        "shards = ",
        "run.toml: is no TOML (Invalid value (at end of document)). Fix that line.",
    ),
]


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_mistakes_in_the_file_are_named_in_one_line(
    tmp_path: Path, text: str, message: str
) -> None:
    assert refused(tmp_path, text) == message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ["steps", "3"],
            "'steps' was not expected; expected changes such as --optimizer.peak-rate 3e-4.",
        ),
        (
            ["--num-steps"],
            "--num-steps has no value; expected one behind it, or --num-steps=VALUE.",
        ),
        (
            ["--num-steps", "--inner.rate=1"],
            "--num-steps has no value; expected one behind it, or --num-steps=VALUE.",
        ),
        (
            ["--num-steps.rate", "3"],
            "--num-steps.rate: num_steps holds a value; expected a table of fields. See --dry-run.",
        ),
        (
            ["--num-stepps", "3"],
            "there is no option --num-stepps; expected perhaps --num-steps.",
        ),
        (
            ["--inner.rat_e", "3"],
            "there is no option --inner.rat-e; expected perhaps --inner.rate.",
        ),
        (
            ["--inner.zzz", "3"],
            "there is no option --inner.zzz; expected one of --inner.rate, --inner.kind, "
            "--inner.betas.",
        ),
    ],
)
def test_mistakes_in_changes_are_named_in_one_line(
    tmp_path: Path, changes: list[str], message: str
) -> None:
    assert refused(tmp_path, "num_steps = 3\n" + GOOD, *changes) == message


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "no.toml"
    with pytest.raises(ConfigError) as caught:
        load_config(Outer, path, [])
    assert str(caught.value) == (
        f"{path}: no config can be read there (No such file or directory); expected a TOML file. "
        "Fix the name."
    )


def test_a_config_is_shown_a_dotted_line_a_field(tmp_path: Path) -> None:
    config = load(tmp_path, GOOD)
    assert show_config(config).splitlines() == [
        "shards = a/b",
        "num_steps = 10",
        "inner.rate = 0.1",
        "inner.kind = fancy",
        "inner.betas = [0.8, 0.9]",
        "stage_one.weights.any-name = 0.5",
        "other = None",
    ]


def test_a_tree_of_a_config_makes_the_config_again(tmp_path: Path) -> None:
    config = load(tmp_path, GOOD)
    tree: dict[str, Any] = config_tree(config)
    assert tree["inner"]["betas"] == [0.8, 0.9]
    assert make_config(Outer, tree, "tree") == config
