"""Replicas of the server at one address, on one or several machines, through Ray Serve.

    client -> Ray's proxy -> replica 1: the complete app of `app.py`, with a backend of its own
                          -> replica 2: ...

Each replica is a process with its own model, queue and limits; the proxy sends a request to the one
of two that has fewer. A 429 of a replica reaches the client, which may retry. With tensor
parallelism the replica is rank 0, and the workers are its child processes.
"""

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI

from calumma.errors import ConfigError, RankError
from calumma.runtime import STOP, ray_address
from calumma.serve.api_keys import APIKeys
from calumma.serve.backends.generation_backend import BackendConfig
from calumma.serve.config import ServeConfig
from calumma.serve.logs import log_event

_APP_NAME = "calumma"

_SECONDS_TO_RESPOND = 1.0
"""Time in which a replica that lost a worker sends the errors to its clients."""


@dataclass(frozen=True, kw_only=True)
class ReplicaConfig:
    """Configuration of all replicas."""

    backend: BackendConfig
    """Its model folder is at the same path on every machine."""

    config: ServeConfig
    api_keys: APIKeys | None
    num_replicas: int

    @property
    def num_gpus(self) -> int:
        """Number of GPUs that one replica reserves."""
        from calumma.runtime import resolve_device

        is_cuda = resolve_device(self.backend.device).type == "cuda"
        return self.backend.tensor_parallel_size if is_cuda else 0

    def build(self) -> FastAPI:
        """Build the app of one replica, in its own process."""
        from calumma.generate.tensor_parallel.tp_engine import TensorParallelAsyncEngine
        from calumma.serve.app import build_app, build_handler
        from calumma.serve.backends.generation_backend import build_backend

        backend = build_backend(self.backend, self.config.served_model_name)
        if isinstance(backend, TensorParallelAsyncEngine):
            backend.worker_group.on_failure(_exit_soon)
        return build_app(build_handler(backend, self.config), self.api_keys)


def init_ray() -> Any:
    """Connect to the cluster that $RAY_ADDRESS names, or start one, and return Ray Serve."""
    try:
        import ray
        from ray import serve
    except ImportError as error:
        raise ConfigError(
            "--num-replicas above 1 needs Ray Serve, which is not installed. `pip install 'calumma[ray]'` installs it."
        ) from error
    # Without an address Ray would join any cluster that it finds on this machine.
    if address := ray_address():
        ray.init(address=address)
    else:
        ray.init(address="local", include_dashboard=False)
    return serve


def serve_replicas(replicas: ReplicaConfig, on_ready: Callable[[], None]) -> None:
    """Serve until a signal arrives; calls `on_ready` when all replicas accept requests.

    Raises:
        ConfigError: Ray Serve is not installed.
    """
    serve = init_ray()

    def build() -> FastAPI:
        # A plain function: Ray takes an object with methods, even a bound method, for an app.
        return replicas.build()

    config, limits = replicas.config, replicas.config.limits
    serve.start(http_options={"host": config.host, "port": config.port})
    deployment = serve.deployment(
        name=_APP_NAME,
        num_replicas=replicas.num_replicas,
        # A replica itself rejects what exceeds its limit, with Retry-After.
        max_ongoing_requests=2 * limits.max_concurrent_requests,
        graceful_shutdown_timeout_s=limits.shutdown_grace_seconds,
        ray_actor_options={"num_gpus": replicas.num_gpus},
    )(serve.ingress(build)())
    try:
        serve.run(deployment.bind(), name=_APP_NAME)
        # Ray has replaced the signal handlers.
        STOP.install()
        on_ready()
        while not STOP.is_requested:
            time.sleep(0.2)
    finally:
        serve.shutdown()


def _exit_soon(error: RankError) -> None:
    """End this replica once its clients have their errors; Ray starts another one."""
    log_event("worker_lost", error=str(error))
    threading.Timer(_SECONDS_TO_RESPOND, os.kill, (os.getpid(), signal.SIGKILL)).start()
