"""Every source file has a test file, a unique name, and a limited length."""

import ast
import re
from pathlib import Path

from tests.style.tree import PACKAGE, TESTS, parsed, sources

WITHOUT_A_TEST_FILE = {"__main__.py"}
"""One line that calls the command line; the tests of `cli` run it."""

TESTED_TOGETHER = {f"tokens/vq/{part}.py": "tokens/test_vq_network.py" for part in ("layers", "tensor_names")}
"""Parts of one network, which is compared with transformers' network."""

TESTED_WITH_VLLM = {
    f"serve/vllm/{name}.py": f"vllm/test_{name}.py" for name in ("async_llm", "decoder_model", "guidance_scheduler")
}
"""Modules that need vLLM: scripts/test-vllm runs their tests."""

MAX_LINES = 400
MAX_FUNCTION_LINES = 60


def _has_test(path: Path) -> bool:
    """Return whether a file has a test: for a/b/c.py a/test_b_c.py or a/b/test_c.py."""
    together = (TESTED_TOGETHER | TESTED_WITH_VLLM).get(path.relative_to(PACKAGE).as_posix())
    if together is not None:
        return (TESTS / together).exists()
    first, *inner = path.relative_to(PACKAGE).with_suffix("").parts
    if not inner:
        return (TESTS / f"test_{first}.py").exists()
    flat = TESTS / first / f"test_{'_'.join(inner)}.py"
    nested = TESTS.joinpath(first, *inner[:-1], f"test_{inner[-1]}.py")
    return flat.exists() or nested.exists()


def test_every_file_has_its_test_file() -> None:
    without = {str(path.relative_to(PACKAGE)) for path in sources() if not _has_test(path)}
    assert sorted(without - WITHOUT_A_TEST_FILE) == []


def test_no_file_is_over_400_lines() -> None:
    lengths = {str(p.relative_to(PACKAGE)): len(p.read_text().splitlines()) for p in sources()}
    assert {name: lines for name, lines in lengths.items() if lines > MAX_LINES} == {}


def test_no_function_is_over_60_lines() -> None:
    long = {
        f"{path.relative_to(PACKAGE)}:{node.name}": length
        for path in sources()
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef)
        and (length := (node.end_lineno or 0) - node.lineno + 1) > MAX_FUNCTION_LINES
    }
    assert long == {}


def _lines_of_code(path: Path) -> list[tuple[str, str]]:
    """Return position and text of the lines of code: no imports, comments or parameters."""
    passive = re.compile(r"#|@|self,|\*,|\w+: [^=]*(= [^=]*)?,$")
    imports = {
        line
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for line in range(node.lineno, (node.end_lineno or 0) + 1)
    }
    return [
        (f"{path.relative_to(PACKAGE)}:{number}", line.strip())
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if len(line.strip()) > 3 and number not in imports and not passive.match(line.strip())
    ]


def test_no_six_lines_are_repeated() -> None:
    positions: dict[tuple[str, ...], list[str]] = {}
    for path in sources():
        lines = _lines_of_code(path)
        for start in range(len(lines) - 5):
            window = tuple(line for _, line in lines[start : start + 6])
            positions.setdefault(window, []).append(lines[start][0])
    assert [found for found in positions.values() if len(found) > 1] == []


def test_no_module_is_named_for_a_kind_of_code() -> None:
    kinds = {"utils", "util", "common", "helpers", "misc", "base", "manager", "core"}
    assert [str(path) for path in PACKAGE.rglob("*.py") if path.stem in kinds] == []


def test_no_two_modules_have_the_same_name() -> None:
    modules: dict[str, list[str]] = {}
    for path in sources():
        modules.setdefault(path.name, []).append(str(path.relative_to(PACKAGE)))
    allowed = {"config.py"}
    assert [m for name, m in modules.items() if len(m) > 1 and name not in allowed] == []
