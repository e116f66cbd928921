"""Application factory: a model and its backend as an ASGI app with all endpoints."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

import calumma
from calumma.errors import ConfigError
from calumma.serve.api_errors import register_exception_handlers
from calumma.serve.api_keys import APIKeys
from calumma.serve.backends.generation_backend import GenerationBackend
from calumma.serve.config import ServeConfig
from calumma.serve.handler import RequestHandler
from calumma.serve.images.decoder_pool import ImageDecoderPool
from calumma.serve.middleware import SecurityMiddleware
from calumma.serve.moderation import load_content_filters
from calumma.serve.prometheus_metrics import PrometheusMetrics
from calumma.serve.prompt_encoder import PromptEncoder
from calumma.serve.provenance.signing import load_image_signer
from calumma.serve.routes.chat import chat_routes
from calumma.serve.routes.completions import completion_routes
from calumma.serve.routes.images import image_routes
from calumma.serve.routes.meta import model_routes, monitoring_routes, static_routes
from calumma.serve.served_rewards import load_served_rewards


def check_exposure(config: ServeConfig, api_keys: APIKeys | None) -> None:
    """Check that a server without API keys is not reachable from other machines.

    Raises:
        ConfigError: it is.
    """
    if api_keys is None and not config.is_local:
        raise ConfigError(
            f"host {config.host} is reachable from other machines, and there are no API keys; expected keys. Pass "
            "--api-keys-file FILE (--create-api-key NAME creates one), or serve on --host 127.0.0.1."
        )


def build_handler(backend: GenerationBackend, config: ServeConfig) -> RequestHandler:
    """Build the request handler; closing it closes the backend.

    Args:
        backend: generates tokens.
        config: settings and limits.

    Raises:
        ConfigError: a content filter or a reward is not available, or images cannot be signed.
    """
    filters = load_content_filters(config.content_filters)
    signer = None if config.c2pa is None else load_image_signer(config.c2pa)
    metrics = PrometheusMetrics()
    metrics.add_engine_gauges(lambda: backend.stats)
    image, sizes = backend.model.image.config, backend.model.vocabulary.image_sizes
    decoder_pool = ImageDecoderPool(
        image.resolution,
        config.limits,
        on_crash=metrics.image_decoder_crashes.inc,
        grids=() if sizes is None else sizes.grids,
        cell=image.downsampling,
    )
    encoder = PromptEncoder(backend.model, decoder_pool, config, filters)
    rewards = load_served_rewards(config.rewards)
    return RequestHandler(backend, encoder, config, metrics=metrics, filters=filters, signer=signer, rewards=rewards)


def build_app(handler: RequestHandler, api_keys: APIKeys | None = None) -> FastAPI:
    """Build the app of a handler, which the app closes at its shutdown.

    Raises:
        ConfigError: other machines could reach it without a key.
    """
    config = handler.config
    check_exposure(config, api_keys)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        handler.close()

    app = FastAPI(
        title="calumma",
        version=calumma.__version__,
        summary="Text and images, in and out, in any order.",
        # The documentation pages of FastAPI load scripts from other hosts.
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    register_exception_handlers(app)
    app.include_router(chat_routes(handler))
    app.include_router(completion_routes(handler))
    app.include_router(image_routes(handler))
    app.include_router(model_routes(handler, int(time.time())))
    app.include_router(monitoring_routes(handler))
    app.include_router(static_routes())
    app.add_middleware(
        SecurityMiddleware, api_keys=api_keys, is_local=config.is_local, limits=config.limits, metrics=handler.metrics
    )
    return app
