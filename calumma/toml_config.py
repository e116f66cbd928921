"""Load a typed config from a TOML file, with dotted overrides from the command line."""

import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from calumma.errors import ConfigError
from calumma.renamed import new_fields, rename_message
from calumma.text_format import closest_match

ConfigT = TypeVar("ConfigT")


def load_config(config_class: type[ConfigT], path: Path, overrides: Sequence[str]) -> ConfigT:
    """Read a dataclass from a TOML file.

    Args:
        config_class: a dataclass, whose fields may be dataclasses.
        path: the TOML file.
        overrides: arguments such as ["--optimizer.lr", "3e-4"]; they take precedence.

    Raises:
        ConfigError: the file is missing or no TOML; a field is unknown, missing or of the wrong
            type.
    """
    return override_config(config_class, read_toml(path), overrides, str(path))


def override_config(
    config_class: type[ConfigT], tree: dict[str, Any], overrides: Sequence[str], source: str
) -> ConfigT:
    """Build a config from a tree of values and overrides; see `build_config` and `load_config`."""
    for path, value in _parse_overrides(overrides):
        _set(tree, _field_path(config_class, path), value)
    return build_config(config_class, tree, source)


def read_toml(path: Path) -> dict[str, Any]:
    """Return the tables and values of a TOML file.

    Raises:
        ConfigError: the file is missing or no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); expected a TOML file. Fix the path.") from error
    except ValueError as error:
        raise ConfigError(f"{path}: not valid TOML ({' '.join(str(error).split())}). Fix that line.") from error


def build_config(config_class: type[ConfigT], tree: dict[str, Any], source: str) -> ConfigT:
    """Validate a tree of values against a dataclass.

    Args:
        config_class: a dataclass, whose fields may be dataclasses.
        tree: values by field name.
        source: the file that the values come from, for error messages.

    Raises:
        ConfigError: a field is unknown, missing or of the wrong type, or the class rejects it.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        tree = _expand_sizes(config_class, tree)
        _require_known(config_class, config_class, tree, ())
        return TypeAdapter(config_class).validate_python(tree)
    except ValidationError as error:
        message = f"{source}: {_message(config_class, error.errors()[0])}"
        raise ConfigError(message) from error
    except ConfigError as error:
        message = f"{source}: {error}"
        raise ConfigError(message) from error


def _expand_sizes(config_class: Any, tree: dict[str, Any]) -> dict[str, Any]:
    """Replace each table's `size` by the fields of that preset.

    A class has presets if it has a static method `size(name)`; fields of the table override them.
    """
    hints = get_type_hints(config_class)
    expanded = {}
    for name, value in tree.items():
        inner = _dataclass_in(hints.get(name))
        expanded[name] = _expand_sizes(inner, value) if inner and isinstance(value, dict) else value
    if "size" in expanded and hasattr(config_class, "size"):
        preset: dict[str, Any] = config_class.size(expanded.pop("size"))
        return preset | expanded
    return expanded


def _message(config_class: Any, error: Mapping[str, Any]) -> str:
    """Translate an error of pydantic to a message of this project's form."""
    path = [str(part) for part in error["loc"]]
    while len(path) > 1 and not _is_field(config_class, path):
        path.pop()  # pydantic's path continues into tuples and members of unions
    name = ".".join(path)
    option, has_table = _option(path), _is_table(config_class, path)
    if len(path) > 1 and not _is_table(config_class, path[:-1]):
        option = f"{_option(path[:-1])}.{path[-1]}"  # the key of a dict
    if error["type"] in ("missing", "missing_keyword_only_argument"):
        if has_table:
            return f"{name} is missing; expected a table. Add [{name}]."
        return f"{name} is missing; expected a value. Set it there or with {option} VALUE."
    expected = str(error["msg"]).removeprefix("Input should be ").split(", unable")[0]
    if error["type"].startswith("dataclass"):
        expected = f"a table with fields such as {name}.{_first_field(config_class, path)}"
    # Some names, such as "" or "a.b", cannot be given by an option.
    by_option = not has_table and all(re.fullmatch(r"[\w-]+", part) for part in path)
    fix = f"Fix it there or with {option} VALUE." if by_option else "Fix it there."
    return f"{name}: found {error['input']!r}; expected {expected}. {fix}"


def _is_table(config_class: Any, path: Sequence[str]) -> bool:
    """Return whether a path names a field that holds a dataclass."""
    field_type = config_class
    for part in path:
        if not (isinstance(field_type, type) and is_dataclass(field_type)):
            return False
        field_type = get_type_hints(field_type).get(part)
        field_type = _dataclass_in(field_type) or field_type
    return isinstance(field_type, type) and is_dataclass(field_type)


def _is_field(config_class: Any, path: Sequence[str]) -> bool:
    """Return whether a path names a field, or an entry of a field that is a dict."""
    field_type = config_class
    for part in path:
        if isinstance(field_type, type) and is_dataclass(field_type):
            hints = get_type_hints(field_type)
            if part not in hints:
                return False
            field_type = _dataclass_in(hints[part]) or hints[part]
        else:
            return get_origin(field_type) is dict and part == path[-1]
    return True


def _first_field(config_class: Any, path: Sequence[str]) -> str:
    for part in path:
        config_class = _dataclass_in(get_type_hints(config_class)[part])
    return fields(config_class)[0].name


