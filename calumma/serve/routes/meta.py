"""The endpoints that answer at once: models, tokens, health, metrics, and the page."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from calumma.serve.answers import ModelCard, ModelList, TokenInfo, TokenizeResponse
from calumma.serve.page import Page
from calumma.serve.prometheus_metrics import CONTENT_TYPE
from calumma.serve.prompt_encoder import chat_prompt, completion_prompt
from calumma.serve.protocol import TokenizeRequest
from calumma.serve.request_context import get_request_context
from calumma.serve.service import Service
from calumma.serve.sse import ERROR_RESPONSES


def model_routes(service: Service, created: int) -> APIRouter:
    """What is served, and what its prompts are in ids."""
    router = APIRouter()
    card = ModelCard(
        id=service.config.served_model_name,
        created=created,
        owned_by="calumma",
        modalities=["text", "image"]
        if service.model.components.tokenizers.has_image_decoder
        else ["text"],
        max_model_len=service.model.decoder.config.max_seq_len,
        image_size=service.size,
    )

    @router.get("/v1/models")
    async def models() -> ModelList:
        """All models: one."""
        return ModelList(data=[card])

    @router.get("/v1/models/{name}", responses=ERROR_RESPONSES)
    async def model(name: str) -> ModelCard:
        """One model."""
        service.require_model(name)
        return card

    @router.post("/v1/tokens", responses=ERROR_RESPONSES)
    async def tokens(body: TokenizeRequest, request: Request) -> TokenizeResponse:
        """The ids that a prompt becomes, and what each id is."""
        if body.ids is not None:
            ids = service.require_ids(body.ids)
        else:
            talk = service.desk.admit(1)
            get_request_context(request).closers.append(talk.close)
            chat = body.messages
            ids = await talk.read(
                chat_prompt(chat) if chat else completion_prompt(body.prompt or "")
            )
        return TokenizeResponse(
            tokens=[_token(service, id_) for id_ in ids],
            num_tokens=service.counts(ids),
            codes_per_side=service.model.image.config.codes_per_side,
        )

    return router


def _token(service: Service, id_: int) -> TokenInfo:
    vocabulary = service.model.vocabulary
    if id_ in vocabulary.text:
        text = service.model.text.token_bytes(id_).decode(errors="replace")
        return TokenInfo(id=id_, kind="text", text=text)
    if id_ in vocabulary.codes:
        return TokenInfo(id=id_, kind="code", text=str(vocabulary.id_to_code(id_)))
    return TokenInfo(id=id_, kind="control", text=_controls(service).get(id_, "reserved"))


def _controls(service: Service) -> dict[int, str]:
    vocabulary = service.model.vocabulary
    return {
        vocabulary.bos: "begin",
        vocabulary.eos: "end",
        vocabulary.begin_image: "begin of image",
        vocabulary.end_image: "end of image",
        vocabulary.end_turn: "end of turn",
    }


def watch_routes(service: Service) -> APIRouter:
    """For those who watch over the server."""
    router = APIRouter()

    def is_live() -> bool:
        return service.live.error is None

    def is_ready() -> bool:
        return is_live() and not service.desk.stopping

    def told(*, well: bool) -> JSONResponse:
        load = service.live.load
        state = {
            "live": is_live(),
            "ready": is_ready(),
            "answers": service.desk.under_way,
            "running": load.num_running,
            "waiting": load.num_waiting,
        }
        return JSONResponse(state, 200 if well else 503)

    @router.get("/health")
    @router.get("/health/ready")
    async def ready() -> JSONResponse:
        """Whether requests are taken."""
        return told(well=is_ready())

    @router.get("/health/live")
    async def live() -> JSONResponse:
        """Whether the engine runs; if not, the server wants to be started anew."""
        return told(well=is_live())

    @router.get("/metrics")
    async def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)

    return router


def page_routes(page: Page) -> APIRouter:
    """The page."""
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def index() -> Response:
        """The page itself."""
        return page.response("index.html")

    @router.get("/static/{name}")
    async def file(name: str) -> Response:
        """A file of it."""
        return page.response(name)

    return router
