"""The command as a whole: its help, its examples, and how it ends."""

import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import calumma.cli
from calumma.checkpoints.model_folder import ModelComponents, save_model
from calumma.cli.inspect import inspect_command
from calumma.cli.main import COMMANDS, SHELLS, join_overrides, main, make_parser
from calumma.errors import Interrupted
from tests.end_to_end.test_verbs import FINETUNE, PRETRAIN, VQ

ROOT = Path(__file__).parents[2]
NAMES = [add.__name__[len("add_") : -len("_command")].replace("_", "-") for add in COMMANDS]
HELPS = [[], *([name] for name in NAMES), ["corpus", "list"], ["corpus", "fetch"]]

COMPLETE = """\
source ./script
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
_shtab_calumma calumma "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


def help_of(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as left:
        main([*command, "--help"])
    assert left.value.code == 0
    return capsys.readouterr().out


def examples_in(text: str) -> list[list[str]]:
    """Return the command lines between "examples:" and the exit status, without comments."""
    between = text.split("examples:\n")[1].split("exit status:")[0]
    return [shlex.split(re.split(r"\s{2,}", line.strip())[0]) for line in between.splitlines()]


def test_the_help_lists_every_command_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    defined = {
        name
        for path in Path(calumma.cli.__path__[0]).rglob("*.py")
        for name in re.findall(r"^def (add_\w+_command)\(subparsers: ", path.read_text(), re.M)
    }
    assert {add.__name__ for add in COMMANDS} <= defined
    listed = help_of([], capsys).split("one of:")[1].split("--version")[0]
    assert re.findall(r"^ {,8}([a-z][\w-]+)", listed, re.MULTILINE) == NAMES


@pytest.mark.parametrize("command", HELPS, ids=" ".join)
def test_every_help_fits_a_screen_and_ends_in_examples_and_exit_status(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    lines = help_of(command, capsys).splitlines()
    assert len(lines) <= (24 if command else 28)  # a line per command
    assert max(map(len, lines)) <= 100
    assert lines[0].startswith(" ".join(["usage: calumma", *command]))
    assert "examples:" in lines
    assert lines[-1].startswith("exit status: 0 finished   2 an error")


@pytest.mark.parametrize("command", HELPS, ids=" ".join)
def test_every_example_is_parsed(
    command: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    model_parts: ModelComponents,
) -> None:
    monkeypatch.chdir(tmp_path)
    save_model(Path("out/model"), model_parts)
    for name in ("docs", "my"):
        Path(f"{name}.jsonl").write_text('{"text": "a"}\n')
    for name, text in (("vq", VQ), ("run", PRETRAIN), ("turns", FINETUNE)):
        Path(f"{name}.toml").write_text(text)
    text = help_of(command, capsys)
    examples = examples_in(text)
    assert examples
    for words in examples:
        assert words[: len(command) + 1] == ["calumma", *command]
        if "--help" in words:
            continue
        args, rest = make_parser().parse_known_args(words[1:])
        if "--dry-run" in text:
            assert main([*words[1:], "--dry-run"]) == 0, capsys.readouterr().err
        elif not getattr(args, "accepts_overrides", False):
            assert rest == []


def test_a_dry_run_shows_the_config_and_makes_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.toml").write_text(PRETRAIN)
    line = "pretrain run.toml --out out --dry-run --optimizer.lr 3e-4"
    assert main(shlex.split(line)) == 0
    shown = capsys.readouterr().out.splitlines()
    assert {"optimizer.lr = 0.0003", "stage_one.weights.pairs = 1.0"} <= set(shown)
    assert [path.name for path in tmp_path.iterdir()] == ["run.toml"]


def commands_in(page: str) -> list[str]:
    """Return the commands in the code blocks of a page, those of several lines as one."""
    commands: list[str] = []
    is_open = False
    for line in page.splitlines():
        if is_open:
            commands[-1] += " " + line.strip().removesuffix("\\")
        elif match := re.match(r" {4}(?:torchrun .* -m )?calumma (.*)", line):
            commands.append(match[1].removesuffix("\\"))
        else:
            continue
        is_open = line.endswith("\\") or commands[-1].count('"') % 2 == 1
    return commands


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda path: path.stem
)
def test_the_parser_accepts_the_commands_of_a_page(page: Path) -> None:
    parser, text = make_parser(), page.read_text()
    commands = commands_in(text)
    if page.name == "README.md":  # others name commands without their arguments in sentences
        commands += re.findall(r"`(?:torchrun [^`]* -m )?calumma ([^`]+)`", text)
    for command in commands:
        words = [*shlex.split(command, comments=True), "|"]
        arguments = words[: words.index("|")]
        if "--help" in arguments or "--print-completion" in arguments:
            continue
        args, unknown = parser.parse_known_args(arguments)
        assert not unknown or getattr(args, "accepts_overrides", False), command


def test_the_value_of_a_field_is_no_positional_argument() -> None:
    arguments = ["generate", "--prompt", "x", "--image.temperature", "1.0"]
    args, unknown = make_parser().parse_known_args(join_overrides(arguments))
    assert (args.model, unknown) == (make_parser().parse_args(arguments[:3]).model, ["--image.temperature=1.0"])


ERRORS = [
    ([], "the following arguments are required: COMMAND; `calumma --help` lists the options."),
    (
        ["pretrain", "x.toml"],
        "the following arguments are required: --out; `calumma pretrain --help` lists the options.",
    ),
    (["inspect", "x", "--deep"], "unexpected arguments --deep; `calumma inspect --help` lists the options."),
    (["demo", "--seed", "x"], "argument --seed: invalid int value: 'x'; `calumma demo --help` lists the options."),
    (
        ["corpus", "fetch"],
        "the following arguments are required: NAME, --out; `calumma corpus fetch --help` lists the options.",
    ),
    (["prtrain"], "argument COMMAND: unknown 'prtrain', the closest is pretrain; `calumma --help` lists the options."),
    (
        ["corpus", "fecth"],
        "argument list|fetch|make|choose: unknown 'fecth', the closest is fetch; "
        "`calumma corpus --help` lists the options.",
    ),
    (
        ["generate", "m", "--out", "o", "--prompt", "x", "--weights", "int8"],
        "unknown option --weights; it is now --quantization.",
    ),
    (
        ["generate", "m", "--out", "o", "--prompt", "x", "--guidance=3"],
        "unknown option --guidance; it is now --guidance-scale.",
    ),
    (["generate", "m", "--out", "o"], "no --prompt and no --image; expected at least one of them."),
]


@pytest.mark.parametrize(("words", "message"), ERRORS)
def test_an_error_on_the_command_line_is_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_an_unknown_command_gets_the_list_of_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["xyz"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: argument COMMAND: invalid choice: 'xyz' (choose from")
    assert line.endswith("`calumma --help` lists the options.")


def test_an_interrupted_run_names_what_is_saved_and_exits_with_3(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(args: object) -> None:
        raise Interrupted("stopped by a signal; step 3 is saved.")

    monkeypatch.setattr(inspect_command, "_run", stopped)
    assert main(["inspect", "x"]) == 3
    assert capsys.readouterr().err == "stopped by a signal; step 3 is saved.\n"


def test_warnings_of_the_package_are_lines_on_stderr(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger("calumma.train")

    def warn(args: object) -> None:
        logger.info("step 1")
        logger.warning("the loss is %s", "high")

    monkeypatch.setattr(inspect_command, "_run", warn)
    assert main(["inspect", "x"]) == 0
    assert capsys.readouterr().err == "warning: the loss is high\n"
    logger.warning("after the command")
    assert capsys.readouterr().err == ""


def test_only_the_first_rank_prints_warnings(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(inspect_command, "_run", lambda args: logging.getLogger("calumma").warning("twice"))
    assert main(["inspect", "x"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_with_nothing_to_resume_stops_at_the_first_signal(
    number: signal.Signals, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def long(args: object) -> None:
        os.kill(os.getpid(), number)
        time.sleep(30)

    monkeypatch.setattr(inspect_command, "_run", long)
    assert main(["inspect", "x"]) == 3
    assert capsys.readouterr().err == "stopped by a signal; no file is left half written.\n"


LISTENING = """
import sys, time
from calumma.cli import demo
from calumma.cli.main import main
def run(args):
    print("ready", flush=True)
    time.sleep(1)
    print("first signal waited for", flush=True)
    time.sleep(60)