def _dataclass_in(field_type: Any) -> Any:
    """Return the dataclass that a field holds: its type, or a member of its union; or None."""
    types = (field_type, *get_args(field_type))
    return next((t for t in types if isinstance(t, type) and is_dataclass(t)), None)


def _parse_overrides(overrides: Sequence[str]) -> list[tuple[list[str], Any]]:
    """Parse ["--a.b-c", "1"] or ["--a.b-c=1"] to [(["a", "b-c"], 1)]."""
    parsed = []
    remaining = list(overrides)
    while remaining:
        argument = remaining.pop(0)
        name, has_value, value = argument.partition("=")
        if not name.startswith("--"):
            raise ConfigError(f"unexpected argument {argument!r}; expected options such as --optimizer.lr 3e-4.")
        if not has_value:
            if not remaining or remaining[0].startswith("--"):
                raise ConfigError(f"{name} has no value; expected {name} VALUE or {name}=VALUE.")
            value = remaining.pop(0)
        parsed.append((name[2:].split("."), _parse_value(value)))
    return parsed


def _parse_value(text: str) -> Any:
    """Parse a value as TOML; anything that is no TOML value is a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except ValueError:
        return text


def _option(path: Sequence[str]) -> str:
    """Return the command-line option of a field.

    >>> _option(["text", "top_p"])
    '--text.top-p'
    """
    return f"--{'.'.join(path).replace('_', '-')}"


def _set(tree: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for part in path[:-1]:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"{_option(path)}: {part} is a value; expected a table of fields. See --dry-run.")
    tree[path[-1]] = value


def _require_known(root: Any, config_class: Any, tree: dict[str, Any], parents: tuple[str, ...]) -> None:
    """Refuse unknown fields and name the new or the most similar one.

    Args:
        root: the class of the whole config.
        config_class: the class of this table.
        tree: the values of this table.
        parents: the path of this table.
    """
    known = _field_types(config_class)
    for name, value in tree.items():
        path = (*parents, name)
        if name not in known:
            inner = [(*path, field) for field in value] if isinstance(value, dict) else []
            for old in (*inner, path):
                if new := _new_names(root, old):
                    raise ConfigError(rename_message("field", ".".join(old), " and ".join(new)))
            raise ConfigError(f"unknown field {'.'.join(path)}; {_hint(config_class, parents, name, '.'.join)}")
        inner_class = _dataclass_in(known[name])
        if inner_class is not None and isinstance(value, dict):
            _require_known(root, inner_class, value, path)


def _field_path(config_class: Any, option: Sequence[str]) -> list[str]:
    """Return the path of an option, with underscores in the names of fields; keys of a dict stay as they are.

    Raises:
        ConfigError: the field is unknown; the message names the new or the most similar option.
    """
    table, path = config_class, [part.replace("-", "_") for part in option]
    for depth, name in enumerate(path):
        known = _field_types(table)
        is_size = name == "size" and hasattr(table, "size")
        if name not in known and not is_size:
            for old in (path, path[: depth + 1]):
                if new := _new_names(config_class, old):
                    options = " and ".join(_option(field.split(".")) for field in new)
                    raise ConfigError(rename_message("option", _option(old), options))
            raise ConfigError(f"unknown option {_option(path)}; {_hint(table, path[:depth], name, _option)}")
        table = None if is_size else _dataclass_in(known[name])
        if table is None:
            return [*path[: depth + 1], *option[depth + 1 :]]
    return path


def _new_names(config_class: Any, path: Sequence[str]) -> list[str]:
    """Return the present names, in this class, of a field that had another name before."""
    for names in new_fields(".".join(path)):
        if all(_is_field(config_class, name.split(".")) for name in names):
            return names
    return []


def _hint(config_class: Any, parents: Sequence[str], name: str, show: Callable[[list[str]], str]) -> str:
    """Return the end of a message about an unknown name: its field in an inner table, or a similar one.

    Args:
        config_class: the class of the table.
        parents: the path of the table.
        name: the unknown name.
        show: formats a path.
    """
    known = _field_types(config_class)
    inner = ([field, name] for field, type_ in known.items() if _is_table_with(name, _dataclass_in(type_)))
    match = closest_match(name, known)
    path = next(inner, [match] if match else None)
    if path is not None:
        return f"did you mean {show([*parents, *path])}? Fix the name."
    return f"expected one of {', '.join(show([*parents, field]) for field in known)}."


def _is_table_with(name: str, config_class: Any) -> bool:
    return config_class is not None and name in _field_types(config_class)


def _field_types(config_class: Any) -> dict[str, Any]:
    """Return the types of a dataclass's fields by name."""
    hints = get_type_hints(config_class)
    return {field.name: hints[field.name] for field in fields(config_class)}


def config_to_dict(config: Any) -> dict[str, Any]:
    """Return a resolved config as JSON values."""
    return {name: _to_json(value) for name, value in asdict(config).items()}


def _to_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _to_json(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value


def format_config(config: Any) -> str:
    """Format a resolved config, one dotted field per line."""
    return "\n".join(dotted_lines(config_to_dict(config)))


def dotted_lines(tree: dict[str, Any], parents: tuple[str, ...] = ()) -> list[str]:
    """Return a tree of values as lines such as `optimizer.lr = 0.0003`."""
    lines = []
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            lines += dotted_lines(value, (*parents, name))
        else:
            lines.append(f"{'.'.join([*parents, name])} = {value}")
    return lines
