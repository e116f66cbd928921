"""Several copies of a server behind one address, on one machine or many: Ray Serve.

    client -> Ray's proxy -> replica 1: the whole app of `app.py`, with an engine of its own
                          -> replica 2: ...

Each replica is a process with a model, a queue and limits of its own; the proxy sends a request to
one of two that has less to do. What a replica refuses with 429 the client may ask again. Where
several processes hold the model together, the replica leads them: they are its children.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from calumma.errors import ConfigError, RankError
from calumma.model.quantization import Quantization
from calumma.runtime import STOP, ray_address
from calumma.serve.api_keys import APIKeys
from calumma.serve.config import ServeConfig
from calumma.serve.logs import log_event

_NAME = "calumma"

_SECONDS_TO_TELL = 1.0
"""For how long a replica that is lost goes on, so that its clients hear of it."""


@dataclass(frozen=True, kw_only=True)
class ReplicaConfig:
    """What all replicas are made of."""

    model: Path
    """A model folder, at the same path on every machine."""

    config: ServeConfig
    api_keys: APIKeys | None
    num_replicas: int
    device: str = "auto"
    dtype: str = "float32"
    quantization: Quantization | None = None

    compile: bool = False
    """Whether the decoder's blocks are compiled."""

    tensor_parallel_size: int = 1
    """Processes that hold the decoder together, in each replica."""

    @property
    def num_gpus(self) -> int:
        """GPUs that one replica wants."""
        return self.tensor_parallel_size if _wants_gpu(self.device) else 0

    def build(self) -> FastAPI:
        """The app of one replica, made in its own process."""
        from calumma.generate.model import load
        from calumma.generate.tensor_parallel.tp_engine import TensorParallelAsyncEngine
        from calumma.serve.app import build_app, build_handler

        folder = self.model.resolve()
        if self.tensor_parallel_size == 1:
            model = load(
                folder, device=self.device, dtype=self.dtype, quantization=self.quantization
            )
            if self.compile:
                model.compile()
            return build_app(build_handler(model, self.config), self.api_keys)
        live = TensorParallelAsyncEngine(
            folder, self.tensor_parallel_size, device=self.device, dtype=self.dtype
        )
        live.worker_group.on_failure(_end_soon)
        return build_app(build_handler(live.model, self.config, live=live), self.api_keys)


def init_ray() -> Any:
    """Ray Serve, in the cluster that $RAY_ADDRESS names, or else in one of its own.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import ray
        from ray import serve
    except ImportError as error:
        raise ConfigError(
            "--replicas above 1 needs Ray Serve, which is not installed. "
            "`pip install 'calumma[ray]'` brings it."
        ) from error
    # Without a name Ray would join any cluster that it finds on this machine.
    if address := ray_address():
        ray.init(address=address)
    else:
        ray.init(address="local", include_dashboard=False)
    return serve


def serve_replicas(replicas: ReplicaConfig, listening: Callable[[], None]) -> None:
    """Serve until a signal comes.

    Args:
        replicas: how many, of what.
        listening: called when all of them take requests.

    Raises:
        ConfigError: Ray Serve is not installed.
    """
    serve = init_ray()

    def build() -> FastAPI:
        # A function: what has methods, a bound one even, Ray takes for an app.
        return replicas.build()

    config, limits = replicas.config, replicas.config.limits
    serve.start(http_options={"host": config.host, "port": config.port})
    deployment = serve.deployment(
        name=_NAME,
        num_replicas=replicas.num_replicas,
        # A replica refuses by itself what is too much, and says when to come again.
        max_ongoing_requests=2 * limits.max_concurrent_requests,
        graceful_shutdown_timeout_s=limits.shutdown_grace_seconds,
        ray_actor_options={"num_gpus": replicas.num_gpus},
    )(serve.ingress(build)())
    try:
        serve.run(deployment.bind(), name=_NAME)
        # Ray has put its own listener to signals in the place of ours.
        STOP.install()
        listening()
        while not STOP.is_requested:
            time.sleep(0.2)
    finally:
        serve.shutdown()


def _end_soon(error: RankError) -> None:
    """End this replica, whose clients are being told why; Ray starts another one in its place."""
    log_event("lost", error=str(error))
    threading.Timer(_SECONDS_TO_TELL, os.kill, (os.getpid(), signal.SIGKILL)).start()


def _wants_gpu(device: str) -> bool:
    from calumma.runtime import resolve_device

    return resolve_device(device).type == "cuda"
