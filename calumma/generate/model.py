"""Model: the public Python interface, from texts and images to texts and images."""

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from torch import Tensor

from calumma.checkpoints.model_folder import ModelComponents, load_model, open_model_folder
from calumma.checkpoints.peft_folder import read_adapter
from calumma.documents.document import Turn
from calumma.errors import GenerationError
from calumma.generate.best_of import Reward, best_samples, prompt_text
from calumma.generate.editing import edit_request, open_last_image
from calumma.generate.engine import Engine, compile_blocks
from calumma.generate.engine_defaults import resolve_engine_config
from calumma.generate.events import End, Event, Sample, TokenUsage
from calumma.generate.grammar import image_grid_of
from calumma.generate.loglikelihood import SequenceLogprobs, score_sequences
from calumma.generate.output_decoder import OutputDecoder
from calumma.generate.params import EngineConfig, Request
from calumma.generate.request import RequestState
from calumma.generate.user_parts import UserPart, open_user_part, role_and_parts
from calumma.hub import with_revision
from calumma.model.bfloat16_products import prefers_bfloat16_products, use_bfloat16_products
from calumma.model.lora import AdapterBatch, select_adapter
from calumma.model.quantization import Quantization, is_int4, quantize
from calumma.runtime import dtype_name, resolve_device, resolve_dtype
from calumma.tokens.image_preprocessing import ResizeMode
from calumma.tokens.sequence import Segment, encode_prompt, encode_turns, image_resize_mode, split_modalities
from calumma.vocabulary import Vocabulary

_LOGGER = logging.getLogger(__name__)


