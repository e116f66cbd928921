"""Every source file has its test file, and none has grown out of hand."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.style.tree import PACKAGE, TESTS, parsed, sources

WITHOUT_A_TEST_FILE = {"__main__.py"}
"""One line that calls the command line; the tests of `cli` run it."""

TESTED_TOGETHER = {
    f"tokens/vq/{part}.py": "tokens/test_vq_network.py"
    for part in ("decoder", "encoder", "layers", "names")
}
"""Parts of one network, held against transformers' own as a whole."""

MOST_LINES = 400
MOST_FUNCTION_LINES = 60


def _has_test(path: Path) -> bool:
    """`tokens/vq/encoder.py` is tested by `tests/tokens/test_vq_encoder.py`, or in `vq/` there."""
    together = TESTED_TOGETHER.get(path.relative_to(PACKAGE).as_posix())
    if together is not None:
        return (TESTS / together).exists()
    room, *inner = path.relative_to(PACKAGE).with_suffix("").parts
    if not inner:
        return (TESTS / f"test_{room}.py").exists()
    flat = TESTS / room / f"test_{'_'.join(inner)}.py"
    nested = TESTS.joinpath(room, *inner[:-1], f"test_{inner[-1]}.py")
    return flat.exists() or nested.exists()


def test_every_file_has_its_test_file() -> None:
    without = {str(path.relative_to(PACKAGE)) for path in sources() if not _has_test(path)}
    assert sorted(without - WITHOUT_A_TEST_FILE) == []


def test_no_file_is_over_400_lines() -> None:
    lengths = {str(p.relative_to(PACKAGE)): len(p.read_text().splitlines()) for p in sources()}
    assert {name: lines for name, lines in lengths.items() if lines > MOST_LINES} == {}


def test_no_function_is_over_60_lines() -> None:
    long = {
        f"{path.relative_to(PACKAGE)}:{node.name}": length
        for path in sources()
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef)
        and (length := (node.end_lineno or 0) - node.lineno + 1) > MOST_FUNCTION_LINES
    }
    assert long == {}


def _lines_of_code(path: Path) -> list[tuple[str, str]]:
    """Place and text of the lines that do something: no imports, comments or parameters."""
    passive = re.compile(r"import |from |#|@|self,|\*,|\w+: [^=]*(= [^=]*)?,$")
    return [
        (f"{path.relative_to(PACKAGE)}:{number}", line.strip())
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if len(line.strip()) > 3 and not passive.match(line.strip())
    ]


def test_no_six_lines_stand_in_two_places() -> None:
    places: dict[tuple[str, ...], list[str]] = {}
    for path in sources():
        lines = _lines_of_code(path)
        for start in range(len(lines) - 5):
            window = tuple(line for _, line in lines[start : start + 6])
            places.setdefault(window, []).append(lines[start][0])
    assert [found for found in places.values() if len(found) > 1] == []


def test_no_room_is_named_for_a_kind_of_code() -> None:
    kinds = {"utils", "util", "common", "helpers", "misc", "base", "manager", "core"}
    assert [str(path) for path in PACKAGE.rglob("*.py") if path.stem in kinds] == []
