"""`calumma serve`: OpenAI's API and a web page for a model."""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calumma.cli.command import Subparsers, add_command, add_engine_arguments, add_revision_argument, engine_config
from calumma.hub import SHIPPED_MODEL, display_name, find_model_folder

if TYPE_CHECKING:
    from calumma.serve.api_keys import APIKeys
    from calumma.serve.backends.generation_backend import BackendConfig
    from calumma.serve.config import C2PASigningConfig, ServeConfig, ServeLimits

_DESCRIPTION = """\
Serve a model: OpenAI's API and a web page (docs/serving.md)."""

_EXAMPLES = """\
  calumma serve                                    then open http://127.0.0.1:8000
  calumma serve --create-api-key anna --api-keys-file keys.txt
  calumma serve MODEL --host 0.0.0.0 --api-keys-file keys.txt --limit max_pixels=4000000"""


def add_serve_command(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(subparsers, "serve", "[MODEL] [options]", _DESCRIPTION, _EXAMPLES)
    parser.set_defaults(run=_run)
    add = parser.add_argument
    shipped = "folder or user/name on the Hub, --revision R (the shipped model)"
    add("model", type=Path, nargs="?", default=Path(SHIPPED_MODEL), metavar="MODEL", help=shipped)
    add_revision_argument(parser)
    add("--host", default="127.0.0.1", metavar="H", help="address (127.0.0.1); --port N (8000)")
    add("--port", type=int, default=8000, metavar="N", help=argparse.SUPPRESS)
    add("--served-model-name", metavar="NAME", help="name in requests (the folder's name)")
    keys = "keys ($CALUMMA_API_KEYS); --create-api-key NAME adds and prints one"
    add("--api-keys-file", type=Path, metavar="FILE", help=keys)
    add("--create-api-key", metavar="NAME", help=argparse.SUPPRESS)
    queue = "completions at a time (128); also --limit NAME=N"
    add("--max-concurrent-requests", type=int, metavar="N", help=queue)
    add("--limit", action="append", default=[], metavar="NAME=N", help=argparse.SUPPRESS)
    domains = "host whose images are fetched; repeatable"
    add("--allowed-media-domains", action="append", default=[], metavar="HOST", help=domains)
    filters = "nudity, or module:function; repeatable; also --reward NAME"
    add("--content-filter", action="append", default=[], metavar="NAME", help=filters)
    add("--reward", action="append", default=[], metavar="NAME", help=argparse.SUPPRESS)
    sign = "certificates for signing images, --c2pa-key FILE"
    add("--c2pa", type=Path, metavar="FILE", help=sign)
    add("--c2pa-key", type=Path, metavar="FILE", help=argparse.SUPPRESS)
    add("--c2pa-timestamps", metavar="URL", help=argparse.SUPPRESS)
    add("--log-prompts", action="store_true", help="write prompts to the log")
    replicas = "replicas, through Ray Serve (1); also --tensor-parallel-size N (1)"
    adapters = "serve an adapter folder as model NAME; repeatable"
    add("--adapter", action="append", default=[], metavar="NAME=DIR", help=adapters)
    add("--num-replicas", type=int, default=1, metavar="N", help=replicas)
    add("--tensor-parallel-size", type=int, default=1, metavar="N", help=argparse.SUPPRESS)
    backend = "calumma, or vllm here; --url URL: vLLM servers, repeatable"
    add("--backend", choices=("calumma", "vllm"), default="calumma", metavar="NAME", help=backend)
    add("--url", action="append", default=[], metavar="URL", help=argparse.SUPPRESS)
    add_engine_arguments(parser)


def _run(args: argparse.Namespace) -> None:
    """Serve until a signal arrives, or create an API key.

    Raises:
        Interrupted: a signal arrived; running completions are finished or aborted.
    """
    from calumma.serve.api_keys import create_api_key

    if args.create_api_key is not None:
        if args.api_keys_file is None:
            raise _usage_error("--create-api-key needs --api-keys-file FILE for the key's hash")
        print(create_api_key(args.create_api_key, args.api_keys_file))
        return
    _check_packages()
    _serve(args)


def _usage_error(found: str) -> Exception:
    from calumma.errors import ConfigError

    return ConfigError(f"{found}; `calumma serve --help` lists the options.")


def _check_packages() -> None:
    from calumma.errors import ConfigError

    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"serving needs {error.name}, which is not installed. `pip install 'calumma[serve]'` installs it."
        ) from error


