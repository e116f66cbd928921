"""The command as a whole: its help, its examples, and how it ends."""

from __future__ import annotations

import os
import pkgutil
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import calumma.cli
from calumma.cli.inspect import inspect_command
from calumma.cli.main import VERBS, main, make_parser
from calumma.errors import Interrupted
from tests.road.test_verbs import FINETUNE, PRETRAIN, VQ

NAMES = [verb.__name__.rpartition(".")[2].replace("_", "-") for verb in VERBS]
COMMANDS = [[], *([name] for name in NAMES), ["corpus", "list"], ["corpus", "fetch"]]


def help_of(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as left:
        main([*command, "--help"])
    assert left.value.code == 0
    return capsys.readouterr().out


def examples_in(text: str) -> list[list[str]]:
    """The command lines between "examples:" and the exit status, without what explains them."""
    between = text.split("examples:\n")[1].split("exit status:")[0]
    return [shlex.split(re.split(r"\s{2,}", line.strip())[0]) for line in between.splitlines()]


def test_the_help_names_every_verb_there_is_and_no_other(
    capsys: pytest.CaptureFixture[str],
) -> None:
    modules = [f"calumma.cli.{m.name}" for m in pkgutil.iter_modules(calumma.cli.__path__)]
    there = {name for name in modules if hasattr(sys.modules.get(name), "add_parser")}
    assert there == {verb.__name__ for verb in VERBS}
    listed = help_of([], capsys).split("one of:")[1].split("--version")[0]
    named = re.findall(r"^ {,8}([a-z][\w-]+)", listed, re.MULTILINE)
    assert named == NAMES


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_help_fits_a_screen_and_ends_in_examples_and_exit_status(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    lines = help_of(command, capsys).splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 100
    assert lines[0].startswith(" ".join(["usage: calumma", *command]))
    assert "examples:" in lines
    assert lines[-1].startswith("exit status: 0 finished   2 a mistake")


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_example_is_understood(
    command: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in (("vq", VQ), ("run", PRETRAIN), ("turns", FINETUNE)):
        Path(f"{name}.toml").write_text(text)
    told = help_of(command, capsys)
    examples = examples_in(told)
    assert examples
    for words in examples:
        assert words[: len(command) + 1] == ["calumma", *command]
        if "--help" in words:
            continue
        args, rest = make_parser().parse_known_args(words[1:])
        if getattr(args, "takes_changes", False):
            dry = ["--dry-run"] if "--dry-run" in told else []
            assert main([*words[1:], *dry]) == 0, capsys.readouterr().err
        elif not getattr(args, "takes_rules", False):
            assert rest == []


def test_a_dry_run_shows_the_config_and_makes_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.toml").write_text(PRETRAIN)
    line = "pretrain run.toml --out out --dry-run --optimizer.peak-rate 3e-4"
    assert main(shlex.split(line)) == 0
    shown = capsys.readouterr().out.splitlines()
    assert {"optimizer.peak_rate = 0.0003", "stage_one.weights.pairs = 1.0"} <= set(shown)
    assert [path.name for path in tmp_path.iterdir()] == ["run.toml"]


MISTAKES = [
    ([], "the following arguments are required: VERB; `calumma --help` says what is expected."),
    (
        ["pretrain", "x.toml"],
        "the following arguments are required: --out; "
        "`calumma pretrain --help` says what is expected.",
    ),
    (
        ["inspect", "x", "--deep"],
        "--deep was not expected; `calumma inspect --help` says what is.",
    ),
    (
        ["demo", "--seed", "x"],
        "argument --seed: invalid int value: 'x'; `calumma demo --help` says what is expected.",
    ),
    (
        ["corpus", "fetch"],
        "the following arguments are required: NAME, --out; "
        "`calumma corpus fetch --help` says what is expected.",
    ),
    (
        ["prtrain"],
        "argument VERB: there is no 'prtrain'; expected perhaps pretrain; `calumma --help` says what "
        "is expected.",
    ),
    (
        ["corpus", "fecth"],
        "argument list|fetch|make|choose: there is no 'fecth'; expected perhaps fetch; "
        "`calumma corpus --help` says what is expected.",
    ),
    (["generate", "m", "--out", "o"], "no --prompt and no --image; expected at least one of them."),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES)
def test_a_mistake_on_the_command_line_is_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_an_unknown_verb_is_told_which_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["xyz"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: argument VERB: invalid choice: 'xyz' (choose from")
    assert line.endswith("`calumma --help` says what is expected.")


def test_a_run_that_was_stopped_says_what_is_saved_and_exits_with_3(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(args: object) -> None:
        raise Interrupted("stopped by a signal; step 3 is saved.")

    monkeypatch.setattr(inspect, "run", stopped)
    assert main(["inspect", "x"]) == 3
    assert capsys.readouterr().err == "stopped by a signal; step 3 is saved.\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_work_with_nothing_to_save_stops_at_the_first_signal(
    number: signal.Signals,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def long(args: object) -> None:
        os.kill(os.getpid(), number)
        time.sleep(30)

    monkeypatch.setattr(inspect, "run", long)
    assert main(["inspect", "x"]) == 3
    assert capsys.readouterr().err == "stopped by a signal; nothing is left half written.\n"


LISTENING = """
import sys, time
from calumma.cli import demo
from calumma.cli.main import main
def run(args):
    print("ready", flush=True)
    time.sleep(1)
    print("first signal waited for", flush=True)
    time.sleep(60)
demo.run = run
sys.exit(main(["demo"]))
"""


def test_the_second_signal_ends_the_process_at_once() -> None:
    with subprocess.Popen([sys.executable, "-c", LISTENING], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == b"first signal waited for\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 3


def test_a_reader_who_has_seen_enough_is_no_mistake() -> None:
    command = (
        f"{shlex.quote(sys.executable)} -m calumma corpus list | head -n 1; exit ${{PIPESTATUS[0]}}"
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"name ")


HEAVY = """
import sys, time
started = time.perf_counter()
import calumma.cli.main
calumma.cli.main.make_parser().format_help()
print(time.perf_counter() - started)
print([name for name in ("torch", "pyarrow", "pydantic", "rich", "numpy") if name in sys.modules])
"""


def test_asking_for_help_is_quick_and_imports_nothing_heavy() -> None:
    told = subprocess.run([sys.executable, "-c", HEAVY], capture_output=True, text=True, check=True)
    seconds, heavy = told.stdout.splitlines()
    assert heavy == "[]"
    # The bar is 0.3 s; ten times that here, for machines that are busy with something else.
    assert float(seconds) < 3.0
