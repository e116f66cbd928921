"""Parameters of generation: one request, and the engine's configuration."""

from dataclasses import dataclass, field
from typing import Literal

from calumma.checkpoints.sampling_params import MAX_SCALE as MAX_SCALE
from calumma.checkpoints.sampling_params import ImageSampling as ImageSampling
from calumma.checkpoints.sampling_params import SamplingOptions as SamplingOptions
from calumma.checkpoints.sampling_params import SamplingParams as SamplingParams
from calumma.checkpoints.sampling_params import TextSampling as TextSampling
from calumma.errors import GenerationError

Modality = Literal["any", "text", "image"]
ImageDecoding = Literal["raster", "diagonal"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt in token ids and how to generate after it."""

    prompt_token_ids: tuple[int, ...]
    max_new_tokens: int = 256
    seed: int = 0
    text: TextSampling = field(default_factory=TextSampling)
    image: ImageSampling = field(default_factory=ImageSampling)

    modality: Modality = "any"
    """What may be generated: text and images, text alone, or images alone."""

    max_images: int = 8
    """Images that may be generated; 0 is text only."""

    image_first: bool = False
    """Whether the output must begin with an image."""

    max_leading_text_tokens: int = 0
    """Text tokens that may precede the first image of `modality = "image"`; then the image begins."""

    stop: tuple[str, ...] = ()
    """Stop strings: the first one that occurs in the text ends generation and is cut off."""

    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end generation as end-of-sequence does; their text is left out."""

    min_tokens: int = 0
    """Tokens to generate before end-of-sequence, stop tokens or stop strings may end the output."""

    ignore_eos: bool = False
    """Whether end-of-sequence is never sampled, so that only limits and stops end the output."""

    known_codes: tuple[int | None, ...] = ()
    """Codes of the first image of the output, row by row, None where one is sampled; empty if all
    are sampled."""

    image_grid: tuple[int, int] | None = None
    """Rows and columns of generated images in a vocabulary with image sizes; None is the size that
    the model chooses."""

    image_decoding: ImageDecoding = "raster"
    """Order in which the codes of an image are generated: one by one, or, with a model's downward
    head, all of a diagonal at once. Images with known codes, open ones and those of several sizes
    are generated one by one in any case."""

    adapter: str = ""
    """Name of the adapter to use; empty for the model itself."""

    num_logprobs: int = 0
    """Most likely allowed tokens whose log probabilities are returned with each output token."""

    def __post_init__(self) -> None:
        if self.modality not in ("any", "text", "image"):
            raise GenerationError(f"modality={self.modality!r} is not known; expected any, text or image.")
        if self.modality == "image" and self.max_images < 1:
            raise GenerationError(
                f"modality='image' with max_images={self.max_images} leaves nothing to generate; "
                "expected at least one image."
            )
        if self.image_decoding not in ("raster", "diagonal"):
            raise GenerationError(f"image_decoding={self.image_decoding!r} is not known; expected raster or diagonal.")
        if not -(2**63) <= self.seed < 2**63:
            raise GenerationError(
                f"seed={self.seed} is too long a number; expected one of 64 bits, its sign included."
            )
        if self.max_new_tokens < 0 or self.max_images < 0:
            raise GenerationError(
                f"max_new_tokens={self.max_new_tokens} and max_images={self.max_images}; expected at least 0 of both."
            )
        if self.min_tokens > self.max_new_tokens or min(self.min_tokens, self.num_logprobs) < 0:
            raise GenerationError(
                f"min_tokens={self.min_tokens} and num_logprobs={self.num_logprobs}; expected at "
                f"least 0 of both, and min_tokens at most max_new_tokens={self.max_new_tokens}."
            )
        if self.modality == "image" and (self.min_tokens or self.ignore_eos):
            raise GenerationError(
                "min_tokens and ignore_eos prolong text, but modality='image' generates none; "
                "expected another modality. Leave them out."
            )
        if self.max_leading_text_tokens < 0 or (self.max_leading_text_tokens and self.modality != "image"):
            raise GenerationError(
                f"max_leading_text_tokens={self.max_leading_text_tokens} with modality={self.modality!r}; expected 0, "
                "or more with modality='image'."
            )
        if isinstance(self.stop, str) or not all(self.stop):
            raise GenerationError(f"stop={self.stop!r}; expected a tuple of stop strings, none of them empty.")


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Capacity and scheduling of an engine."""

    max_cached_tokens: int | None = None
    """Capacity of the KV cache in tokens, over all sequences; None is what fits into a GPU's free
    memory, and 16,384 on a CPU. A request waits until the most it can ever need, guidance included,
    is free."""

    gpu_memory_utilization: float = 0.9
    """Fraction of a GPU's memory that weights and KV cache fill, unless `max_cached_tokens` is
    given; the rest is for activations and CUDA graphs."""

    max_num_seqs: int = 64
    """Sequences in the batch; a request with a guided image counts up to three."""

    prefill_chunk_size: int = 512
    """Prompt tokens computed per step (chunked prefill), so that other requests go on decoding."""

    enable_prefix_caching: bool = True
    """Whether the KV cache of finished requests (at most `max_num_seqs`) is kept until its slots
    are needed, for prompts that begin with the same tokens, such as the next turn of a chat."""

    cuda_graphs: bool | None = None
    """Whether decode steps are captured as CUDA graphs and replayed. None is only on a GPU that
    has a flash attention kernel for the dtype: from NVIDIA Ampere on, in 16 bits."""

    compile: bool | None = None
    """Whether `Model` compiles the decoder's blocks, which takes a minute or more in the first
    steps. None is only on a GPU."""

    async_scheduling: bool | None = None
    """Whether a step is launched before the tokens of the previous one are on the host: tokens
    arrive a step later, and the device does not wait for the host. None is only on a GPU."""

    def __post_init__(self) -> None:
        if not 0 < self.gpu_memory_utilization <= 1:
            raise GenerationError(
                f"gpu_memory_utilization={self.gpu_memory_utilization}; expected above 0 and at most 1."
            )
        capacity = 1 if self.max_cached_tokens is None else self.max_cached_tokens
        if min(capacity, self.max_num_seqs, self.prefill_chunk_size) < 1:
            raise GenerationError(
                f"max_cached_tokens={self.max_cached_tokens}, max_num_seqs={self.max_num_seqs} and "
                f"prefill_chunk_size={self.prefill_chunk_size}; expected at least 1 of each."
            )

    @property
    def capacity(self) -> int:
        """Capacity of the KV cache in tokens, once it is decided."""
        assert self.max_cached_tokens is not None, "the configuration is not resolved"
        return self.max_cached_tokens


@dataclass(frozen=True, kw_only=True)
class EngineStats:
    """Load of an engine."""

    num_running: int
    """Requests in the batch."""

    num_waiting: int
    """Requests that wait for capacity."""

    num_sequences: int
    """Sequences reserved by running requests, the guidance of images to come included."""

    num_reserved_tokens: int
    """KV-cache slots reserved by running requests."""

    max_cached_tokens: int
    """Capacity of the KV cache in tokens."""
