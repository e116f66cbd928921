"""Configs from TOML files and dotted overrides, and their one-line error messages."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from calumma.errors import ConfigError
from calumma.toml_config import build_config, config_to_dict, format_config, load_config


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


def load(tmp_path: Path, text: str, *overrides: str) -> Outer:
    path = tmp_path / "run.toml"
    path.write_text(text)
    return load_config(Outer, path, overrides)


def refused(tmp_path: Path, text: str, *overrides: str) -> str:
    """Return the one-line error message, with the path of the file reduced to its name."""
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, *overrides)
    message = str(caught.value).replace(f"{tmp_path}/", "")
    assert "\n" not in message
    return message


def test_a_file_becomes_a_dataclass_with_its_defaults(tmp_path: Path) -> None:
    assert load(tmp_path, GOOD) == Outer(
        shards=Path("a/b"), inner=Inner(kind="fancy", betas=(0.8, 0.9)), stage_one=Mixture(weights={"any-name": 0.5})
    )


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["--inner.rate", "3e-4"], Inner(rate=3e-4, kind="fancy", betas=(0.8, 0.9))),
        (["--inner.rate=3e-4"], Inner(rate=3e-4, kind="fancy", betas=(0.8, 0.9))),
        (["--inner.kind", "plain"], Inner(betas=(0.8, 0.9))),
        (["--inner.betas", "[0.1, 0.2]"], Inner(kind="fancy", betas=(0.1, 0.2))),
    ],
)
def test_dotted_overrides_in_both_spellings(tmp_path: Path, overrides: list[str], expected: Inner) -> None:
    assert load(tmp_path, GOOD, *overrides).inner == expected


def test_dashes_in_options_are_underscores_in_fields(tmp_path: Path) -> None:
    assert load(tmp_path, GOOD, "--num-steps", "7").num_steps == 7


def test_overrides_can_add_tables(tmp_path: Path) -> None:
    added = ("--stage-one.weights.web", "2", "--stage-one.weights.my-own_web", "3", "--other.rate=1")
    changed = load(tmp_path, 'shards = "s"', *added)
    assert changed.stage_one.weights == {"web": 2.0, "my-own_web": 3.0}
    assert changed.other == Inner(rate=1.0)


REFUSED = [
    ("shards = 's'\nnum_step = 3", "run.toml: unknown field num_step; did you mean num_steps? Fix the name."),
    ("shards = 's'\n[iner]\nrate = 3", "run.toml: unknown field iner; did you mean inner? Fix the name."),
    (
        "shards = 's'\n[inner]\nkin = 'plain'",
        "run.toml: unknown field inner.kin; did you mean inner.kind? Fix the name.",
    ),
    (
        "shards = 's'\n[other]\nratte = 1",
        "run.toml: unknown field other.ratte; did you mean other.rate? Fix the name.",
    ),
    (
        "shards = 's'\n[inner]\nzzz = 1",
        "run.toml: unknown field inner.zzz; expected one of inner.rate, inner.kind, inner.betas.",
    ),
    ("num_steps = 3", "run.toml: shards is missing; expected a value. Set it there or with --shards VALUE."),
    (
        "shards = 's'\nnum_steps = 'many'",
        "run.toml: num_steps: found 'many'; expected a valid integer. Fix it there or with --num-steps VALUE.",
    ),
    (
        "shards = 's'\n[inner]\nkind = 'odd'",
        "run.toml: inner.kind: found 'odd'; expected 'plain' or 'fancy'. Fix it there or with --inner.kind VALUE.",
    ),
    (
        "shards = 's'\n[inner]\nbetas = [0.1, 'x']",
        "run.toml: inner.betas: found 'x'; expected a valid number. Fix it there or with --inner.betas VALUE.",
    ),
    (
        "shards = 's'\ninner = 3",
        "run.toml: inner: found 3; expected a table with fields such as inner.rate. Fix it there.",
    ),
    (
        "shards = 's'\n[other]\nkind = 'odd'",
        "run.toml: other.kind: found 'odd'; expected 'plain' or 'fancy'. Fix it there or with --other.kind VALUE.",
    ),
    (
        "shards = 's'\n[stage_one.weights]\nweb = 'much'",
        "run.toml: stage_one.weights.web: found 'much'; expected a valid number. "
        "Fix it there or with --stage-one.weights.web VALUE.",
    ),
    (
        "shards = 's'\n[stage_one.weights]\nany-name = 'much'",
        "run.toml: stage_one.weights.any-name: found 'much'; expected a valid number. "
        "Fix it there or with --stage-one.weights.any-name VALUE.",
    ),
    ("shards = 's'\n[inner]\nrate = -1", "run.toml: rate=-1.0; expected at least 0."),
    ("shards = ", "run.toml: not valid TOML (Invalid value (at end of document)). Fix that line."),
]


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_an_error_in_the_file_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    assert refused(tmp_path, text) == message


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["steps", "3"], "unexpected argument 'steps'; expected options such as --optimizer.lr 3e-4."),
        (["--num-steps"], "--num-steps has no value; expected --num-steps VALUE or --num-steps=VALUE."),
        (
            ["--num-steps", "--inner.rate=1"],
            "--num-steps has no value; expected --num-steps VALUE or --num-steps=VALUE.",
        ),
        (
            ["--num-steps.rate", "3"],
            "--num-steps.rate: num_steps is a value; expected a table of fields. See --dry-run.",
        ),
        (["--num-stepps", "3"], "unknown option --num-stepps; did you mean --num-steps? Fix the name."),
        (["--betas", "3"], "unknown option --betas; did you mean --inner.betas? Fix the name."),
        (["--inner.rat_e", "3"], "unknown option --inner.rat-e; did you mean --inner.rate? Fix the name."),
        (
            ["--inner.zzz", "3"],
            "unknown option --inner.zzz; expected one of --inner.rate, --inner.kind, --inner.betas.",
        ),
    ],
)
def test_an_error_in_an_override_is_one_line(tmp_path: Path, overrides: list[str], message: str) -> None:
    assert refused(tmp_path, "num_steps = 3\n" + GOOD, *overrides) == message


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "no.toml"
    with pytest.raises(ConfigError) as caught:
        load_config(Outer, path, [])
    assert str(caught.value) == (
        f"{path}: cannot be read (No such file or directory); expected a TOML file. Fix the path."
    )


def test_a_config_is_formatted_as_one_dotted_line_per_field(tmp_path: Path) -> None:
    config = load(tmp_path, GOOD)
    assert format_config(config).splitlines() == [
        "shards = a/b",
        "num_steps = 10",
        "inner.rate = 0.1",
        "inner.kind = fancy",
        "inner.betas = [0.8, 0.9]",
        "stage_one.weights.any-name = 0.5",
        "other = None",
    ]


def test_a_config_survives_the_round_trip_through_a_dict(tmp_path: Path) -> None:
    config = load(tmp_path, GOOD)
    tree: dict[str, Any] = config_to_dict(config)
    assert tree["inner"]["betas"] == [0.8, 0.9]
    assert build_config(Outer, tree, "tree") == config
