import argparse
import shlex
from dataclasses import FrozenInstanceError

import pytest

from calumma.cli import generate
from calumma.demo.page_data import PageData, next_commands


def test_a_story_needs_four_strings_and_cannot_be_changed() -> None:
    story = PageData(title="t", lead="l", command="c", machine="m")
    assert (story.generated_images, story.tokenization, story.metrics) == ((), None, ())
    with pytest.raises(FrozenInstanceError):
        story.title = "another"  # type: ignore[misc]


def test_every_way_on_is_a_command_a_shell_reads_as_meant() -> None:
    commands = [shlex.split(command) for command, _ in next_commands("my out", "it's; rm", "what?")]
    assert commands[0] == (
        ["calumma", "generate", "my out/model", "--prompt", "it's; rm", "--out", "my out/drawn"]
    )
    assert commands[1][:7] == (
        ["calumma", "generate", "my out/model", "--image", "picture.png", "--prompt", "what?"]
    )
    assert commands[2][:2] == ["python", "-c"]


def test_the_line_of_python_is_python() -> None:
    code = shlex.split(next_commands('an "odd" folder', "p", "q")[2][0])[2]
    compile(code, "<way on>", "exec")


def test_every_way_on_is_one_the_command_line_takes() -> None:
    parser = argparse.ArgumentParser()
    generate.add_generate_command(parser.add_subparsers())
    for command, _ in next_commands("out", "draw a fox", "what is this?")[:2]:
        arguments = parser.parse_args(shlex.split(command)[1:])
        assert arguments.parts[-1] in {"draw a fox", "what is this?"}
