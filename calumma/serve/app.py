"""The whole server as an ASGI app: a model, its engine, the desk, the endpoints, the guard."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

import calumma
from calumma.errors import ConfigError
from calumma.generate.async_engine import AsyncEngine
from calumma.generate.model import Model
from calumma.generate.params import EngineConfig
from calumma.serve.api_errors import register_exception_handlers
from calumma.serve.api_keys import APIKeys
from calumma.serve.config import ServeConfig
from calumma.serve.handler import Engine, RequestHandler
from calumma.serve.images.decoder_pool import ImageDecoderPool
from calumma.serve.middleware import AccessPolicy, SecurityMiddleware
from calumma.serve.moderation import load_content_filters
from calumma.serve.page import Page
from calumma.serve.prometheus_metrics import Metrics
from calumma.serve.prompt_encoder import PromptEncoder
from calumma.serve.provenance.signing import load_image_signer
from calumma.serve.routes.chat import chat_routes
from calumma.serve.routes.completions import completion_routes
from calumma.serve.routes.images import drawing_routes
from calumma.serve.routes.meta import model_routes, page_routes, watch_routes
from calumma.serve.service import Service


def check_exposure(config: ServeConfig, keys: APIKeys | None) -> None:
    """Refuse to serve everybody without keys.

    Raises:
        ConfigError: others can reach the server, and it asks for no key.
    """
    if keys is None and not config.is_local:
        raise ConfigError(
            f"host {config.host} can be reached by others, and there are no keys; expected keys. "
            "Give --keys FILE (--new-key NAME makes one), or serve on --host 127.0.0.1."
        )


def build_handler(
    model: Model,
    config: ServeConfig,
    budget: EngineConfig | None = None,
    live: Engine | None = None,
) -> Service:
    """A model at work: its engine runs until the service's desk is closed.

    Args:
        model: whose tokenizers are used, and whose decoder where `live` is None.
        config: the operator's choices.
        budget: what an engine in this process may hold.
        live: what answers instead of one.

    Raises:
        ConfigError: a filter is not there, or pictures cannot be signed.
    """
    filters = load_content_filters(config.content_filters)
    signer = None if config.c2pa is None else load_image_signer(config.c2pa)
    metrics = Metrics()
    readers = ImageDecoderPool(model.image.config.resolution, config.limits)
    live = live or AsyncEngine(model, budget)
    engine = live
    metrics.watch(lambda: engine.load)
    metrics.lost.set_function(lambda: float(readers.num_crashes))
    scribe = PromptEncoder(model, readers, config, filters)
    desk = RequestHandler(live, scribe, config.limits, metrics, filters)
    return Service(model, desk, config, signer=signer)


def build_app(service: Service, keys: APIKeys | None = None) -> FastAPI:
    """The app of a service, which ends it with itself.

    Raises:
        ConfigError: others could reach it without a key.
    """
    check_exposure(service.config, keys)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.desk.close()

    app = FastAPI(
        title="calumma",
        version=calumma.__version__,
        summary="Text and pictures, read and drawn in any order.",
        # Their pages load scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    register_exception_handlers(app)
    app.include_router(chat_routes(service))
    app.include_router(completion_routes(service))
    app.include_router(drawing_routes(service))
    app.include_router(model_routes(service, int(time.time())))
    app.include_router(watch_routes(service))
    app.include_router(page_routes(Page()))
    door = AccessPolicy(api_keys=keys, is_local=service.config.is_local)
    app.add_middleware(
        SecurityMiddleware, door=door, limits=service.config.limits, metrics=service.metrics
    )
    return app
