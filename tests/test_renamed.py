"""Old names of fields, options and request fields are refused with the new name."""

from pathlib import Path
from typing import Any

import pytest

from calumma.cli.main import main, make_parser
from calumma.demo.config import DemoConfig
from calumma.documents.document_filter import FilterConfig
from calumma.errors import ConfigError
from calumma.evaluate.evaluator import TASKS
from calumma.generate.params import SamplingOptions
from calumma.renamed import EVAL_TASKS, FIELDS, OPTIONS, REQUEST_FIELDS, SERVE_LIMITS, new_fields, rename_message
from calumma.toml_config import _is_field, load_config, override_config
from calumma.train.config import PretrainConfig
from calumma.train.config_dpo import DPOTrainConfig
from calumma.train.config_finetune import FinetuneConfig
from calumma.train.config_image_tokenizer import ImageTokenizerRunConfig

CONFIGS = (
    PretrainConfig,
    FinetuneConfig,
    DPOTrainConfig,
    ImageTokenizerRunConfig,
    SamplingOptions,
    FilterConfig,
    DemoConfig,
)


def exists(field: str) -> bool:
    return any(_is_field(config_class, field.split(".")) for config_class in CONFIGS)


@pytest.mark.parametrize("old", FIELDS)
def test_every_new_field_exists_and_no_old_one_does(old: str) -> None:
    assert not exists(old)
    assert all(exists(new) for alternative in new_fields(old) for new in alternative)


@pytest.mark.parametrize("old", OPTIONS)
def test_every_new_option_is_an_option(old: str) -> None:
    assert OPTIONS[old] in _options(old.rpartition(" ")[0] or "generate")


def _options(command: str) -> set[str]:
    """Return all options of a command and its subcommands, config fields included."""
    parsers: list[Any] = [make_parser()]
    found: set[str] = set()
    inside = False
    for parser in parsers:
        for action in parser._actions:
            for name, subparser in (action.choices or {}).items() if _is_group(action) else ():
                if inside or name == command:
                    parsers.append(subparser)
            if parser is not parsers[0]:
                found.update(action.option_strings)
        inside = True
    return found | _override_options(command)


def _is_group(action: Any) -> bool:
    return isinstance(action.choices, dict)


def _override_options(command: str) -> set[str]:
    from calumma.cli.evaluate import EvaluateOptions

    fields = EvaluateOptions.__dataclass_fields__ if command == "evaluate" else {}
    return {f"--{name.replace('_', '-')}" for name in fields}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[stream]\nrow_length = 64", "unknown field stream.row_length; it is now data.seq_len."),
        ("[eyes]\nevery = 5", "unknown field eyes.every; it is now diagnostics.interval."),
        ("[watch]\nmost_z = 5.0", "unknown field watch.most_z; it is now stability.max_log_z."),
        ("[watch]\nwindow = 5", "unknown field watch.window; it is now stability.window."),
        ("[watch]", "unknown field watch; it is now stability."),
        ("[loader]\nworkers = 2", "unknown field loader.workers; it is now data.num_workers."),
        ("accumulate = 2", "unknown field accumulate; it is now data.global_batch_size and data.micro_batch_size."),
        ("[optimizer]\npeak_rate = 1e-3", "unknown field optimizer.peak_rate; it is now optimizer.lr."),
        ("save_every = 5", "unknown field save_every; it is now checkpoint.interval."),
        # Names of another config are no hint here.
        ("pairs_per_step = 5", "unknown field pairs_per_step; expected one of"),
    ],
)
def test_an_old_field_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(PretrainConfig, path, [])
    assert str(caught.value).startswith(f"{path}: {message}")


def test_the_new_name_depends_on_the_config() -> None:
    with pytest.raises(ConfigError) as caught:
        override_config(DemoConfig, {"save_every": 5}, [], "demo")
    assert str(caught.value) == "demo: unknown field save_every; it is now checkpoint_interval."


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--stream.row-length", "unknown option --stream.row-length; it is now --data.seq-len."),
        ("--watch.window", "unknown option --watch.window; it is now --stability.window."),
        (
            "--accumulate",
            "unknown option --accumulate; it is now --data.global-batch-size and --data.micro-batch-size.",
        ),
    ],
)
def test_an_old_dotted_option_is_refused(option: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        override_config(PretrainConfig, {}, [option, "64"], "the command line")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("generate MODEL --prompt x --out o --weights int8", "unknown option --weights; it is now --quantization."),
        (
            "generate MODEL --prompt x --out o --image.text-guidance 3",
            "unknown option --image.text-guidance; it is now --image.guidance-scale.",
        ),
        ("serve MODEL --tensor=2", "unknown option --tensor; it is now --tensor-parallel-size."),
        ("inspect PATH --page p.html", "unknown option --page; it is now --html."),
    ],
)
def test_an_old_option_is_refused(arguments: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments.split()) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_new_request_fields_limits_and_tasks_exist() -> None:
    from calumma.serve.config import ServeLimits
    from calumma.serve.protocol import ChatCompletionRequest, ImageGenerationRequest

    fields = {*ChatCompletionRequest.model_fields, *ImageGenerationRequest.model_fields}
    assert set(REQUEST_FIELDS.values()) <= fields
    assert set(SERVE_LIMITS.values()) <= set(ServeLimits.__dataclass_fields__)
    assert set(EVAL_TASKS.values()) <= set(TASKS)


def test_the_message_is_one_line() -> None:
    assert rename_message("field", "a", "b") == "unknown field a; it is now b."
