"""Endpoints that answer at once: models, tokenization, health, metrics, and the web page."""

from dataclasses import asdict
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from calumma.serve.api_errors import APIError
from calumma.serve.handler import RequestHandler
from calumma.serve.prometheus_metrics import METRICS_CONTENT_TYPE
from calumma.serve.prompt_encoder import chat_prompt, completion_prompt
from calumma.serve.protocol import (
    DetokenizeRequest,
    ModelCard,
    ModelList,
    TokenInfo,
    TokenizeRequest,
    TokenizeResponse,
)
from calumma.serve.request_context import get_request_context
from calumma.serve.response_stream import ERROR_RESPONSES

STATIC_FOLDER = Path(__file__).parents[1] / "page"

MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""Media types of the files of the web page, by suffix; no other file is served."""


def model_routes(handler: RequestHandler, created: int) -> APIRouter:
    """Build the router of /v1/models, /tokenize and /detokenize."""
    router = APIRouter()
    can_generate_images = handler.model.components.tokenizers.has_image_decoder
    card = ModelCard(
        id=handler.config.served_model_name,
        created=created,
        owned_by="calumma",
        modalities=["text", "image"] if can_generate_images else ["text"],
        max_model_len=handler.model.decoder.config.max_seq_len,
        image_size=handler.image_size,
        codes_per_side=handler.model.image.config.codes_per_side
        if handler.model.vocabulary.image_sizes is None
        else None,
        image_sizes=handler.image_sizes,
        text_sampling=asdict(handler.model.default_text_sampling),
        image_sampling=asdict(handler.model.default_image_sampling),
    )

    def card_of(name: str) -> ModelCard:
        parent = None if name == card.id else card.id
        return card.model_copy(update={"id": name, "parent": parent})

    @router.get("/v1/models")
    async def models() -> ModelList:
        """List the served model and its adapters."""
        return ModelList(data=[card_of(name) for name in handler.model_names])

    @router.get("/v1/models/{name}", responses=ERROR_RESPONSES)
    async def model(name: str) -> ModelCard:
        """Describe a served model."""
        handler.adapter_of(name)
        return card_of(name)

    @router.post("/tokenize", responses=ERROR_RESPONSES)
    async def tokenize(body: TokenizeRequest, request: Request) -> TokenizeResponse:
        """Encode the messages of a chat, or the prompt of a completion."""
        handler.acquire(get_request_context(request), 1)
        messages = body.messages
        prompt = chat_prompt(messages) if messages else completion_prompt(body.prompt or "")
        return _describe_tokens(handler, await handler.encode(prompt))

    @router.post("/detokenize", responses=ERROR_RESPONSES)
    async def detokenize(body: DetokenizeRequest) -> TokenizeResponse:
        """Decode token ids."""
        size = handler.model.vocabulary.size
        for id_ in body.tokens:
            if id_ >= size:
                message = f"token id {id_} is out of range; expected 0 to {size - 1}. Remove it."
                raise APIError(400, message, "invalid_token_ids", "tokens")
        return _describe_tokens(handler, body.tokens)

    return router


def _describe_tokens(handler: RequestHandler, token_ids: list[int]) -> TokenizeResponse:
    vocabulary, text = handler.model.vocabulary, handler.model.text
    special = {
        vocabulary.bos: "begin of sequence",
        vocabulary.eos: "end of sequence",
        vocabulary.begin_image: "begin of image",
        vocabulary.end_image: "end of image",
        vocabulary.end_turn: "end of turn",
    }

    def describe(id_: int) -> TokenInfo:
        if id_ in vocabulary.text:
            token = text.token_bytes(id_).decode(errors="replace")
            return TokenInfo(id=id_, kind="text", text=token)
        if id_ in vocabulary.codes:
            return TokenInfo(id=id_, kind="code", text=str(vocabulary.id_to_code(id_)))
        return TokenInfo(id=id_, kind="special", text=special.get(id_, "reserved"))

    return TokenizeResponse(
        tokens=token_ids,
        token_info=[describe(id_) for id_ in token_ids],
        count=len(token_ids),
        token_counts=vocabulary.count_modalities(token_ids),
        prompt=text.decode([id_ for id_ in token_ids if id_ in vocabulary.text]),
        max_model_len=handler.model.decoder.config.max_seq_len,
        codes_per_side=handler.model.image.config.codes_per_side,
    )


def monitoring_routes(handler: RequestHandler) -> APIRouter:
    """Build the router of /health and /metrics."""
    router = APIRouter()

    def is_live() -> bool:
        return handler.backend.error is None

    def is_ready() -> bool:
        return is_live() and not handler.is_stopping

    def state(*, is_healthy: bool) -> JSONResponse:
        stats = handler.backend.stats
        body = {
            "live": is_live(),
            "ready": is_ready(),
            "num_in_flight": handler.num_in_flight,
            "num_running": stats.num_running,
            "num_waiting": stats.num_waiting,
        }
        return JSONResponse(body, 200 if is_healthy else 503)

    @router.get("/health")
    @router.get("/health/ready")
    async def ready() -> JSONResponse:
        """Return 200 if requests are accepted."""
        return state(is_healthy=is_ready())

    @router.get("/health/live")
    async def live() -> JSONResponse:
        """Return 200 if the engine runs; otherwise the server must be restarted."""
        return state(is_healthy=is_live())

    @router.get("/metrics")
    async def metrics() -> Response:
        """Return the metrics for Prometheus."""
        return Response(handler.metrics.exposition(), media_type=METRICS_CONTENT_TYPE)

    return router


def static_routes(folder: Path = STATIC_FOLDER) -> APIRouter:
    """Build the router of the web page.

    The files are read once: a name in a URL is looked up, never opened.
    """
    router = APIRouter(include_in_schema=False)
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in MEDIA_TYPES}

    def respond(name: str) -> Response:
        data = files.get(name)
        if data is None:
            raise APIError(404, "there is no such file; the web page is at /.", "not_found")
        media_type = MEDIA_TYPES[Path(name).suffix]
        # Always revalidated: after an update no old script calls a new API.
        return Response(data, media_type=media_type, headers={"Cache-Control": "no-cache"})

    @router.get("/")
    async def index() -> Response:
        """Return the web page."""
        return respond("index.html")

    @router.get("/static/{name}")
    async def file(name: str) -> Response:
        """Return a file of the web page."""
        return respond(name)

    return router