def _serve(args: argparse.Namespace) -> None:
    from calumma.errors import Interrupted
    from calumma.runtime import STOP
    from calumma.serve.app import check_exposure
    from calumma.serve.backends.ray_serve import ReplicaConfig, serve_replicas
    from calumma.serve.provenance.signing import load_image_signer

    config, api_keys = _config(args), _api_keys(args)
    check_exposure(config, api_keys)
    if config.c2pa is not None:
        # Checked before the model is loaded, which takes longer.
        load_image_signer(config.c2pa)
    backend = _backend_config(args)
    if args.num_replicas > 1:
        replicas = ReplicaConfig(backend=backend, config=config, api_keys=api_keys, num_replicas=args.num_replicas)
        serve_replicas(replicas, lambda: _print_url(config, config.host, config.port))
    else:
        _serve_one(backend, config, api_keys)
    if STOP.is_requested:
        raise Interrupted("stopped by a signal; running completions are finished or aborted.")


def _backend_config(args: argparse.Namespace) -> "BackendConfig":
    from calumma.serve.backends.generation_backend import BackendConfig

    if args.tensor_parallel_size < 1:
        raise _usage_error(f"--tensor-parallel-size {args.tensor_parallel_size}; expected at least 1")
    uses_vllm = args.backend == "vllm"
    if args.url and not uses_vllm:
        raise _usage_error("--url without --backend vllm; expected both, as the servers are vLLM's")
    if args.tensor_parallel_size > 1 and args.url:
        raise _usage_error("--tensor-parallel-size with --url; expected one of them, as vLLM runs the decoder")
    if args.tensor_parallel_size > 1 and not uses_vllm and (args.compile or args.quantization):
        raise _usage_error(
            "--tensor-parallel-size with --quantization or --compile; expected neither, as only "
            "plain weights are sharded"
        )
    if args.adapter and (args.tensor_parallel_size > 1 or uses_vllm):
        raise _usage_error("--adapter with --tensor-parallel-size or vLLM; expected it with neither")
    return BackendConfig(
        model=args.model,
        device=args.device,
        dtype=args.dtype,
        quantization=args.quantization,
        engine=engine_config(args),
        adapters=serve_adapters(args.adapter),
        tensor_parallel_size=args.tensor_parallel_size,
        name=args.backend,
        vllm_urls=tuple(args.url),
    )


def _serve_one(backend_config: "BackendConfig", config: "ServeConfig", api_keys: "APIKeys | None") -> None:
    import sys

    from calumma.errors import RankError
    from calumma.generate.tensor_parallel.tp_engine import TensorParallelAsyncEngine
    from calumma.serve.app import build_app, build_handler
    from calumma.serve.backends.generation_backend import build_backend
    from calumma.serve.logs import log_to
    from calumma.serve.server import Server, bind

    with bind(config.host, config.port) as listener:
        backend = build_backend(backend_config, config.served_model_name)
        try:
            handler = build_handler(backend, config)
            server = Server(build_app(handler, api_keys), handler)
            if isinstance(backend, TensorParallelAsyncEngine):
                backend.worker_group.on_failure(lambda _: server.stop())
            with log_to(sys.stderr):
                _print_url(config, *listener.getsockname()[:2])
                server.run([listener])
        finally:
            backend.close(finish=False)
        if isinstance(backend.error, RankError):
            raise backend.error


def _print_url(config: "ServeConfig", host: str, port: int) -> None:
    name = f"[{host}]" if ":" in host else host
    print(f"serving {config.served_model_name} at http://{name}:{port}; Ctrl-C stops.", flush=True)


