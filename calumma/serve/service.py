"""What all endpoints share: the model, the desk, and how a request is begun."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import PIL.Image

from calumma.generate.model import Model
from calumma.serve.answers import CompletionUsage, TokenCounts
from calumma.serve.api_errors import APIError
from calumma.serve.config import ServeConfig
from calumma.serve.handler import Manner, RequestHandler, ResponseStream
from calumma.serve.output_processor import Drawn, Ended, Said
from calumma.serve.prompt_encoder import Prompt
from calumma.serve.provenance.image_metadata import ImageMetadata, png_with_metadata
from calumma.serve.provenance.signing import ImageSigner
from calumma.serve.request_context import RequestContext
from calumma.serve.request_params import requests_of


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a request asks of the engine, but for its prompts."""

    seeds: Sequence[int]
    """One for each answer to a prompt."""

    options: dict[str, Any]
    """Fields of the engine's requests."""

    stops: Sequence[str] = ()
    codes_between: int | None = None
    prompt_in_picture: bool = False


@dataclass
class Told:
    """One answer, gathered: its parts in reading order."""

    parts: list[str | bytes]
    """Texts, and the files of pictures."""

    ended: Ended | None = None

    @property
    def text(self) -> str:
        """All texts, joined."""
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def pictures(self) -> list[bytes]:
        """All pictures, as PNG files."""
        return [part for part in self.parts if isinstance(part, bytes)]


@dataclass(frozen=True)
class Asked:
    """A request that the engine has taken."""

    talk: ResponseStream
    prompts: list[list[int]]
    """The ids of each prompt."""

    seeds: list[int]
    """Of each answer."""


class Service:
    """A model at work."""

    def __init__(
        self,
        model: Model,
        desk: RequestHandler,
        config: ServeConfig,
        *,
        signer: ImageSigner | None = None,
    ) -> None:
        """Put a model to work.

        Args:
            model: whose tokenizers are used.
            desk: who carries questions to the engine.
            config: the operator's choices.
            signer: signs pictures that are whole.
        """
        self.model, self.desk, self.live = model, desk, desk.live
        self.config, self.metrics, self.signer = config, desk.metrics, signer

    @property
    def size(self) -> str:
        """The size of the model's pictures, as the images API writes sizes."""
        side = self.model.image.config.resolution
        return f"{side}x{side}"

    def require_model(self, name: str | None) -> None:
        """Refuse a request for a model that is not served here."""
        if name is not None and name != self.config.served_model_name:
            raise APIError(
                404,
                f"no model of that name is served here; expected {self.config.served_model_name!r}. "
                "/v1/models names it.",
                "model_not_found",
                param="model",
            )

    def require_ids(self, ids: list[int]) -> list[int]:
        """See that ids are the model's.

        Raises:
            Refusal: one is not.
        """
        size = self.model.vocabulary.size
        for id_ in ids:
            if id_ >= size:
                message = f"the id {id_} is none of this model's; expected 0 to {size - 1}."
                raise APIError(400, message, "invalid_ids", "ids")
        return ids

    def require_choices(self, count: int) -> None:
        """Refuse a request for too many answers."""
        most = min(self.config.limits.max_choices, self.config.limits.max_concurrent_requests)
        if not 0 < count <= most:
            raise APIError(
                400,
                f"{count} answers are expected; expected 1 to {most}. Ask again for the rest.",
                "too_many_choices",
                param="n",
            )

    async def ask(self, visit: RequestContext, prompts: Sequence[Prompt], wanted: Wanted) -> Asked:
        """Read prompts and hand them to the engine, each with every seed.

        Raises:
            Refusal: there is no room, or a prompt cannot be read.
            CalummaError: it cannot be answered.
        """
        count = len(prompts) * len(wanted.seeds)
        self.require_choices(count)
        talk = self.desk.admit(count)
        visit.closers.append(talk.close)
        ids = [await talk.read(prompt) for prompt in prompts]
        requests = [r for one in ids for r in requests_of(one, wanted.seeds, wanted.options)]
        text = "\n".join(prompt.text for prompt in prompts)
        visit.log_fields |= {"answers": count, "prompt_tokens": sum(map(len, ids))}
        if self.config.log_prompts:
            visit.log_fields["prompt"] = text
        told = text if self._tells_prompt(wanted) else None
        manner = Manner(
            to_png=self._to_png(told),
            finish=self._finish(told),
            stops=wanted.stops,
            codes_between=wanted.codes_between,
        )
        for one in ids:
            self._count(one, "read")
        talk.ask(requests, manner)
        return Asked(talk, ids, list(wanted.seeds) * len(prompts))

    def _tells_prompt(self, wanted: Wanted) -> bool:
        return wanted.prompt_in_picture or self.config.embed_prompt_metadata

    def _to_png(self, prompt: str | None) -> Callable[[PIL.Image.Image], bytes]:
        return lambda picture: png_with_metadata(
            picture, ImageMetadata.now(self.config.served_model_name, prompt)
        )

    def _finish(self, prompt: str | None) -> Callable[[PIL.Image.Image], bytes] | None:
        """Signs what is whole alone: a view of a picture that still grows is soon replaced."""
        if self.signer is None:
            return None
        signer = self.signer

        def finish(picture: PIL.Image.Image) -> bytes:
            origin = ImageMetadata.now(self.config.served_model_name, prompt)
            return signer.sign(png_with_metadata(picture, origin), origin)

        return finish

    def counts(self, ids: Sequence[int]) -> TokenCounts:
        """Ids by what they are."""
        vocabulary = self.model.vocabulary
        frame = (vocabulary.begin_image, vocabulary.end_image)
        images = sum(id_ in vocabulary.codes or id_ in frame for id_ in ids)
        return TokenCounts(text_tokens=len(ids) - images, image_tokens=images)

    def _count(self, ids: Sequence[int], direction: str) -> None:
        counts = self.counts(ids)
        self.metrics.tokens.labels("text", direction).inc(counts.text_tokens)
        self.metrics.tokens.labels("image", direction).inc(counts.image_tokens)

    def usage(self, visit: RequestContext, asked: Asked, ended: Sequence[Ended]) -> CompletionUsage:
        """What a request has cost; it is counted and logged here."""
        read = self.counts([id_ for ids in asked.prompts for id_ in ids])
        new = [id_ for end in ended for id_ in end.sample.token_ids[: end.num_ids]]
        made = self.counts(new)
        self._count(new, "made")
        visit.log_fields |= {"text_tokens": made.text_tokens, "image_tokens": made.image_tokens}
        visit.log_fields["reasons"] = [end.reason for end in ended]
        prompt = read.text_tokens + read.image_tokens
        return CompletionUsage(
            prompt_tokens=prompt,
            completion_tokens=len(new),
            total_tokens=prompt + len(new),
            prompt_tokens_details=read,
            completion_tokens_details=made,
        )

    async def gather(self, asked: Asked) -> list[Told]:
        """All answers of a request, whole."""
        told = [Told([]) for _ in asked.seeds]
        async for number, piece in asked.talk:
            one = told[number]
            if isinstance(piece, Said):
                if one.parts and isinstance(one.parts[-1], str):
                    one.parts[-1] += piece.text
                else:
                    one.parts.append(piece.text)
            elif isinstance(piece, Drawn):
                one.parts.append(piece.png)
            elif isinstance(piece, Ended):
                one.ended = piece
        return told


def base64_of(png: bytes) -> str:
    """The file of a picture in base64."""
    return base64.b64encode(png).decode()
