"""`calumma serve`: OpenAI's API and a web page around a model."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calumma.cli.command import Subparsers, add_command

if TYPE_CHECKING:
    from calumma.generate.model import Model
    from calumma.serve.api_keys import APIKeys
    from calumma.serve.config import C2PASigningConfig, ServeConfig, ServeLimits
    from calumma.serve.handler import Engine

_DESCRIPTION = """\
Serve a model: OpenAI's API and a web page (docs/serving.md)."""

_EXAMPLES = """\
  calumma serve out/demo/model                          then open http://127.0.0.1:8000
  calumma serve --new-key anna --keys keys.txt          make a key, and print it once
  calumma serve MODEL --host 0.0.0.0 --keys keys.txt --limit max_pixels=4000000"""


def add_serve_command(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = add_command(subparsers, "serve", "MODEL [options]", _DESCRIPTION, _EXAMPLES)
    parser.set_defaults(run=_run)
    add = parser.add_argument
    add("model", type=Path, nargs="?", metavar="MODEL", help="a model folder")
    add("--host", default="127.0.0.1", metavar="H", help="address to listen at (127.0.0.1)")
    add("--port", type=int, default=8000, metavar="N", help="port; 0 takes a free one (8000)")
    add("--name", metavar="NAME", help="what clients call the model (its folder's name)")
    add("--keys", type=Path, metavar="FILE", help="keys of clients (default: $CALUMMA_API_KEYS)")
    add("--new-key", metavar="NAME", help="add a key for NAME to --keys FILE, print it and leave")
    queue = "answers that may run or wait at once (128); --limit NAME=N: another limit"
    add("--max-queue", type=int, metavar="N", help=queue)
    add("--limit", action="append", default=[], metavar="NAME=N", help=argparse.SUPPRESS)
    add("--allow-host", action="append", default=[], metavar="HOST", help="pictures from there")
    add("--filter", action="append", default=[], metavar="NAME", help="nudity or module:function")
    sign = "certificates (PEM) to sign pictures, --c2pa-key FILE; --c2pa-timestamps URL"
    add("--c2pa", type=Path, metavar="FILE", help=sign)
    add("--c2pa-key", type=Path, metavar="FILE", help=argparse.SUPPRESS)
    add("--c2pa-timestamps", metavar="URL", help=argparse.SUPPRESS)
    add("--log-prompts", action="store_true", help="write prompts into the log")
    many = "copies, through Ray Serve (1); --tensor N: processes that share a decoder (1)"
    add("--replicas", type=int, default=1, metavar="N", help=many)
    add("--tensor", type=int, default=1, metavar="N", help=argparse.SUPPRESS)
    add("--fleet", action="append", default=[], metavar="URL", help="let vLLM there choose ids")
    device = "auto, cpu or cuda; --dtype bfloat16, --weights int8 or fp8, --compile"
    add("--device", default="auto", metavar="D", help=device)
    add("--dtype", default="float32", metavar="D", help=argparse.SUPPRESS)
    add("--weights", default="plain", metavar="W", help=argparse.SUPPRESS)
    add("--compile", action="store_true", help=argparse.SUPPRESS)


def _run(args: argparse.Namespace) -> None:
    """Serve until a signal comes, or make a key.

    Raises:
        Interrupted: a signal came; all that was under way is answered or handed back.
    """
    from calumma.serve.api_keys import create_api_key

    if args.new_key is not None:
        if args.keys is None:
            raise _mistake("--new-key needs --keys FILE, where its hash is kept")
        print(create_api_key(args.new_key, args.keys))
        return
    if args.model is None:
        raise _mistake("no MODEL; expected a model folder")
    _require_packages()
    _serve(args)


def _mistake(found: str) -> Exception:
    from calumma.errors import ConfigError

    return ConfigError(f"{found}; `calumma serve --help` says what is expected.")


def _require_packages() -> None:
    from calumma.errors import ConfigError

    try:
        import fastapi  # noqa: F401 - only whether it is there
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"serving needs {error.name}, which is not installed. "
            "`pip install 'calumma[serve]'` brings it."
        ) from error


def _serve(args: argparse.Namespace) -> None:
    from calumma.errors import Interrupted
    from calumma.runtime import STOP
    from calumma.serve.app import check_exposure
    from calumma.serve.provenance.signing import load_image_signer

    config, keys = _config(args), _keys(args)
    check_exposure(config, keys)
    if config.c2pa is not None:
        # Tried out before the model is read, which takes longer.
        load_image_signer(config.c2pa)
    _require_ranks(args)
    if args.replicas > 1:
        _serve_many(args, config, keys)
    else:
        _serve_one(args, config, keys)
    if STOP.is_requested:
        raise Interrupted("stopped by a signal; what was under way is answered or handed back.")


def _require_ranks(args: argparse.Namespace) -> None:
    if args.tensor < 1:
        raise _mistake(f"--tensor {args.tensor}; expected at least 1")
    if args.tensor > 1 and args.fleet:
        raise _mistake(
            "--tensor and --fleet; expected one of them, as a fleet needs no decoder here"
        )
    if args.tensor > 1 and (args.compile or args.weights != "plain"):
        raise _mistake(
            "--tensor with --weights or --compile; expected plain weights, which are cut, and blocks "
            "that are not compiled"
        )