def _config(args: argparse.Namespace) -> "ServeConfig":
    from calumma.serve.config import ServeConfig

    return ServeConfig(
        served_model_name=args.served_model_name or display_name(args.model),
        limits=serve_limits(args.limit, args.max_concurrent_requests),
        host=args.host,
        port=args.port,
        allowed_media_domains=tuple(host.lower() for host in args.allowed_media_domains),
        content_filters=tuple(args.content_filter),
        rewards=served_rewards(args.reward),
        log_prompts=args.log_prompts,
        c2pa=_c2pa_config(args),
    )


def _c2pa_config(args: argparse.Namespace) -> "C2PASigningConfig | None":
    from calumma.serve.config import C2PASigningConfig

    certificates, key, timestamps = args.c2pa, args.c2pa_key, args.c2pa_timestamps
    if certificates is None:
        if key is not None:
            raise _usage_error("--c2pa-key needs --c2pa FILE, the certificates of the key")
        if timestamps is not None:
            raise _usage_error("--c2pa-timestamps needs --c2pa FILE and --c2pa-key FILE")
        return None
    if key is None:
        raise _usage_error("--c2pa needs --c2pa-key FILE, the key of its first certificate")
    # The working directory of a replica may be another one.
    return C2PASigningConfig(
        certificates=certificates.absolute(), private_key=key.absolute(), timestamp_url=timestamps
    )


def serve_adapters(assignments: Sequence[str]) -> dict[str, Path]:
    """Return adapter folders by name from assignments NAME=DIR.

    Raises:
        ConfigError: an assignment is invalid, or a name is given twice.
        CheckpointError: DIR is a name on the Hub, and cannot be found there.
    """
    adapters: dict[str, Path] = {}
    for assignment in assignments:
        name, _, folder = assignment.partition("=")
        if not name or not folder or name in adapters:
            raise _usage_error(f"--adapter {assignment}; expected NAME=DIR, each name once")
        # The working directory of a replica may be another one.
        adapters[name] = find_model_folder(folder).absolute()
    return adapters


def served_rewards(names: Sequence[str]) -> dict[str, str]:
    """Return what the server loads for each reward, by the name that requests give.

    That name is the function's, without its module.

    Raises:
        ConfigError: a reward cannot be loaded.
    """
    from calumma.generate.best_of import MODEL_REWARDS
    from calumma.rl.rewards import REWARDS, load_reward

    paths: dict[str, str] = {}
    for name in names:
        if name in MODEL_REWARDS:
            paths[name] = name
            continue
        load_reward(name)
        paths[name.rpartition(":")[2]] = f"{load_reward.__module__}:{name}" if name in REWARDS else name
    return paths


def serve_limits(assignments: Sequence[str], max_concurrent_requests: int | None = None) -> "ServeLimits":
    """Return the default limits with some replaced by assignments NAME=N.

    Raises:
        ConfigError: a name is unknown, or a value is not a number above 0.
    """
    from calumma.errors import ConfigError
    from calumma.renamed import SERVE_LIMITS, rename_message
    from calumma.serve.config import ServeLimits

    types = {field.name: field.type for field in dataclasses.fields(ServeLimits)}
    values: dict[str, Any] = {}
    if max_concurrent_requests is not None:
        values["max_concurrent_requests"] = max_concurrent_requests
    for assignment in assignments:
        name, _, text = assignment.partition("=")
        if name in SERVE_LIMITS:
            raise ConfigError(rename_message("limit", name, SERVE_LIMITS[name]))
        try:
            values[name] = (int if types[name] is int else float)(text)
        except (KeyError, ValueError) as error:
            raise ConfigError(
                f"--limit {assignment} is invalid; expected NAME=N with one of {', '.join(types)}. Fix it."
            ) from error
    return ServeLimits(**values)


def _api_keys(args: argparse.Namespace) -> "APIKeys | None":
    from calumma.runtime import api_keys_from_environment
    from calumma.serve.api_keys import load_api_keys, parse_api_keys

    if args.api_keys_file is not None:
        return load_api_keys(args.api_keys_file)
    text = api_keys_from_environment()
    return parse_api_keys(text, "$CALUMMA_API_KEYS") if text else None
