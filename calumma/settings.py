"""A typed config from a TOML file and dotted changes on the command line."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from calumma.errors import ConfigError

Config = TypeVar("Config")


def load_config(kind: type[Config], path: Path, changes: Sequence[str]) -> Config:
    """Read a config of a dataclass.

    Args:
        kind: a dataclass.
        path: the TOML file.
        changes: what the command line adds, such as ["--optimizer.peak-rate", "3e-4"].

    Raises:
        ConfigError: the file is not there or no TOML; a field is unknown, missing or of the
            wrong type.
    """
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{path}: no config can be read there ({error.strerror}); wanted a TOML file."
        ) from error
    except ValueError as error:
        raise ConfigError(f"{path}: is no TOML ({error}); mend that line.") from error
    for name, value in _pairs(changes):
        _set(tree, name, value)
    return make_config(kind, tree, str(path))


def make_config(kind: type[Config], tree: dict[str, Any], where: str) -> Config:
    """Check a tree of values against a dataclass; errors name the field and `where` it stands."""
    _require_known(kind, tree, where, ())
    try:
        return TypeAdapter(_strict(kind)).validate_python(tree)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        found = "" if first["type"] == "missing" else f", found {first['input']!r}"
        raise ConfigError(f"{where}: {name}: {first['msg']}{found}.") from error


def _strict(kind: type[Config]) -> type[Config]:
    return with_config(ConfigDict(extra="forbid"))(kind)


def _pairs(changes: Sequence[str]) -> list[tuple[list[str], Any]]:
    """["--a.b-c", "1"] or ["--a.b-c=1"] to [(["a", "b_c"], 1)]."""
    pairs = []
    rest = list(changes)
    while rest:
        word = rest.pop(0)
        name, has_value, value = word.partition("=")
        if not name.startswith("--"):
            raise ConfigError(
                f"{word!r} was not expected; wanted changes such as --optimizer.peak-rate 3e-4."
            )
        if not has_value:
            if not rest:
                raise ConfigError(f"{name} has no value; wanted one behind it.")
            value = rest.pop(0)
        pairs.append((name[2:].replace("-", "_").split("."), _value(value)))
    return pairs


def _value(text: str) -> Any:
    """A value as TOML reads it; what is no TOML value is a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except ValueError:
        return text


def _set(tree: dict[str, Any], name: Sequence[str], value: Any) -> None:
    for part in name[:-1]:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"--{'.'.join(name)}: {part} holds a value, not fields of its own.")
    tree[name[-1]] = value


def _require_known(kind: Any, tree: dict[str, Any], where: str, above: tuple[str, ...]) -> None:
    """Refuse unknown fields, naming the nearest known one."""
    hints = get_type_hints(kind)
    known = {field.name: hints[field.name] for field in fields(kind)}
    for name, value in tree.items():
        dotted = ".".join([*above, name])
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"perhaps {'.'.join([*above, near[0]])}" if near else ", ".join(known)
            raise ConfigError(f"{where}: there is no field {dotted}; wanted {hint}.")
        if is_dataclass(known[name]) and isinstance(value, dict):
            _require_known(known[name], value, where, (*above, name))


def config_tree(config: Any) -> dict[str, Any]:
    """The resolved config as JSON values."""
    return {name: _plain(value) for name, value in asdict(config).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value


def show_config(config: Any) -> str:
    """The resolved config, a dotted line a field."""
    return "\n".join(_lines(config_tree(config), ()))


def _lines(tree: dict[str, Any], above: tuple[str, ...]) -> list[str]:
    lines = []
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            lines += _lines(value, (*above, name))
        else:
            lines.append(f"{'.'.join([*above, name])} = {value}")
    return lines
