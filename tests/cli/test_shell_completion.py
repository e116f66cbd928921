"""Completion scripts of shells: what bash completes with them, and the error without shtab."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from calumma.cli.main import main
from calumma.cli.shell_completion import SHELLS

COMPLETE = """\
source ./script
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
_shtab_calumma calumma "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


def script_for(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Return what the command prints."""
    with pytest.raises(SystemExit) as left:
        main(["--print-completion", shell])
    assert left.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["ev"], {"evaluate"}),
        (["convert", "--"], {"--help", "--to"}),
        (["serve", "--qu"], {"--quantization"}),  # an option that the help leaves out
        (["inspect", "a"], {"a-model"}),
        (["build-shards", "a"], {"a-model"}),
        (["evaluate", "a"], {"a-model"}),
        (["--print-completion", "z"], {"zsh"}),
    ],
)
def test_bash_completes_commands_options_and_paths(
    words: list[str], expected: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "script").write_text(script_for("bash", capsys))
    (tmp_path / "a-model").mkdir()
    finished = subprocess.run(
        ["bash", "-c", COMPLETE, "bash", "calumma", *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    completed = {line.rstrip("/") for line in finished.stdout.splitlines()}
    assert expected <= completed, finished.stderr
    assert all(line.startswith(words[-1]) for line in completed)


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_of_each_shell_names_the_commands(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    script = script_for(shell, capsys)
    assert [name for name in ("build-shards", "generate", "serve") if name not in script] == []


def test_without_shtab_the_error_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["--print-completion", "bash"]) == 2
    assert capsys.readouterr().err == (
        "error: --print-completion needs shtab, which is not installed. "
        "`pip install 'calumma[completion]'` installs it.\n"
    )


def test_an_unknown_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--print-completion", "ksh"]) == 2
    assert capsys.readouterr().err == (
        "error: argument --print-completion: unknown 'ksh', the closest is zsh; `calumma --help` lists the options.\n"
    )
