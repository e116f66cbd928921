"""Models on the Hub, against a local server with its API."""

import os
import subprocess
import sys
import time
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch

import calumma
from calumma.checkpoints.model_folder import ModelComponents, open_model_folder, save_model
from calumma.checkpoints.peft_folder import read_adapter, write_adapter
from calumma.errors import CheckpointError, ConfigError, OutputError
from calumma.hub import (
    HUB_FILES,
    display_name,
    find_model_folder,
    is_model_folder,
    push_folder,
    shipped_model_folder,
    split_hub_name,
    with_revision,
)
from calumma.model.lora import Adapter, LoRAMatrices
from calumma.tokens.image import ImageTokenizer
from tests.hub_server import TOKEN, Hub

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # in huggingface_hub's uploads

NAME = "anna/tiny"
PRIVATE = (
    "anna/tiny is no folder here, and the Hub has no such model, or it is private; expected a folder or the name of "
    "a model. Check the name, or log in with `hf auth login`."
)
UNREACHABLE = (
    "anna/tiny is no folder here, nor complete in the Hub's cache, and the Hub cannot be reached; expected one of the "
    "three. Check the name, or the connection."
)


@pytest.fixture(scope="module")
def folder(model_parts: ModelComponents, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "model"
    save_model(folder, model_parts)
    return folder


def logits_of(model: calumma.Model) -> torch.Tensor:
    return model.logits(list(range(3, 20)))


def test_paths_and_names_are_distinct(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert split_hub_name("user/name@refs/pr/3") == ("user/name", "refs/pr/3")
    paths = ("name", "out/demo/model", "/tmp/model", "../model/x", "./a/b/c", "~/model", "out/a.jsonl", "runs/a.toml")
    assert [split_hub_name(path) for path in paths] == [None] * 8
    assert [find_model_folder(path) for path in paths] == [Path(path) for path in paths]
    assert find_model_folder("still-life") == shipped_model_folder()
    assert with_revision("user/name", "v1") == Path("user/name@v1")
    assert with_revision("out/demo/model", None) == Path("out/demo/model")
    assert (display_name("user/name@v1"), display_name(tmp_path / "a"), display_name("still-life")) == (
        "name",
        "a",
        "still-life",
    )
    (tmp_path / "user" / "name").mkdir(parents=True)
    assert find_model_folder("user/name") == Path("user/name")
    with pytest.raises(ConfigError) as error:
        with_revision("user/name", "v1")
    assert str(error.value) == (
        "revision 'v1' of user/name; expected a revision with a name on the Hub, user/name. Leave it out."
    )


def test_a_model_is_loaded_by_name_without_pickles_and_cached(hub: Hub, folder: Path) -> None:
    (folder / "training_args.bin").write_bytes(b"a pickle")
    (folder / "run.py").write_text("raise SystemExit")
    hub.add_folder(NAME, folder)
    expected = logits_of(calumma.load(folder, device="cpu"))
    assert torch.equal(logits_of(calumma.load(NAME, device="cpu")), expected)
    downloaded = {name for name, _ in hub.downloads}
    assert {"model.safetensors", "config.json", "chat_template.jinja"} <= downloaded
    assert not downloaded & {"training_args.bin", "run.py"}
    number = len(hub.downloads)
    assert torch.equal(logits_of(calumma.load(NAME, device="cpu")), expected)
    assert len(hub.downloads) == number


def test_a_revision_is_a_branch_or_a_commit(hub: Hub, folder: Path, tmp_path: Path) -> None:
    repository = hub.add_folder(NAME, folder)
    first = repository.revisions["main"]
    for name in ("main", "v2"):
        repository.commit({"config.json": b"{}"}, name)
    assert open_model_folder(f"{NAME}@{first}").num_parameters == open_model_folder(folder).num_parameters
    with pytest.raises(CheckpointError, match="has model_type None"):
        calumma.load(NAME, revision="v2")
    assert is_model_folder(f"{NAME}@v2")
    assert not is_model_folder(f"{NAME}@v3")
    with pytest.raises(CheckpointError) as error:
        calumma.load(NAME, revision="v3")
    assert str(error.value) == (
        "anna/tiny has no revision 'v3' on the Hub; expected a branch, a tag or a commit. Check it."
    )


def test_offline_the_cache_is_read(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add_folder(NAME, folder)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError) as error:
        find_model_folder(NAME)
    assert str(error.value) == UNREACHABLE
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    found = find_model_folder(NAME)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert find_model_folder(NAME) == found
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert find_model_folder(NAME) == found
    assert open_model_folder(found).layout == open_model_folder(folder).layout


def test_a_broken_download_continues_where_it_stopped(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 4096)
    hub.add_folder(NAME, folder)
    hub.cut["model.safetensors"] = 10_000
    weights = find_model_folder(NAME) / "model.safetensors"
    assert weights.read_bytes() == (folder / "model.safetensors").read_bytes()
    assert [span for name, span in hub.downloads if name == weights.name] == [None, "bytes=8192-"]


def test_a_failed_download_is_one_line_and_the_next_one_continues(hub: Hub, folder: Path) -> None:
    hub.add_folder(NAME, folder)
    hub.fail.add("model.safetensors")
    with pytest.raises(CheckpointError) as error:
        calumma.load(NAME)
    assert str(error.value).startswith("anna/tiny cannot be downloaded from the Hub (")
    assert str(error.value).endswith(
        "); expected all of its files. Run the command again, which continues with the missing ones."
    )
    assert "\n" not in str(error.value)
    done = {name for name, _ in hub.downloads} - hub.fail
    hub.fail.clear()
    hub.downloads.clear()
    assert find_model_folder(NAME).is_dir()
    assert not done & {name for name, _ in hub.downloads}


def test_unknown_private_and_gated_names_are_one_line(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (NAME, "anna/ti--ny"):
        with pytest.raises(CheckpointError) as error:
            calumma.load(name)
        assert str(error.value) == PRIVATE.replace(NAME, name)
    repository = hub.add_folder(NAME, folder, is_private=True)
    with pytest.raises(CheckpointError) as error:
        calumma.load(NAME)
    assert str(error.value) == PRIVATE
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert is_model_folder(NAME)
    repository.is_gated = True
    with pytest.raises(CheckpointError) as error:
        calumma.load("anna/tiny@other")
    assert str(error.value) == (
        "anna/tiny is gated on the Hub; expected an account that may read it. Accept the conditions on its page, then "
        "log in with `hf auth login`."
    )


def test_a_pushed_folder_loads_with_equal_logits(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    (folder / "README.md").write_text("# Tiny\n")
    url = push_folder(folder, NAME, private=True, message="the first")
    repository = hub.repositories[NAME]
    assert url == f"{hub.url}/{NAME}/commit/{repository.revisions['main']}"
    assert repository.is_private
    assert repository.messages[-1] == "the first"
    files = repository.files("main") or {}
    assert files["README.md"] == b"# Tiny\n"
    assert "model.safetensors" in hub.repositories[NAME].commits[repository.revisions["main"]]
    assert torch.equal(logits_of(calumma.load(NAME, device="cpu")), logits_of(calumma.load(folder, device="cpu")))


def test_a_push_replaces_an_older_model_on_its_branch(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    old = {"model-00001-of-00002.safetensors": b"old", "vq_decoder.safetensors": b"old", "notes.md": b"kept"}
    hub.add_folder(NAME, folder).commit(old, "v2")
    push_folder(folder, NAME, revision="v2")
    files = hub.repositories[NAME].files("v2") or {}
    assert "model-00001-of-00002.safetensors" not in files
    assert files["notes.md"] == b"kept"
    assert files["vq_decoder.safetensors"] == (folder / "vq_decoder.safetensors").read_bytes()
    push_folder(folder, NAME, revision="v3")
    assert set(hub.repositories[NAME].revisions) == {"main", "v2", "v3"}


def test_a_push_that_is_refused_is_one_line(hub: Hub, folder: Path) -> None:
    for name in ("tiny", "anna/tiny@v1", "anna/ti--ny"):
        with pytest.raises(ConfigError) as error:
            push_folder(folder, name)
        assert str(error.value) == f"{name} is no name on the Hub; expected user/name. Check it."
    with pytest.raises(OutputError) as refused:
        push_folder(folder, NAME)
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith("anna/tiny cannot be written on the Hub (")
    assert str(refused.value).endswith(
        "); expected an account that may write it. Log in with `hf auth login`, or check the connection."
    )


def test_adapters_and_image_tokenizers_have_names_too(hub: Hub, model_parts: ModelComponents, tmp_path: Path) -> None:
    config = model_parts.decoder.config
    matrices = LoRAMatrices(torch.randn(2, config.model_dim), torch.randn(config.model_dim, 2), 0.5)
    write_adapter(
        tmp_path / "lora",
        Adapter(matrices={"blocks.0.attention.output": matrices}, tables={}),
        config,
        Path("anna/tiny@v1"),
    )
    hub.add_folder("anna/lora", tmp_path / "lora")
    assert torch.equal(read_adapter("anna/lora", config).matrices["blocks.0.attention.output"].lora_A, matrices.lora_A)
    model_parts.tokenizers.image.save(tmp_path / "vq")
    hub.add_folder("anna/vq", tmp_path / "vq")
    assert ImageTokenizer.load(Path("anna/vq")).fingerprint == model_parts.tokenizers.image.fingerprint


def test_the_environment_of_huggingface_hub_is_honored(hub: Hub, folder: Path, tmp_path: Path) -> None:
    hub.add_folder(NAME, folder)
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    program = f"from calumma.hub import find_model_folder; print(find_model_folder({NAME!r}))"
    for extra in ({}, {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}):
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment | extra, check=True, capture_output=True, text=True
        )
        assert done.stdout.startswith(str(tmp_path / "home" / "hub" / "models--anna--tiny" / "snapshots"))
    assert all(not pattern.endswith((".py", ".bin", ".pt", "*")) for pattern in HUB_FILES)
