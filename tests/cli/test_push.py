"""`calumma push`, and `--revision` of the commands that take a model, against a local Hub."""

import json
from pathlib import Path

import pytest
import torch

from calumma.checkpoints.model_folder import ModelComponents, save_model
from calumma.checkpoints.peft_folder import write_adapter
from calumma.cli.main import main
from calumma.cli.serve import serve_adapters
from calumma.model.lora import Adapter, LoRAMatrices, TokenRows
from tests.hub_server import TOKEN, Hub

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # in huggingface_hub's uploads

NAME = "anna/tiny"


@pytest.fixture
def folder(model_parts: ModelComponents, tmp_path: Path) -> Path:
    save_model(tmp_path / "model", model_parts)
    return tmp_path / "model"


def test_a_folder_is_pushed_with_a_card_and_used_by_name(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert main(["push", "model", NAME, "--private", "--message", "first"]) == 0
    card, url = capsys.readouterr().out.splitlines()
    assert card == "model card: model/README.md"
    assert url.startswith(f"{hub.url}/{NAME}/commit/")
    repository = hub.repositories[NAME]
    assert repository.is_private and repository.messages[-1] == "first"
    assert f'calumma.load("{NAME}")' in (repository.files("main") or {})["README.md"].decode()

    assert main(["push", "model", NAME, "--branch", "v2"]) == 0
    repository.commit({}, "main")
    assert main(["convert", NAME, "copy", "--to", "calumma", "--revision", "v2"]) == 0
    assert (Path("copy") / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    sample = ["--prompt", "a red", "--max-new-tokens", "4", "--modality", "text", "--out", "out"]
    assert main(["generate", NAME, "--revision", "v2", *sample]) == 0
    capsys.readouterr()
    assert main(["generate", NAME, *sample]) == 2
    assert "holds no config.json" in capsys.readouterr().err


def test_every_command_takes_names_of_the_hub(
    hub: Hub, folder: Path, model_parts: ModelComponents, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.add_folder(NAME, folder, "v2")
    config = model_parts.decoder.config
    matrices = LoRAMatrices(torch.ones(2, config.model_dim), torch.ones(config.model_dim, 2), 0.5)
    rows = {"head": TokenRows(torch.tensor([3, 5]), torch.ones(2, config.model_dim))}
    adapter = Adapter(matrices={"blocks.0.attention.output": matrices}, tables=rows)
    write_adapter(Path("lora"), adapter, config, Path("anna/tiny@v2"))
    hub.add_folder("anna/lora", Path("lora"))
    for name, *options in ((NAME, "--revision", "v2"), ("anna/tiny@v2",)):
        assert main(["inspect", name, *options]) == 0
        assert capsys.readouterr().out.splitlines()[0].endswith(": a model folder, complete")
    assert main(["inspect", "anna/lora"]) == 0
    num_parameters = 6 * config.model_dim
    assert capsys.readouterr().out.splitlines()[1:] == [
        f"LoRA of rank 2 on 1 module, 2 rows of lm_head: {num_parameters} parameters, {4 * num_parameters} bytes",
        "base model: anna/tiny",
    ]
    assert serve_adapters(["mine=anna/lora"])["mine"].is_relative_to(Path("cache").absolute())
    Path("p.jsonl").write_text('{"id": "1", "text": "a red"}\n')
    study = ["--prompts", "p.jsonl", "--system", "ours=anna/tiny@v2", "--system", "other=p.jsonl"]
    assert main(["compare", "new", "study", *study, "--max-new-tokens", "4", "--max-images", "0"]) == 0
    capsys.readouterr()
    missing = "is no folder here, and the Hub has no such model, or it is private; expected a folder or the name of a"
    for words in (["inspect", "anna/no"], ["compare", "new", "other", *study[:2], "--system", "ours=anna/no"]):
        assert main(words) == 2
        assert capsys.readouterr().err == (
            f"error: anna/no {missing} model. Check the name, or log in with `hf auth login`.\n"
        )


def test_a_config_may_name_a_model_and_its_revision(
    hub: Hub, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.add_folder(NAME, folder, "v2")
    Path("sft.toml").write_text('model = "anna/tiny@v2"\nshards = "shards"\nsteps = 1\n[data]\nseq_len = 64\n')
    assert main(["finetune", "sft.toml", "--out", "run", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "model = anna/tiny@v2" in shown
    assert "does not exist" not in shown


def test_a_revision_without_a_name_is_one_line(hub: Hub, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = "expected a revision with a name on the Hub, user/name. Leave it out."
    assert main(["generate", "model", "--revision", "v2", "--prompt", "a"]) == 2
    assert capsys.readouterr().err == f"error: revision 'v2' of model; {expected}\n"
    assert main(["finetune", "a.toml", "--out", "out", "--revision", "v2"]) == 2
    assert capsys.readouterr().err == f"error: revision 'v2' of no model; {expected}\n"


def test_only_complete_models_adapters_and_image_tokenizers_are_pushed(
    hub: Hub, folder: Path, model_parts: ModelComponents, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert main(["push", "model", "tiny"]) == 2
    assert capsys.readouterr().err == "error: tiny is no name on the Hub; expected user/name. Check it.\n"
    assert not (folder / "README.md").exists()
    (folder / "vq_decoder.safetensors").write_bytes(b"broken")
    assert main(["push", "model", NAME]) == 2
    assert main(["push", "nothing", NAME]) == 2
    assert "nothing holds no config.json" in capsys.readouterr().err
    assert not hub.repositories
    model_parts.tokenizers.image.save(Path("vq"))
    assert main(["push", "vq", "anna/vq"]) == 0
    Path("lora").mkdir()
    Path("lora/adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    assert main(["push", "lora", "anna/lora"]) == 0
    assert set(hub.repositories) == {"anna/vq", "anna/lora"}
