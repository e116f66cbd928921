"""The walls between the rooms stand, and a hole in one is seen."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.style.tree import PACKAGE, ROOT

PLANTED = {
    "generate/planted.py": (
        "import calumma.train.training_loop",
        "What answers and judges cannot train",
    ),
    "documents/planted.py": (
        "def late() -> None:\n    import torch",
        "Reading documents, shards and the table of ids needs no torch",
    ),
    "model/planted.py": (
        "import calumma.vocabulary",
        "The model is torch and, of ours, the errors",
    ),
    "tokens/planted.py": ("import calumma.shards.format", "Imports point up the road"),
    "attic/planted.py": ("import json", "Imports point up the road"),
}
"""A file that breaks a wall, and the wall's name. A room that is in no contract breaks one too."""


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A copy of the package and its contracts."""
    shutil.copytree(
        PACKAGE, tmp_path / "calumma", ignore=lambda folder, names: _no_sources(Path(folder), names)
    )
    shutil.copy(ROOT / ".importlinter", tmp_path)
    return tmp_path


def _no_sources(folder: Path, names: list[str]) -> list[str]:
    return [name for name in names if (folder / name).is_file() and not name.endswith(".py")]


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """What import-linter says of the package in `folder`."""
    command = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run(
        [sys.executable, "-c", command, "--no-cache"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_walls_stand(house: Path) -> None:
    finished = lint(house)
    assert finished.returncode == 0, finished.stdout + finished.stderr


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_violation_is_seen(house: Path, name: str) -> None:
    code, wall = PLANTED[name]
    (house / "calumma" / name).parent.mkdir(exist_ok=True)
    (house / "calumma" / name).parent.joinpath("__init__.py").touch()
    (house / "calumma" / name).write_text(code + "\n")
    finished = lint(house)
    assert finished.returncode == 1, finished.stdout + finished.stderr
    broken = [line for line in finished.stdout.splitlines() if line.strip().endswith("BROKEN")]
    assert any(wall in line for line in broken), finished.stdout
    assert "planted" in finished.stdout or "attic" in finished.stdout
