"""A model as its users hold it: parts in, parts out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from torch import Tensor

from calumma.checkpoints.model_folder import ModelParts, load_model
from calumma.documents.document import Image, Part, Text, part_from_json
from calumma.errors import GenerationError
from calumma.generate.config import Request
from calumma.generate.engine import Engine, Work
from calumma.generate.sample import (
    End,
    Event,
    ImageBegun,
    ImageDone,
    ImageProgress,
    Sample,
    TextPiece,
)
from calumma.runtime import choose_device, choose_dtype
from calumma.tokens.squares import Fit
from calumma.tokens.sequence import encode_prompt, split_ids
from calumma.vocabulary import Vocabulary

UserPart = str | PIL.Image.Image | dict[str, Any] | Text | Image
"""A text, a picture, or a part as documents write it."""


class Model:
    """A decoder with both its tokenizers."""

    def __init__(self, parts: ModelParts, *, device: str = "cpu", dtype: str = "float32") -> None:
        self.parts = parts
        self.decoder = parts.decoder.to(device=choose_device(device), dtype=choose_dtype(dtype))
        self.decoder.eval().requires_grad_(False)
        self.text = parts.text
        self.image = parts.image
        # Codes are compared as distances: the image tokenizer stays in float32.
        self.image.network.to(choose_device(device))
        codes = self.image.config.codes_per_image
        self.engine = Engine(self.decoder, self.vocabulary, codes)

    @property
    def vocabulary(self) -> Vocabulary:
        """The table of ids."""
        return self.text.vocabulary

    def encode(self, parts: Sequence[UserPart], *, fit: Fit = "crop") -> list[int]:
        """The ids of parts in reading order, behind begin-of-sequence.

        Args:
            parts: texts, pictures, or the dicts of documents, in any order.
            fit: whether pictures are cropped to a square, or padded as in prompts.
        """
        return self._prompt(parts, fit=fit, answer=False)

    def _prompt(self, parts: Sequence[UserPart], *, fit: Fit, answer: bool) -> list[int]:
        known: list[Part] = []
        pictures: list[PIL.Image.Image] = []
        for part in parts:
            if isinstance(part, PIL.Image.Image):
                pictures.append(part)
                known.append(Image(data=b""))
                continue
            read = part if isinstance(part, Text | Image) else _part(part)
            if isinstance(read, Image):
                pictures.append(read.open())
            known.append(read)
        codes = self.image.encode_images(pictures, mode=fit)
        return encode_prompt(known, self.text, codes, answer=answer)

    def decode(self, ids: Sequence[int]) -> list[str | PIL.Image.Image]:
        """The texts and pictures that ids stand for, in reading order."""
        parts: list[str | PIL.Image.Image] = []
        for kind, run in split_ids(ids, self.vocabulary):
            if kind == "text":
                parts.append(self.text.decode(run))
            elif run:
                parts.append(self.decode_image(run))
        return parts

    def encode_image(self, image: PIL.Image.Image, *, fit: Fit = "crop") -> list[int]:
        """The codes of a picture, row by row; codes, not ids."""
        return self.image.encode_image(image, mode=fit)

    def decode_image(self, codes: Sequence[int]) -> PIL.Image.Image:
        """The picture of an image's codes.

        Raises:
            GenerationError: the model folder has no image decoder.
        """
        self._require_decoder()
        return self.image.decode_image(list(codes))

    def _require_decoder(self) -> None:
        if not self.parts.draws:
            raise GenerationError(
                "this model folder has no vq_decoder.safetensors, so codes cannot become "
                "pictures; wanted the decoder of its image tokenizer. Put that file into the "
                "folder, or ask for text only (max_images=0)."
            )

    @torch.inference_mode()
    def logits(self, ids: Sequence[int] | Sequence[Sequence[int]] | Tensor) -> Tensor:
        """Next-id scores at every place, nothing masked: [B, T] int64 -> [B, T, V] float32."""
        tensor = torch.as_tensor(ids, dtype=torch.int64, device=self.engine.device)
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
            options: fields of `Request` for all: max_new_tokens, seed, text, image, max_images,
                image_first.

        Raises:
            GenerationError: a prompt does not fit, or pictures are wanted of a model without an
                image decoder.
        """
        self._require_drawing(options)
        requests = [
            self._request(prompt, answer=answer, **(options | _seed(seeds, number)))
            for number, prompt in enumerate(prompts)
        ]
        started = time.perf_counter()
        ended = [started] * len(requests)
        for number, _ in self.engine.run(requests):
            ended[number] = time.perf_counter()
        works = self.engine.finished
        return [self._sample(w, t - started) for w, t in zip(works, ended, strict=True)]

    def _require_drawing(self, options: Mapping[str, Any]) -> None:
        if options.get("max_images", 1):
            self._require_decoder()

    def _request(self, prompt: Sequence[UserPart], *, answer: bool, **options: Any) -> Request:
        ids = self._prompt(prompt, fit="pad" if answer else "crop", answer=answer)
        return Request(ids=tuple(ids), **options)

    def _sample(self, work: Work, seconds: float) -> Sample:
        ended = bool(work.ids) and work.ids[-1] == self.vocabulary.eos
        # A prompt may end inside an image: its codes belong to the picture that is finished here.
        context = list(work.request.ids)
        opened = self._open_image(context)
        return Sample(
            parts=self.decode([*context[opened:], *work.ids]),
            prompt_ids=context,
            ids=work.ids,
            logprobs=work.logprobs,
            finish_reason="stop" if ended else "length",
            timings={"first_token": work.first_token, "total": seconds},
        )

    def _open_image(self, ids: Sequence[int]) -> int:
        """Where the image that `ids` leave open begins; their length if none is open."""
        for place in range(len(ids) - 1, -1, -1):
            if ids[place] == self.vocabulary.end_image:
                break
            if ids[place] == self.vocabulary.begin_image:
                return place
        return len(ids)

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
        self._require_drawing(options)
        every = codes_between or self.image.config.codes_per_side
        request = self._request(parts, answer=answer, **options)
        started = time.perf_counter()
        teller = _Teller(self.decode_image, self.text.decode, self.vocabulary, every)
        for _, id_ in self.engine.run([request]):
            yield from teller.hear(id_)
            if len(teller.codes) == self.image.config.codes_per_image:
                yield from teller.close()
        yield from teller.flush()
        yield End(self._sample(self.engine.finished[0], time.perf_counter() - started))