demo._run = run
sys.exit(main(["demo"]))
"""


def test_the_second_signal_ends_the_process_at_once() -> None:
    with subprocess.Popen([sys.executable, "-c", LISTENING], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == b"first signal waited for\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 3


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{shlex.quote(sys.executable)} -m calumma corpus list | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"name ")


HEAVY = """
import sys
import calumma.cli.main
calumma.cli.main.make_parser().format_help()
print(len(sys.modules))
print([name for name in ("torch", "pyarrow", "pydantic", "rich", "numpy") if name in sys.modules])
"""


def test_help_imports_few_modules_and_nothing_heavy() -> None:
    text = subprocess.run([sys.executable, "-c", HEAVY], capture_output=True, text=True, check=True)
    num_modules, heavy = text.stdout.splitlines()
    assert heavy == "[]"
    assert int(num_modules) < 300  # 168 on Linux; torch alone has more than a thousand


WITHOUT_POSIX = """
import sys
sys.modules["fcntl"] = sys.modules["resource"] = None  # as on Windows
sys.platform = "win32"
from calumma.cli.main import main
sys.exit(main(["--version"]))
"""


def test_where_posix_modules_are_missing_the_command_ends_with_one_line() -> None:
    finished = subprocess.run([sys.executable, "-c", WITHOUT_POSIX], capture_output=True, text=True, check=False)
    assert finished.returncode == 2
    assert finished.stdout == ""
    assert finished.stderr == (
        "error: Python has no module 'fcntl' on win32; expected Linux. "
        "On Windows run calumma in the Windows Subsystem for Linux (WSL).\n"
    )


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
