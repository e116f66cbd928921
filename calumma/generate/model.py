"""A model as its users hold it: parts in, parts out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from torch import Tensor

from calumma.checkpoints.model_folder import ModelParts, load_model
from calumma.documents.document import ROLES, Image, Role, Text, Turn, part_from_json
from calumma.errors import DocumentError, GenerationError
from calumma.generate.compiled import compile_blocks
from calumma.generate.eight_bits import Weights, round_weights
from calumma.generate.engine import Engine
from calumma.generate.events import End, Event, Sample, TokenUsage
from calumma.generate.output_decoder import OutputDecoder
from calumma.generate.params import EngineConfig, Request
from calumma.generate.request import RequestState
from calumma.runtime import choose_device, choose_dtype
from calumma.tokens.image_preprocessing import ResizeMode, to_rgb, to_square
from calumma.tokens.sequence import encode_prompt, encode_turns, image_fit, split_ids
from calumma.vocabulary import Vocabulary

UserPart = str | PIL.Image.Image | dict[str, Any] | Text | Image
"""A text, a picture, or a part as documents write it."""


class Model:
    """A decoder with both its tokenizers."""

    def __init__(
        self,
        parts: ModelParts,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        weights: Weights = "plain",
        engine_config: EngineConfig = EngineConfig(),  # noqa: B008  (frozen)
    ) -> None:
        """Take a model's parts for good: the decoder moves, changes its type, learns no more.

        Args:
            parts: both tokenizers and the decoder.
            device: cpu, cuda, or auto.
            dtype: of the decoder: float32, bfloat16 or float16.
            weights: "int8" or "fp8" round the matrices of its blocks to eight bits.
            budget: of its engine.
        """
        self.components = parts
        self.decoder = parts.decoder.to(device=choose_device(device), dtype=choose_dtype(dtype))
        self.decoder.eval().requires_grad_(False)
        self._num_parameters = self.decoder.num_parameters
        round_weights(self.decoder, weights)
        self.text = parts.tokenizers.text
        self.image = parts.tokenizers.image
        # Codes are compared as distances: the image tokenizer stays in float32.
        self.image.network.to(choose_device(device))
        self.engine_config = engine_config

    def __repr__(self) -> str:
        weight = self.decoder.embedding.weight
        return (
            f"Model({self._num_parameters:,} parameters, vocabulary of {self.vocabulary.size:,} "
            f"ids, {self.image.config.codes_per_image} codes an image, {weight.device}, "
            f"{str(weight.dtype).removeprefix('torch.')})"
        )

    @cached_property
    def engine(self) -> Engine:
        """What `generate`, `generate_batch` and `stream` run on; made when first used."""
        return self.new_engine(self.engine_config)

    def new_engine(self, config: EngineConfig) -> Engine:
        """Another engine on the same weights, with a cache of its own."""
        codes = self.image.config.codes_per_image
        return Engine(self.decoder, self.vocabulary, codes, config=config)

    def compile(self) -> None:
        """Have the decoder's blocks compiled, once, when the first step is made of them.

        That takes a minute or more; `calumma/generate/compiled.py` says what comes of it.
        """
        compile_blocks(self.decoder)

    @property
    def vocabulary(self) -> Vocabulary:
        """The table of ids."""
        return self.text.vocabulary

    def encode(self, parts: Sequence[UserPart], *, fit: ResizeMode = "crop") -> list[int]:
        """The ids of parts in reading order, behind begin-of-sequence.

        Args:
            parts: texts, pictures, or the dicts of documents, in any order.
            fit: whether pictures are cropped to a square, or padded as in prompts.
        """
        return self._prompt(parts, fit=fit, answer=False)

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
        turns = [_role_and_parts(message, n) for n, message in enumerate(messages, start=1)]
        contents = self._segments([(parts, image_fit(role)) for role, parts in turns])
        roles = [role for role, _ in turns]
        return encode_turns(zip(roles, contents, strict=True), self.text)

    def _prompt(self, parts: Sequence[UserPart], *, fit: ResizeMode, answer: bool) -> list[int]:
        [segments] = self._segments([(parts, fit)])
        return encode_prompt(segments, self.text, add_generation_prompt=answer)

    def _segments(
        self, contents: Sequence[tuple[Sequence[UserPart], ResizeMode]]
    ) -> list[list[str | list[int]]]:
        """Encode the images of several contents, each with its own fit, in one batch."""
        opened = [[_open(part) for part in parts] for parts, _ in contents]
        squares = [
            to_square(to_rgb(part), self.image.config.resolution, fit)
            for parts, (_, fit) in zip(opened, contents, strict=True)
            for part in parts
            if not isinstance(part, str)
        ]
        codes = iter(self.image.encode_images(squares))
        return [[p if isinstance(p, str) else next(codes) for p in parts] for parts in opened]

    def decode(
        self, ids: Sequence[int], *, pictures: Sequence[PIL.Image.Image] = ()
    ) -> list[str | PIL.Image.Image]:
        """The texts and pictures that ids stand for, in reading order.

        Args:
            ids: text, images, and controls, which are left out.
            pictures: of the first images, where they are made already.
        """
        made = iter(pictures)
        parts: list[str | PIL.Image.Image] = []
        for kind, run in split_ids(ids, self.vocabulary):
            if kind == "text":
                parts.append(self.text.decode(run))
            elif run:
                parts.append(next(made, None) or self.decode_image(run))
        return parts

    def encode_image(self, image: PIL.Image.Image, *, fit: ResizeMode = "crop") -> list[int]:
        """The codes of a picture, row by row; codes, not ids."""
        return self.image.encode_image(image, mode=fit)

    def decode_image(self, codes: Sequence[int]) -> PIL.Image.Image:
        """The picture of an image's codes.

        Raises:
            GenerationError: the model folder has no image decoder.
        """
        self._require_image_decoder()
        return self.image.decode_image(list(codes))

    def _require_image_decoder(self) -> None:
        if not self.components.tokenizers.has_image_decoder:
            raise GenerationError(
                "this model folder has no vq_decoder.safetensors, so codes cannot become "
                "pictures; expected the decoder of its image tokenizer. Put that file into the "
                "folder, or ask for text only (max_images=0)."
            )

    @torch.inference_mode()
    def logits(self, ids: Sequence[int] | Sequence[Sequence[int]] | Tensor) -> Tensor:
        """Next-id scores at every place, nothing masked: [B, T] int64 -> [B, T, V] float32."""
        tensor = torch.as_tensor(
            ids, dtype=torch.int64, device=self.decoder.embedding.weight.device
        )
        return self.decoder(tensor.unsqueeze(0) if tensor.ndim == 1 else tensor).float()

    def generate(self, parts: Sequence[UserPart], **options: Any) -> Sample:
        """Go on from a prompt; options as in `generate_batch`."""
        return self.generate_batch([parts], **options)[0]

    def generate_batch(
        self,
        prompts: Sequence[Sequence[UserPart]],
        *,
        answer: bool = True,
        seeds: Sequence[int] | None = None,
        **options: Any,
    ) -> list[Sample]:
        """Go on from many prompts at once.

        Args:
            prompts: parts of each prompt.
            answer: ask for an answer (end of turn behind the prompt); False continues it.
            seeds: one a prompt; without them all have the seed of `options`.
            options: fields of `Request` for all: max_new_tokens, seed, text, image, modality,
                max_images, image_first; and `keep_codes`: the prompt's last part is a picture of
                which the first so many codes are kept, and the model goes on from there.

        Raises:
            GenerationError: a prompt does not fit, or pictures are expected of a model without an
                image decoder.
        """
        works = self.engine.submit_all(
            [
                self.request(prompt, answer=answer, **(options | _seed(seeds, number)))
                for number, prompt in enumerate(prompts)
            ]
        )
        for _ in self.engine.stream_tokens(works):
            pass
        return [self.sample_of(work) for work in works]

    def stream(
        self,
        parts: Sequence[UserPart],
        *,
        answer: bool = True,
        codes_between: int | None = None,
        **options: Any,
    ) -> Iterator[Event]:
        """Generate one answer and tell of it as it grows.

        Args:
            parts: the prompt.
            answer: as in `generate_batch`.
            codes_between: codes from one partial picture to the next; a grid row by default.
            options: as in `generate_batch`.
        """
        request = self.request(parts, answer=answer, **options)
        teller = self.output_decoder(request, codes_between)
        work = self.engine.submit(request)
        for _, id_ in self.engine.stream_tokens([work]):
            yield from teller.push(id_)
        yield from teller.flush()
        yield End(self.sample_of(work, teller.images))

    def request(
        self,
        parts: Sequence[UserPart],
        *,
        answer: bool = True,
        keep_codes: int | None = None,
        **options: Any,
    ) -> Request:
        """The request that a prompt is; arguments and errors as in `generate_batch`."""
        if options.get("max_images", 1) and options.get("modality") != "text":
            self._require_image_decoder()
        answer = answer and keep_codes is None
        ids = self._prompt(parts, fit="pad" if answer else "crop", answer=answer)
        if keep_codes is not None:
            ids = self._opened(ids, keep_codes)
        return Request(prompt_token_ids=tuple(ids), **options)

    def _opened(self, ids: list[int], keep_codes: int) -> list[int]:
        """The prompt with its last image left open behind so many codes."""
        codes = self.image.config.codes_per_image
        if ids[-1] != self.vocabulary.end_image or not 0 <= keep_codes <= codes:
            ends = "a picture" if ids[-1] == self.vocabulary.end_image else "text"
            raise GenerationError(
                f"keep_codes={keep_codes} of a prompt that ends in {ends}; expected a picture at "
                f"the end, and from 0 to {codes} of its codes."
            )
        return ids[: len(ids) - 1 - codes + keep_codes]

    def output_decoder(self, request: Request, codes_between: int | None = None) -> OutputDecoder:
        """What turns the new ids of a request into events."""
        vocabulary = self.vocabulary
        opened = request.prompt_token_ids[self._open_image(request.prompt_token_ids) :]
        return OutputDecoder(
            vocabulary,
            bytes_of=self.text.bytes_of,
            draw=self.decode_image,
            codes_between=codes_between or self.image.config.codes_per_side,
            codes=[vocabulary.code_of_id(id_) for id_ in opened[1:]],
        )

    def sample_of(self, work: RequestState, pictures: Sequence[PIL.Image.Image] = ()) -> Sample:
        """What a work has come to.

        Args:
            work: one that is done.
            pictures: its first finished images, where they are made already.
        """
        # A prompt may end inside an image: its codes belong to the picture that is finished here.
        prompt = list(work.request.prompt_token_ids)
        opened = prompt[self._open_image(prompt) :]
        return Sample(
            parts=self.decode([*opened, *work.output_token_ids], pictures=pictures),
            prompt_token_ids=prompt,
            token_ids=work.output_token_ids,
            logprobs=work.logprobs,
            finish_reason=work.finish_reason,
            usage=self._usage(prompt, work.output_token_ids),
            timings={"first_token": work.time_to_first_token, "total": work.latency},
        )

    def _usage(self, prompt: Sequence[int], new: Sequence[int]) -> TokenUsage:
        vocabulary = self.vocabulary
        frame = (vocabulary.begin_image, vocabulary.end_image)
        of_prompt, of_new = (
            sum(id_ in vocabulary.codes or id_ in frame for id_ in ids) for ids in (prompt, new)
        )
        return TokenUsage(
            num_prompt_text_tokens=len(prompt) - of_prompt,
            num_prompt_image_tokens=of_prompt,
            num_text_tokens=len(new) - of_new,
            num_image_tokens=of_new,
        )

    def _open_image(self, ids: Sequence[int]) -> int:
        """Where the image that `ids` leave open begins; their length if none is open."""
        for place in range(len(ids) - 1, -1, -1):
            if ids[place] == self.vocabulary.end_image:
                break
            if ids[place] == self.vocabulary.begin_image:
                return place
        return len(ids)


def _open(part: UserPart) -> str | PIL.Image.Image:
    if isinstance(part, str | PIL.Image.Image):
        return part
    known = part if isinstance(part, Text | Image) else part_from_json(part, None, "prompt")
    return known.text if isinstance(known, Text) else known.open()


def _role_and_parts(
    message: Turn | Mapping[str, Any], number: int
) -> tuple[Role, Sequence[UserPart]]:
    if isinstance(message, Turn):
        return message.role, message.parts
    role, content = message.get("role"), message.get("content", ())
    if role not in ROLES:
        raise DocumentError(
            f"message {number} has the role {role!r}; expected one of {', '.join(ROLES)}."
        )
    return role, [content] if isinstance(content, str) else content


def _seed(seeds: Sequence[int] | None, number: int) -> dict[str, int]:
    return {} if seeds is None else {"seed": seeds[number]}


def load(
    folder: str | Path,
    device: str = "cpu",
    dtype: str = "float32",
    weights: Weights = "plain",
    engine_config: EngineConfig = EngineConfig(),  # noqa: B008  (frozen)
) -> Model:
    """Load a model folder that calumma, transformers or a fine-tune of the family wrote.

    Args:
        folder: the model folder.
        device: cpu, cuda, or auto.
        dtype: of the decoder: float32, bfloat16 or float16.
        weights: "int8" or "fp8" round the matrices of its blocks to eight bits.
        budget: of its engine.

    Raises:
        CheckpointError: the folder holds no such model.
    """
    parts = load_model(Path(folder))
    return Model(parts, device=device, dtype=dtype, weights=weights, engine_config=engine_config)
