"""The import contracts of `.importlinter` hold, and each of them detects a violation."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.style.tree import PACKAGE, ROOT

VIOLATIONS = {
    "generate/violation.py": (
        "import calumma.train.step",
        "Generation, evaluation and serving do not import training",
    ),
    "documents/violation.py": (
        "def late() -> None:\n    import torch",
        "Documents, shards and the vocabulary are read without torch",
    ),
    "model/violation.py": ("import calumma.vocabulary", "The model imports torch and calumma.errors only"),
    "tokens/violation.py": (
        "import calumma.shards.format",
        "A package imports earlier packages of the pipeline, never later ones",
    ),
    "serve/violation.py": ("def late() -> None:\n    import vllm.config", "Only calumma.serve.vllm imports vLLM"),
    "new_package/violation.py": (
        "import json",
        "A package imports earlier packages of the pipeline, never later ones",
    ),
}
"""A file that violates a contract, and the contract's name; a package in no layer is one too."""


@pytest.fixture
def package_copy(tmp_path: Path) -> Path:
    """Copy the package and its contracts."""
    shutil.copytree(PACKAGE, tmp_path / "calumma", ignore=_no_source_files)
    shutil.copy(ROOT / ".importlinter", tmp_path)
    return tmp_path


def _no_source_files(folder: str, names: list[str]) -> list[str]:
    files = [name for name in names if (Path(folder) / name).is_file()]
    return [name for name in files if not name.endswith(".py")]


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter on the package in `folder`."""
    command = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run(
        [sys.executable, "-c", command, "--no-cache"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_import_contracts_hold(package_copy: Path) -> None:
    finished = lint(package_copy)
    assert finished.returncode == 0, finished.stdout + finished.stderr


@pytest.mark.parametrize("name", VIOLATIONS)
def test_a_violation_is_detected(package_copy: Path, name: str) -> None:
    code, contract = VIOLATIONS[name]
    path = package_copy / "calumma" / name
    path.parent.mkdir(exist_ok=True)
    path.with_name("__init__.py").touch()
    path.write_text(code + "\n")
    finished = lint(package_copy)
    assert finished.returncode == 1, finished.stdout + finished.stderr
    broken = [line for line in finished.stdout.splitlines() if " BROKEN" in line]
    assert any(contract in line for line in broken), finished.stdout
    assert "violation" in finished.stdout or "new_package" in finished.stdout
