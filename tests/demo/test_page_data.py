import argparse
import shlex
from dataclasses import FrozenInstanceError

import pytest

from calumma.cli import generate
from calumma.demo.page_data import PageData, next_commands


def test_page_data_have_defaults_and_are_frozen() -> None:
    data = PageData(title="t", lead="l", command="c", machine="m")
    assert (data.generated_images, data.tokenization, data.metrics) == ((), None, ())
    with pytest.raises(FrozenInstanceError):
        data.title = "another"  # type: ignore[misc]


def test_every_next_command_is_quoted_for_a_shell() -> None:
    commands = [shlex.split(command) for command, _ in next_commands("my out", "it's; rm", "what?")]
    assert commands[0] == (["calumma", "generate", "my out/model", "--prompt", "it's; rm", "--out", "my out/image"])
    assert commands[1][:7] == (["calumma", "generate", "my out/model", "--image", "picture.png", "--prompt", "what?"])
    assert commands[2][:2] == ["python", "-c"]


def test_the_python_command_compiles() -> None:
    code = shlex.split(next_commands('an "odd" folder', "p", "q")[2][0])[2]
    compile(code, "<command>", "exec")


def test_every_next_command_is_accepted_by_the_parser() -> None:
    parser = argparse.ArgumentParser()
    generate.add_generate_command(parser.add_subparsers())
    for command, _ in next_commands("out", "draw a fox", "what is this?")[:2]:
        arguments = parser.parse_args(shlex.split(command)[1:])
        assert arguments.parts[-1] in {"draw a fox", "what is this?"}