class _Teller:
    """Turns ids into events."""

    def __init__(
        self,
        draw: Callable[[Sequence[int]], PIL.Image.Image],
        read: Callable[[Sequence[int]], str],
        vocabulary: Vocabulary,
        every: int,
    ) -> None:
        self.draw, self.read, self.vocabulary, self.every = draw, read, vocabulary, every
        self.codes: list[int] = []
        self.text_ids: list[int] = []
        self.told = 0

    def hear(self, id_: int) -> Iterator[Event]:
        vocabulary = self.vocabulary
        if id_ == vocabulary.begin_image:
            yield from self.flush()
            self.codes = []
            yield ImageBegun()
        elif id_ in vocabulary.codes:
            self.codes.append(vocabulary.code_of_id(id_))
            if len(self.codes) % self.every == 0:
                yield ImageProgress(self.draw(self.codes), len(self.codes))
        elif id_ in vocabulary.text:
            self.text_ids.append(id_)
            text = self.read(self.text_ids)
            # A character may be spelt by several ids: told when its last byte is there.
            if not text.endswith("\N{REPLACEMENT CHARACTER}") and len(text) > self.told:
                yield TextPiece(text[self.told :])
                self.told = len(text)

    def close(self) -> Iterator[Event]:
        yield ImageDone(self.draw(self.codes))
        self.codes = []

    def flush(self) -> Iterator[Event]:
        text = self.read(self.text_ids)
        if len(text) > self.told:
            yield TextPiece(text[self.told :])
        self.text_ids, self.told = [], 0


def _part(part: str | dict[str, Any]) -> Part:
    return part_from_json(part, None, "prompt")


def _seed(seeds: Sequence[int] | None, number: int) -> dict[str, int]:
    return {} if seeds is None else {"seed": seeds[number]}


def load(folder: str | Path, device: str = "cpu", dtype: str = "float32") -> Model:
    """Load a model folder that calumma, transformers or a fine-tune of the family wrote.

    Args:
        folder: the model folder.
        device: cpu, cuda, or auto.
        dtype: of the decoder: float32, bfloat16 or float16.

    Raises:
        CheckpointError: the folder holds no such model.
    """
    return Model(load_model(Path(folder)), device=device, dtype=dtype)