class Model:
    """A decoder with both its tokenizers."""

    def __init__(
        self,
        components: ModelComponents,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        quantization: Quantization | None = None,
        engine_config: EngineConfig = EngineConfig(),  # noqa: B008  (frozen)
        adapters: Mapping[str, str | Path] | None = None,
    ) -> None:
        """Take over the components, in place; the other arguments are those of `load`."""
        self.components = components
        where = resolve_device(device)
        if dtype == "auto" and prefers_bfloat16_products(where, components.decoder.config):
            dtype = "bfloat16"
        # All of an int4 model is bfloat16, to save memory; fp8 is quantized from bfloat16.
        is_small = dtype == "bfloat16" and (quantization in ("int4", "fp8") or is_int4(components.decoder))
        self._dtype = resolve_dtype(dtype_name(dtype, where))
        has_products_only = self._dtype == torch.bfloat16 and where.type == "cpu" and not is_small
        self.decoder = components.decoder.to(device=where, dtype=torch.float32 if has_products_only else self._dtype)
        self.decoder.eval().requires_grad_(False)
        self._num_parameters = self.decoder.num_parameters
        quantize(self.decoder, quantization)
        if has_products_only:
            use_bfloat16_products(self.decoder.blocks)
        read = {name: read_adapter(folder, self.decoder.config) for name, folder in (adapters or {}).items()}
        self.adapters = AdapterBatch(self.decoder, read) if read else None
        """Adapters that requests may name; None if none is loaded."""

        self.text, self.image = components.tokenizers.text, components.tokenizers.image
        # Codes are compared as distances: the image tokenizer stays in float32.
        self.image.network.to(where)
        self.engine_config = engine_config
        self._is_compiled = self._has_warned = False
        self.default_text_sampling, self.default_image_sampling = components.sampling.text, components.sampling.image
        """Sampling parameters of requests that give none, from `generation_config.json`."""

    def __repr__(self) -> str:
        weight = self.decoder.embedding.weight
        return (
            f"Model({self._num_parameters:,} parameters, vocabulary of {self.vocabulary.size:,} "
            f"tokens, {self.image.config.codes_per_image} codes per image, {weight.device}, "
            f"{str(self._dtype).removeprefix('torch.')})"
        )

    @cached_property
    def engine(self) -> Engine:
        """Engine of `generate`, `generate_batch` and `stream`, created on first use."""
        return self.new_engine(self.engine_config)

    def new_engine(self, config: EngineConfig) -> Engine:
        """Create another engine on the same weights, with a KV cache of its own."""
        config = resolve_engine_config(config, self.decoder, has_adapters=self.adapters is not None)
        if config.compile:
            self.compile()
        codes = self.image.config.codes_per_image
        return Engine(self.decoder, self.vocabulary, codes, config=config, adapters=self.adapters)

    def compile(self) -> None:
        """Compile the decoder's blocks, which takes a minute or more in the first steps."""
        if not self._is_compiled:
            compile_blocks(self.decoder)
            self._is_compiled = True

    @property
    def vocabulary(self) -> Vocabulary:
        """Layout of the token ids."""
        return self.text.vocabulary

    def encode(self, parts: Sequence[UserPart], *, resize_mode: ResizeMode = "crop") -> list[int]:
        """Encode parts in reading order as token ids after begin-of-sequence.

        Args:
            parts: texts, images, or the dicts of documents, in any order.
            resize_mode: whether images are cropped to a square, or padded as in prompts.
        """
        [segments] = self._segments([(parts, resize_mode)])
        return encode_prompt(segments, self.text, add_generation_prompt=False)

    def encode_chat(self, messages: Sequence[Turn | Mapping[str, Any]]) -> list[int]:
        """Encode a conversation as the prompt of its next answer.

        Images of the user and the system are padded to squares, images of the assistant cropped,
        as in the shards that fine-tuning reads. An assistant message that comes last is continued.

        Args:
            messages: turns of documents, or `{"role": ..., "content": ...}` whose content is a
                text or a sequence of parts as in `encode`.

        Raises:
            DocumentError: a role is unknown, or an assistant message has no prompt.
        """
        turns = [role_and_parts(message, n) for n, message in enumerate(messages, start=1)]
        contents = self._segments([(parts, image_resize_mode(role)) for role, parts in turns])
        return encode_turns(zip([role for role, _ in turns], contents, strict=True), self.text)

    def _segments(self, contents: Sequence[tuple[Sequence[UserPart], ResizeMode]]) -> list[list[Segment]]:
        """Encode the images of several contents, each with its own resize mode, in one batch."""
        opened = [[open_user_part(part) for part in parts] for parts, _ in contents]
        images: list[PIL.Image.Image] = []
        modes: list[ResizeMode] = []
        for parts, (_, mode) in zip(opened, contents, strict=True):
            images += [part for part in parts if isinstance(part, PIL.Image.Image)]
            modes += [mode] * (len(images) - len(modes))
        codes = iter(self.image.encode_in_layout(images, modes, self.vocabulary.image_sizes))
        return [[next(codes) if isinstance(p, PIL.Image.Image) else p for p in parts] for parts in opened]

    def decode(self, ids: Sequence[int]) -> list[str | PIL.Image.Image]:
        """Decode token ids to texts and images in reading order; special tokens are dropped."""
        return [
            self.text.decode(run) if kind == "text" else self.decode_image(run)
            for kind, run in split_modalities(ids, self.vocabulary)
            if run
        ]

    def encode_image(self, image: PIL.Image.Image, *, resize_mode: ResizeMode = "crop") -> list[int]:
        """Encode an image as codes, row by row; codes are not token ids."""
        return self.image.encode_image(image, resize_mode=resize_mode)

    def decode_image(self, codes: Sequence[int]) -> PIL.Image.Image:
        """Decode the codes of an image.

        Raises:
            GenerationError: the model folder has no image decoder.
        """
        if not self.components.tokenizers.has_image_decoder:
            raise GenerationError(
                "this model folder has no vq_decoder.safetensors, so codes cannot become images; expected the decoder "
                "of its image tokenizer. Put that file into the folder, or ask for text only (max_images=0)."
            )
        return self.image.decode_image(codes)

    def _warn_without_image_decoder(self) -> None:
        """Log once that generated images stay codes."""
        if not self.components.tokenizers.has_image_decoder and not self._has_warned:
            self._has_warned = True
            _LOGGER.warning(
                "this model folder has no vq_decoder.safetensors: a generated image is a part that holds its codes. "
                "Put that file into the folder, or ask for text only."
            )

    @torch.inference_mode()
    def logits(self, ids: Sequence[int] | Sequence[Sequence[int]] | Tensor, *, adapter: str = "") -> Tensor:
        """Compute the logits of the next token at every position, nothing masked.

        Args:
            ids: [T] or [B, T] token ids.
            adapter: name of the adapter to use; empty for the model itself.

        Returns:
            [B, T, V] float32.
        """
        select_adapter(adapter, self.adapters)
        device = self.decoder.embedding.weight.device
        tensor = torch.as_tensor(ids, dtype=torch.int64, device=device)
        return self.decoder(torch.atleast_2d(tensor)).float()

    def prompt_logprobs(
        self, prompts: Sequence[Sequence[int]], num_top: int = 0, adapter: str = ""
    ) -> list[SequenceLogprobs]:
        """Score the tokens of prompts, among all but image codes, with the `num_top` best at each position."""
        select_adapter(adapter, self.adapters)
        return score_sequences(self.decoder, prompts, excluded=self.vocabulary.codes, num_top=num_top)

    def generate(
        self, parts: Sequence[UserPart], *, best_of: int = 1, reward: Reward = "likelihood", **options: Any
    ) -> Sample:
        """Generate the answer to a prompt, the best of `best_of` by a reward; options as in `generate_batch`."""
        return best_samples(self, self.request(parts, **options), prompt_text(parts), 1, best_of, reward)[0]

    def generate_batch(
        self, prompts: Sequence[Sequence[UserPart]], *, seeds: Sequence[int] | None = None, **options: Any
    ) -> list[Sample]:
        """Generate the answers to many prompts at once.

        Args:
            prompts: parts of each prompt.
            seeds: one per prompt; without them all have the seed of `options`.
            options: arguments of `request`, and fields of `Request`, for all: max_new_tokens, seed,
                text, image, modality, max_images, image_first, stop, stop_token_ids, min_tokens,
                ignore_eos, adapter, num_logprobs.

        Raises:
            GenerationError: a prompt does not fit, or images are asked of a model without an
                image decoder.
        """
        seeded = [{} if seeds is None else {"seed": seed} for seed in seeds or prompts]
        return self.generate_requests(
            [self.request(p, **options | seed) for p, seed in zip(prompts, seeded, strict=True)]
        )

    def generate_requests(
        self,
        requests: Sequence[Request],
        on_token: Callable[[RequestState, int], None] | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[Sample]:
        """Run requests until all are finished, as `Engine.generate`.

        `on_progress` is called with the numbers of finished and of all requests when one finishes.
        """
        decoders: dict[RequestState, OutputDecoder] = {}
        numbers = itertools.count(1)

        def push(state: RequestState, id_: int) -> None:
            if state.request.stop:
                if state not in decoders:
                    decoders[state] = self.output_decoder(state.request)
                decoders[state].push(id_)
                if decoders[state].is_stopped:
                    self.engine.abort(state, "stop")
            if on_token is not None:
                on_token(state, id_)

        def finished(_: RequestState) -> None:
            if on_progress is not None:
                on_progress(next(numbers), len(requests))

        states = self.engine.generate(requests, push, finished)
        return [self.sample_of(state, decoders.get(state)) for state in states]

    def stream(
        self, parts: Sequence[UserPart], *, partial_image_interval: int | None = None, **options: Any
    ) -> Iterator[Event]:
        """Generate the answer to a prompt and yield it as it grows.

        Args:
            parts: the prompt.
            partial_image_interval: codes from one partial image to the next; 0 is none, None one
                row of the image's grid.
            options: as in `generate_batch`.
        """
        request = self.request(parts, **options)
        decoder = self.output_decoder(request, partial_image_interval)
        state = self.engine.submit(request)
        for _, id_ in self.engine.stream_tokens([state]):
            yield from decoder.push(id_)
            if decoder.is_stopped:
                self.engine.abort(state, "stop")
        yield from decoder.flush()
        yield End(self.sample_of(state, decoder))

    def request(
        self,
        parts: Sequence[UserPart],
        *,
        add_generation_prompt: bool = True,
        keep_image_tokens: int | None = None,
        size: str = "auto",
        **options: Any,
    ) -> Request:
        """Encode a prompt as a request.

        Args:
            parts: the prompt.
            add_generation_prompt: append end-of-turn, after which the model answers; False
                continues the prompt.
            keep_image_tokens: the prompt ends in an image, of which this many codes are kept
                and the others generated.
            size: of generated images, as in `image_grid_of`.
            options: as in `generate_batch`; so are the errors.
        """
        if options.get("max_images", 1) and options.get("modality") != "text":
            self._warn_without_image_decoder()
        if keep_image_tokens is not None:
            ids = open_last_image(self.encode(parts), keep_image_tokens, self.vocabulary)
        elif add_generation_prompt:
            ids = self.encode_chat([{"role": "user", "content": parts}])
        else:
            ids = self.encode(parts)
        grid = image_grid_of(size, self.vocabulary, self.image.config)
        sampling = {"text": self.default_text_sampling, "image": self.default_image_sampling}
        return Request(prompt_token_ids=tuple(ids), image_grid=grid, **sampling | options)

    def edit(self, image: PIL.Image.Image, prompt: str, /, **options: Any) -> Sample:
        """Generate an edited image, by instruction or inside a mask; arguments as `edit_request`."""
        return self.generate_requests([edit_request(self, image, prompt, **options)])[0]

    def output_decoder(self, request: Request, partial_image_interval: int | None = 0) -> OutputDecoder:
        """Create the decoder of a request's output; the interval is as in `stream`."""
        interval, sizes = partial_image_interval, self.vocabulary.image_sizes
        return OutputDecoder(
            self.text,
            self.decode_image if self.components.tokenizers.has_image_decoder else None,
            request,
            self.image.config.codes_per_side if interval is None and sizes is None else interval,
        )

    def sample_of(self, state: RequestState, decoder: OutputDecoder | None = None) -> Sample:
        """Build the sample of a finished request; the decoder may have decoded some of it."""
        decoder = decoder or self.output_decoder(state.request)
        decoder.partial_image_interval = 0
        for id_ in state.output_token_ids[decoder.num_tokens :]:
            decoder.push(id_)
        parts = decoder.finish()
        # An asynchronous engine may have generated more before a stop string was found.
        token_ids = state.output_token_ids[: decoder.num_tokens]
        assert state.finish_reason is not None, "the request is not finished"
        return Sample(
            parts=parts,
            prompt_token_ids=list(state.request.prompt_token_ids),
            token_ids=token_ids,
            logprobs=state.logprobs[: decoder.num_tokens],
            top_logprobs=state.top_logprobs[: decoder.num_tokens],
            finish_reason="stop" if decoder.is_stopped else state.finish_reason,
            usage=self.usage_of(state.request.prompt_token_ids, token_ids),
            timings={"time_to_first_token": state.time_to_first_token, "latency": state.latency},
        )

    def usage_of(self, prompt: Sequence[int], output: Sequence[int]) -> TokenUsage:
        """Count the tokens of a prompt and an output by modality."""
        return TokenUsage(*map(self.vocabulary.count_modalities, (prompt, output)))


def load(
    folder: str | Path,
    device: str = "auto",
    dtype: str = "auto",
    quantization: Quantization | None = None,
    engine_config: EngineConfig = EngineConfig(),  # noqa: B008  (frozen)
    *,
    revision: str | None = None,
    adapter: str | Path | None = None,
    adapters: Mapping[str, str | Path] | None = None,
) -> Model:
    """Load a model folder that calumma, transformers or a fine-tune of the family wrote.

    Args:
        folder: the model folder; or "still-life", the model in the package; or "user/name" of a
            model on the Hugging Face Hub.
        device: cpu, cuda, mps, or auto.
        dtype: of the decoder: float32, bfloat16, float16, or auto, which is bfloat16 on a GPU, and
            on a CPU that multiplies bfloat16 if the decoder is at least 512 wide; else float32. On
            a CPU bfloat16 is the dtype of the blocks' matrices, and all else is float32 unless
            the matrices are int4.
        quantization: "int8", "int4" or "fp8" quantize the matrices of the decoder's blocks.
        engine_config: of the engine of `generate`, `generate_batch` and `stream`.
        revision: branch, tag or commit of a model on the Hub.
        adapter: an adapter folder of `calumma finetune` or PEFT, or its name on the Hub, for all requests that name
            none of `adapters`. It is merged into the weights, or computed next to them if they are int4.
        adapters: adapter folders by the names that requests give as `adapter`.

    Raises:
        CheckpointError: the folder holds no such model, or an adapter belongs to another model.
    """
    name = with_revision(folder, revision)
    if adapter is not None and (quantization == "int4" or open_model_folder(name).int4_matrices):
        adapters, adapter = {**(adapters or {}), "": adapter}, None
    components = load_model(name, adapter)
    return Model(
        components,
        device=device,
        dtype=dtype,
        quantization=quantization,
        engine_config=engine_config,
        adapters=adapters,
    )
