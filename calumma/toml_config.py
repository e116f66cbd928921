"""A typed config from a TOML file and dotted changes on the command line."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from calumma.errors import ConfigError
from calumma.text_format import nearest

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
    return changed_config(kind, read_toml(path), changes, str(path))


def changed_config(
    kind: type[Config], tree: dict[str, Any], changes: Sequence[str], where: str
) -> Config:
    """A config of a tree of values and of what the command line changes in it.

    Arguments and errors are those of `make_config` and `load_config`.
    """
    for name, value in _pairs(changes):
        _require_option(kind, name)
        _set(tree, name, value)
    return make_config(kind, tree, where)


def read_toml(path: Path) -> dict[str, Any]:
    """The tables and values of a TOML file.

    Raises:
        ConfigError: the file is not there or no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{path}: no config can be read there ({error.strerror}); expected "
            "a TOML file. Fix the name."
        ) from error
    except ValueError as error:
        raise ConfigError(
            f"{path}: is no TOML ({' '.join(str(error).split())}). Fix that line."
        ) from error


def make_config(kind: type[Config], tree: dict[str, Any], where: str) -> Config:
    """Check a tree of values against a dataclass.

    Args:
        kind: a dataclass, whose fields may be dataclasses.
        tree: values by the fields' names.
        where: the file that they stand in, for the errors.

    Raises:
        ConfigError: a field is unknown, missing or of the wrong type, or the class refuses it.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        tree = _filled(kind, tree)
        _require_known(kind, tree, ())
        return TypeAdapter(kind).validate_python(tree)
    except ValidationError as error:
        told = f"{where}: {_told(kind, error.errors()[0])}"
        raise ConfigError(told) from error
    except ConfigError as error:
        told = f"{where}: {error}"
        raise ConfigError(told) from error


def _filled(kind: Any, tree: dict[str, Any]) -> dict[str, Any]:
    """The tree with each table's `size` replaced by the fields that its class has under that name.

    A class offers sizes with a static method `size(name)`; what the table says itself holds.
    """
    hints = get_type_hints(kind)
    filled = {}
    for name, value in tree.items():
        inner = _dataclass_in(hints.get(name))
        filled[name] = _filled(inner, value) if inner and isinstance(value, dict) else value
    if "size" in filled and hasattr(kind, "size"):
        named: dict[str, Any] = kind.size(filled.pop("size"))
        return named | filled
    return filled


def _told(kind: Any, fault: Mapping[str, Any]) -> str:
    """What pydantic found, in our words."""
    path = [str(part) for part in fault["loc"]]
    while len(path) > 1 and not _is_field(kind, path):
        path.pop()  # pydantic goes on into tuples and members of unions
    name = ".".join(path)
    option = _option(path)
    if fault["type"] in ("missing", "missing_keyword_only_argument"):
        return f"{name} is missing; expected a value. Write it there or give {option} VALUE."
    wanted = str(fault["msg"]).removeprefix("Input should be ").split(", unable")[0]
    if fault["type"].startswith("dataclass"):
        wanted = f"a table with fields such as {name}.{_first_field(kind, path)}"
    return (
        f"{name}: found {fault['input']!r}; expected {wanted}. Fix it there or give {option} VALUE."
    )


def _is_field(kind: Any, path: Sequence[str]) -> bool:
    """Whether the path names a field, or an entry of a field that is a table of free names."""
    for part in path:
        if isinstance(kind, type) and is_dataclass(kind):
            hints = get_type_hints(kind)
            if part not in hints:
                return False
            kind = hints[part]
            kind = _dataclass_in(kind) or kind
        else:
            return get_origin(kind) is dict and part == path[-1]
    return True


def _first_field(kind: Any, path: Sequence[str]) -> str:
    for part in path:
        kind = _dataclass_in(get_type_hints(kind)[part])
    return fields(kind)[0].name


def _dataclass_in(kind: Any) -> Any:
    """The dataclass that a field holds: its type, or a member of the union that it is."""
    found = [k for k in (kind, *get_args(kind)) if isinstance(k, type) and is_dataclass(k)]
    return found[0] if found else None


def _pairs(changes: Sequence[str]) -> list[tuple[list[str], Any]]:
    """["--a.b-c", "1"] or ["--a.b-c=1"] to [(["a", "b_c"], 1)]."""
    pairs = []
    rest = list(changes)
    while rest:
        word = rest.pop(0)
        name, has_value, value = word.partition("=")
        if not name.startswith("--"):
            raise ConfigError(
                f"{word!r} was not expected; expected changes such as --optimizer.peak-rate 3e-4."
            )
        if not has_value:
            if not rest or rest[0].startswith("--"):
                raise ConfigError(f"{name} has no value; expected one behind it, or {name}=VALUE.")
            value = rest.pop(0)
        pairs.append((name[2:].replace("-", "_").split("."), _value(value)))
    return pairs


def _value(text: str) -> Any:
    """A value as TOML reads it; what is no TOML value is a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except ValueError:
        return text


def _option(path: Sequence[str]) -> str:
    """What changes a field on the command line.

    >>> _option(["text", "top_p"])
    '--text.top-p'
    """
    return f"--{'.'.join(path).replace('_', '-')}"


def _set(tree: dict[str, Any], name: Sequence[str], value: Any) -> None:
    for part in name[:-1]:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            raise ConfigError(
                f"{_option(name)}: {part} holds a value; expected a table of fields. See --dry-run."
            )
    tree[name[-1]] = value


def _require_known(kind: Any, tree: dict[str, Any], above: tuple[str, ...]) -> None:
    """Refuse unknown fields, naming the nearest known one."""
    known = _types_of(kind)
    for name, value in tree.items():
        if name not in known:
            wanted = _wanted(name, {field: ".".join([*above, field]) for field in known})
            raise ConfigError(f"there is no field {'.'.join([*above, name])}; expected {wanted}.")
        inner = _dataclass_in(known[name])
        if inner is not None and isinstance(value, dict):
            _require_known(inner, value, (*above, name))


def _require_option(kind: Any, path: Sequence[str]) -> None:
    """Refuse a change of an unknown field, naming the nearest that can be typed."""
    for place, name in enumerate(path):
        known = _types_of(kind)
        sized = name == "size" and hasattr(kind, "size")
        if name not in known and not sized:
            wanted = _wanted(name, {field: _option([*path[:place], field]) for field in known})
            raise ConfigError(f"there is no option {_option(path)}; expected {wanted}.")
        kind = None if sized else _dataclass_in(known[name])
        if kind is None:
            return


def _wanted(name: str, known: Mapping[str, str]) -> str:
    """Instead of an unknown field the nearest known one, or else all of them, as they are told."""
    near = nearest(name, known)
    return f"perhaps {known[near]}" if near else f"one of {', '.join(known.values())}"


def _types_of(kind: Any) -> dict[str, Any]:
    """The types of a dataclass's fields, by their names."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


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
    return "\n".join(lines_of(config_tree(config)))


def lines_of(tree: dict[str, Any], above: tuple[str, ...] = ()) -> list[str]:
    """A tree of values as dotted lines."""
    lines = []
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            lines += lines_of(value, (*above, name))
        else:
            lines.append(f"{'.'.join([*above, name])} = {value}")
    return lines
