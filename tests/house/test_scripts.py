"""The scripts on machines where something is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.house.tree import ROOT


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone without an environment, in a folder with a space in its name."""
    folder = tmp_path / "a clone"
    shutil.copytree(ROOT / "scripts", folder / "scripts")
    for name in ("pyproject.toml", "constraints.txt", "CHANGELOG.md"):
        shutil.copy(ROOT / name, folder)
    return folder


def run(clone: Path, script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A script of the clone, called from elsewhere."""
    return subprocess.run(
        ["bash", clone / "scripts" / script],
        cwd="/",
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_machine_without_python_is_told_what_to_install(clone: Path) -> None:
    finished = run(clone, "install", PYTHON="false")
    assert finished.returncode == 2
    assert finished.stderr == (
        "error: no Python 3.11 or newer found among false; wanted one. "
        "Install one, or name it: PYTHON=/path/to/python scripts/install.\n"
    )


def _python_that_makes_no_venv(folder: Path) -> Path:
    python = folder / "python"
    python.write_text('#!/bin/sh\n[ "$1" = -c ] && { echo cp311; exit 0; }\nexit 1\n')
    python.chmod(0o755)
    return python


@pytest.mark.parametrize("script", ["install", "check", "test", "demo"])
def test_a_python_without_venv_is_told_how_to_get_it(clone: Path, script: str) -> None:
    python = _python_that_makes_no_venv(clone)
    finished = run(clone, script, PYTHON=str(python))
    assert finished.returncode == 2
    assert finished.stdout == f"making .venv with {python}\n"
    assert finished.stderr == (
        f"error: {python} cannot make a virtual environment; wanted the module venv with pip. "
        "On Debian and Ubuntu: apt install python3-venv.\n"
    )
    assert not (clone / ".venv").exists()


def test_what_is_installed_already_is_not_installed_again(clone: Path) -> None:
    if not (ROOT / ".venv" / ".installed").exists():
        pytest.skip("this environment was not made by scripts/install")
    finished = subprocess.run(
        [ROOT / "scripts" / "install"], cwd="/", capture_output=True, text=True, check=False
    )
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "", "")