def _serve_one(args: argparse.Namespace, config: ServeConfig, keys: APIKeys | None) -> None:
    import sys

    from calumma.errors import RankError
    from calumma.generate.tensor_parallel.tp_engine import TensorParallelAsyncEngine
    from calumma.serve.app import build_app, build_handler
    from calumma.serve.logs import log_to
    from calumma.serve.server import Server, bind

    with bind(config.host, config.port) as listening, _opened(args, config) as (model, live):
        service = build_handler(model, config, live=live)
        server = Server(build_app(service, keys), service.desk)
        if isinstance(live, TensorParallelAsyncEngine):
            live.worker_group.on_failure(lambda _: server.stop())
        with log_to(sys.stderr):
            _tell(config, *listening.getsockname()[:2])
            server.run([listening])
        if isinstance(service.live.error, RankError):
            raise service.live.error


@contextmanager
def _opened(args: argparse.Namespace, config: ServeConfig) -> Iterator[tuple[Model, Engine | None]]:
    """The model, and what answers, where that is no engine of this process alone."""
    from calumma.generate.model import load
    from calumma.generate.tensor_parallel.tp_engine import TensorParallelAsyncEngine
    from calumma.serve.backends.vllm import VLLMBackend

    if args.tensor > 1:
        with TensorParallelAsyncEngine(
            args.model, args.tensor, device=args.device, dtype=args.dtype
        ) as live:
            yield live.model, live
        return
    model = load(args.model, device=args.device, dtype=args.dtype, weights=args.weights)
    if args.compile:
        model.compile()
    yield model, VLLMBackend(model, args.fleet, config.served_model_name) if args.fleet else None


def _serve_many(args: argparse.Namespace, config: ServeConfig, keys: APIKeys | None) -> None:
    from calumma.serve.backends.ray_serve import ReplicaConfig, serve_replicas

    replicas = ReplicaConfig(
        model=args.model,
        config=config,
        api_keys=keys,
        num_replicas=args.replicas,
        device=args.device,
        dtype=args.dtype,
        weights=args.weights,
        compile=args.compile,
        tensor_parallel_size=args.tensor,
    )
    serve_replicas(replicas, lambda: _tell(config, config.host, config.port))


def _tell(config: ServeConfig, host: str, port: int) -> None:
    shown = f"[{host}]" if ":" in host else host
    print(f"serving {config.served_model_name} at http://{shown}:{port}; Ctrl-C stops.", flush=True)


def _config(args: argparse.Namespace) -> ServeConfig:
    from calumma.serve.config import ServeConfig

    return ServeConfig(
        served_model_name=args.name or args.model.resolve().name,
        limits=limits_of(args.limit, args.max_queue),
        host=args.host,
        port=args.port,
        allowed_media_domains=tuple(host.lower() for host in args.allow_host),
        content_filters=tuple(args.filter),
        log_prompts=args.log_prompts,
        c2pa=_credential(args),
    )


def _credential(args: argparse.Namespace) -> C2PASigningConfig | None:
    from calumma.serve.config import C2PASigningConfig

    certificates, key, timestamps = args.c2pa, args.c2pa_key, args.c2pa_timestamps
    if certificates is None:
        if key is not None:
            raise _mistake("--c2pa-key needs --c2pa FILE, the certificates for which it signs")
        if timestamps is not None:
            raise _mistake("--c2pa-timestamps needs --c2pa FILE and --c2pa-key FILE")
        return None
    if key is None:
        raise _mistake("--c2pa needs --c2pa-key FILE, the key of its first certificate")
    # Replicas may stand in other folders.
    return C2PASigningConfig(
        certificates=certificates.absolute(), private_key=key.absolute(), timestamp_url=timestamps
    )


def limits_of(changes: Sequence[str], max_queue: int | None = None) -> ServeLimits:
    """The limits, with some changed: NAME=N.

    Raises:
        ConfigError: there is no limit of a name, or a value is no number above 0.
    """
    from calumma.errors import ConfigError
    from calumma.serve.config import ServeLimits

    kinds = {field.name: field.type for field in dataclasses.fields(ServeLimits)}
    values: dict[str, Any] = {} if max_queue is None else {"max_queue": max_queue}
    for change in changes:
        name, _, text = change.partition("=")
        try:
            values[name] = (int if kinds[name] == "int" else float)(text)
        except (KeyError, ValueError) as error:
            raise ConfigError(
                f"--limit {change} is not understood; expected NAME=N with one of "
                f"{', '.join(kinds)}. Fix it."
            ) from error
    return ServeLimits(**values)


def _keys(args: argparse.Namespace) -> APIKeys | None:
    from calumma.runtime import api_keys_from_environment
    from calumma.serve.api_keys import load_api_keys, parse_api_keys

    if args.keys is not None:
        return load_api_keys(args.keys)
    text = api_keys_from_environment()
    return parse_api_keys(text, "$CALUMMA_API_KEYS") if text else None
