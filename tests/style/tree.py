"""The files of the project, for the tests that read them."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "calumma"
TESTS = ROOT / "tests"

TEXT_SUFFIXES = {
    *("", ".cff", ".cfg", ".css", ".html", ".ini", ".js", ".md", ".py", ".sh", ".toml", ".txt"),
    *(".yaml", ".yml"),
}


def sources(folder: Path = PACKAGE) -> list[Path]:
    """Return the Python files of a folder, without `__init__.py`."""
    return sorted(path for path in folder.rglob("*.py") if path.name != "__init__.py")


def modules() -> list[str]:
    """Return the dotted names of all modules of the package."""
    names = (path.relative_to(ROOT).with_suffix("").parts for path in sources())
    return [".".join(name) for name in names]


def texts() -> Iterator[Path]:
    """Yield every text file of the project, without outputs, caches and environments."""
    included = {*(".ci", ".dockerignore", ".github", ".gitignore", ".importlinter"), ".pre-commit-config.yaml"}
    for path in sorted(ROOT.iterdir()):
        hidden = path.name.startswith(".") and path.name not in included
        if hidden or path.name in {"out", "build", "dist"} or path.suffix == ".egg-info":
            continue
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and file.suffix in TEXT_SUFFIXES and "__pycache__" not in file.parts:
                yield file


def parsed(path: Path) -> ast.Module:
    """Parse a Python file."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def literal(node: ast.AST) -> list[str]:
    """Return the literal fragments of a string or f-string, in order."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.JoinedStr):
        return [text for value in node.values for text in literal(value)]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return literal(node.left) + literal(node.right)
    return []


def public_names(tree: ast.Module) -> Iterator[str]:
    """Yield the public classes, functions, type aliases and constants that a module defines."""
    for node in tree.body:
        if isinstance(node, ast.If):  # `if TYPE_CHECKING` and the like define nothing twice
            continue
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names = [node.name]
        elif isinstance(node, ast.Assign):
            names = [n.id for t in node.targets for n in ast.walk(t) if isinstance(n, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names = [node.target.id]
        else:
            continue
        yield from {name for name in names if not name.startswith("_")}


def names_defined_twice() -> dict[str, list[str]]:
    """Return each public name that two or more modules of the package define, with the modules."""
    modules_of: dict[str, list[str]] = {}
    for path in sources():
        for name in set(public_names(parsed(path))):  # overloads are one name
            modules_of.setdefault(name, []).append(str(path.relative_to(PACKAGE)))
    return {name: found for name, found in sorted(modules_of.items()) if len(found) > 1}
