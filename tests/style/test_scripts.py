"""The scripts on machines without Python, venv or some packages."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.style.tree import ROOT


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """Copy the scripts to a clone without an environment, with a space in its name."""
    folder = tmp_path / "a clone"
    shutil.copytree(ROOT / "scripts", folder / "scripts")
    for name in ("pyproject.toml", "constraints.txt", "CHANGELOG.md"):
        shutil.copy(ROOT / name, folder)
    return folder


def run(clone: Path, script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script of the clone from another folder."""
    return subprocess.run(
        ["bash", clone / "scripts" / script],
        cwd="/",
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_python_the_error_says_what_to_install(clone: Path) -> None:
    finished = run(clone, "install", PYTHON="false")
    assert finished.returncode == 2
    assert finished.stderr == (
        "error: no Python 3.11 or newer found among false; expected one. Install one, or set PYTHON=/path/to/python.\n"
    )


def _python_that_makes_no_venv(folder: Path) -> Path:
    python = folder / "python"
    python.write_text('#!/bin/sh\n[ "$1" = -c ] && { echo cp311; exit 0; }\nexit 1\n')
    python.chmod(0o755)
    return python


@pytest.mark.parametrize("script", ["install", "check", "test", "demo"])
def test_without_venv_the_error_says_what_to_install(clone: Path, script: str) -> None:
    python = _python_that_makes_no_venv(clone)
    finished = run(clone, script, PYTHON=str(python))
    assert finished.returncode == 2
    assert finished.stdout == f"making .venv with {python}\n"
    assert finished.stderr == (
        f"error: {python} cannot make a virtual environment; expected the module venv with pip. "
        "On Debian and Ubuntu: apt install python3-venv.\n"
    )
    assert not (clone / ".venv").exists()


@pytest.fixture
def installed(clone: Path) -> Path:
    """Add an environment to the clone whose uv installs nothing and logs its arguments."""
    binaries = clone / ".venv" / "bin"
    binaries.mkdir(parents=True)
    (binaries / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (binaries / "uv").write_text(f'#!/bin/sh\necho "$@" >> "{clone}/calls"\n')
    for program in binaries.iterdir():
        program.chmod(0o755)
    return clone


def install(clone: Path, *extras: str) -> list[str]:
    """Run the install script and return what uv was called to install, one entry per call."""
    (clone / "calls").unlink(missing_ok=True)
    command = ["bash", clone / "scripts" / "install", *extras]
    finished = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    calls = (clone / "calls").read_text().splitlines() if (clone / "calls").exists() else []
    assert (finished.stdout == "") == (calls == [])
    return [call.split(" -e ")[1].split(" --")[0] for call in calls]


def test_installed_extras_are_not_installed_again(installed: Path) -> None:
    assert install(installed) == [".[dev]"]
    assert install(installed) == []
    assert install(installed, "plain") == []
    assert install(installed, "hf", "corpora") == []


def test_extras_are_added_to_the_installed_ones(installed: Path) -> None:
    assert install(installed, "plain") == ["."]
    assert install(installed, "hf") == [".[hf]"]
    assert install(installed, "corpora") == [".[corpora,hf]"]
    assert install(installed, "hf", "plain") == []


def test_changed_versions_are_installed(installed: Path) -> None:
    install(installed)
    with (installed / "constraints.txt").open("a") as file:
        file.write("another==1.0\n")
    assert install(installed) == [".[dev]"]
