"""Interface between the request handler and whatever generates tokens, and its factory."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from calumma.generate.async_engine import AsyncEngine, RequestOutputStream
from calumma.generate.model import Model, load
from calumma.generate.params import EngineConfig, EngineStats, Request
from calumma.generate.tensor_parallel.tp_engine import TensorParallelAsyncEngine
from calumma.hub import find_model_folder
from calumma.model.quantization import Quantization
from calumma.runtime import dtype_name, resolve_device

BackendName = Literal["calumma", "vllm"]


class GenerationBackend(Protocol):
    """Generates tokens: `AsyncEngine` in this process, or vLLM (`AsyncLLMBackend`, `VLLMBackend`)."""

    @property
    def model(self) -> Model:
        """Model whose tokenizers encode prompts and decode outputs."""

    @property
    def stats(self) -> EngineStats:
        """Load of the backend."""

    @property
    def error(self) -> BaseException | None:
        """Error that stopped the backend, if any."""

    def submit(self, request: Request, partial_image_interval: int | None = None) -> RequestOutputStream:
        """Start a request and return its output.

        Args:
            request: token ids of the prompt, and sampling parameters.
            partial_image_interval: codes from one partial image to the next; 0 is none, None one
                row of the image's grid.

        Raises:
            CalummaError: the request can never be processed, or the backend is closed.
        """

    def close(self, *, finish: bool = True) -> None:
        """Accept no more requests, finish or abort the running ones, and join all threads."""


@dataclass(frozen=True, kw_only=True)
class BackendConfig:
    """A model, and the way it is run."""

    model: Path
    """Model folder."""

    device: str = "auto"
    dtype: str = "auto"
    quantization: Quantization | None = None
    engine: EngineConfig = field(default_factory=EngineConfig)

    adapters: Mapping[str, Path] = field(default_factory=dict)
    """Adapter folders by the model names that select them."""

    tensor_parallel_size: int = 1
    """Number of processes that share the decoder."""

    name: BackendName = "calumma"
    """What generates the tokens: this package's engine, or vLLM."""

    vllm_urls: tuple[str, ...] = ()
    """vLLM servers; by default vLLM is started as a child process."""


def build_backend(config: BackendConfig, served_model_name: str) -> GenerationBackend:
    """Load the model and start the backend.

    Args:
        config: the model and the way it is run.
        served_model_name: name of the model on the vLLM servers.

    Raises:
        CalummaError: the model folder or the configuration is invalid.
    """
    folder = find_model_folder(config.model).resolve()
    if config.name == "vllm" or config.vllm_urls:
        return _build_vllm_backend(config, folder, served_model_name)
    if config.tensor_parallel_size > 1:
        return TensorParallelAsyncEngine(
            folder,
            config.tensor_parallel_size,
            device=config.device,
            dtype=dtype_name(config.dtype, resolve_device(config.device)),
            config=config.engine,
        )
    model = load(
        folder,
        device=config.device,
        dtype=config.dtype,
        quantization=config.quantization,
        engine_config=config.engine,
        adapters=config.adapters,
    )
    return AsyncEngine(model)


def _build_vllm_backend(config: BackendConfig, folder: Path, served_model_name: str) -> GenerationBackend:
    from calumma.serve.vllm.async_llm import AsyncLLMBackend, engine_arguments
    from calumma.serve.vllm.frontend_model import FrontendModel
    from calumma.serve.vllm.gateway import VLLMBackend
    from calumma.serve.vllm.plugin import require_vllm

    if not config.vllm_urls:
        require_vllm()
    model = FrontendModel(folder, device=config.device)
    if config.vllm_urls:
        return VLLMBackend(model, config.vllm_urls, served_model_name)
    arguments = engine_arguments(
        folder,
        config.engine,
        device=resolve_device(config.device),
        max_seq_len=model.decoder.config.max_seq_len,
        dtype=config.dtype,
        quantization=config.quantization,
        tensor_parallel_size=config.tensor_parallel_size,
    )
    return AsyncLLMBackend(model, arguments)
