"""`calumma serve`: its options and their errors."""

import json
import multiprocessing
import os
import signal
import sys
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from urllib.request import Request, urlopen

import pytest

from calumma.checkpoints.model_folder import ModelComponents, save_model
from calumma.cli import serve
from calumma.cli.main import main
from calumma.cli.serve import serve_adapters, serve_limits
from calumma.errors import ConfigError
from calumma.generate.tensor_parallel import launcher
from calumma.serve.api_keys import load_api_keys
from calumma.serve.config import ServeLimits
from tests.launch import SERVER


def error_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["serve", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_new_key_is_printed_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys"
    assert main(["serve", "--create-api-key", "anna", "--api-keys-file", str(path)]) == 0
    key = capsys.readouterr().out.strip()
    assert load_api_keys(path).lookup(key) == "anna"


SEE_HELP = "`calumma serve --help` lists the options."
VLLM_SERVER = ("--backend", "vllm", "--url", "http://a")


def test_a_key_without_a_file_is_rejected(capsys: pytest.CaptureFixture[str]) -> None:
    assert error_of(capsys, "--create-api-key", "anna") == (
        f"error: --create-api-key needs --api-keys-file FILE for the key's hash; {SEE_HELP}"
    )


def test_without_a_model_the_one_in_the_package_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[Namespace] = []
    monkeypatch.setattr(serve, "_serve", served.append)
    assert main(["serve"]) == 0
    assert served[0].model == Path("still-life")
    assert serve._config(served[0]).served_model_name == "still-life"


def test_certificates_need_their_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, file = str(tmp_path), str(tmp_path / "file.pem")
    assert error_of(capsys, model, "--c2pa", file) == (
        f"error: --c2pa needs --c2pa-key FILE, the key of its first certificate; {SEE_HELP}"
    )
    assert error_of(capsys, model, "--c2pa-key", file) == (
        f"error: --c2pa-key needs --c2pa FILE, the certificates of the key; {SEE_HELP}"
    )
    assert error_of(capsys, model, "--c2pa-timestamps", "http://a.example") == (
        f"error: --c2pa-timestamps needs --c2pa FILE and --c2pa-key FILE; {SEE_HELP}"
    )


def test_invalid_certificates_are_rejected_before_the_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert error_of(capsys, "no-model", "--c2pa", "a.pem", "--c2pa-key", "b.pem") == (
        f"error: {tmp_path}/a.pem cannot be read (No such file or directory); expected "
        "certificates in PEM. Fix its path or its permissions."
    )


def test_a_public_server_without_keys_is_rejected_before_the_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CALUMMA_API_KEYS", raising=False)
    line = error_of(capsys, str(tmp_path), "--host", "0.0.0.0")
    assert line.startswith("error: host 0.0.0.0 is reachable from other machines, and there are no API keys;")
    monkeypatch.setenv("CALUMMA_API_KEYS", "nonsense")
    line = error_of(capsys, str(tmp_path), "--host", "0.0.0.0")
    assert line.startswith("error: $CALUMMA_API_KEYS, line 1: not a key")


def test_a_missing_package_is_reported_with_its_installation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    assert error_of(capsys, str(tmp_path)) == (
        "error: serving needs prometheus_client, which is not installed. `pip install 'calumma[serve]'` installs it."
    )


def test_limits_are_assigned_by_name() -> None:
    made = serve_limits(["max_pixels=9", "shutdown_grace_seconds=0.5"], 7)
    assert made == ServeLimits(max_pixels=9, shutdown_grace_seconds=0.5, max_concurrent_requests=7)
    for wrong in ("max_pixels", "max_pixels=x", "mana=3", "max_pixels=1.5"):
        with pytest.raises(ConfigError) as caught:
            serve_limits([wrong])
        assert str(caught.value).startswith(
            f"--limit {wrong} is invalid; expected NAME=N with one of max_concurrent_requests, "
        )


def test_an_old_limit_is_rejected_with_its_present_name() -> None:
    with pytest.raises(ConfigError) as caught:
        serve_limits(["grace_seconds=3"])
    assert str(caught.value) == "unknown limit grace_seconds; it is now shutdown_grace_seconds."


def test_invalid_combinations_of_backends_are_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert error_of(capsys, str(tmp_path), "--tensor-parallel-size", "0") == (
        f"error: --tensor-parallel-size 0; expected at least 1; {SEE_HELP}"
    )
    for words in (("--quantization", "int8"), ("--compile",)):
        assert error_of(capsys, str(tmp_path), "--tensor-parallel-size", "2", *words) == (
            "error: --tensor-parallel-size with --quantization or --compile; expected neither, as "
            f"only plain weights are sharded; {SEE_HELP}"
        )
    assert error_of(capsys, str(tmp_path), "--tensor-parallel-size", "2", *VLLM_SERVER) == (
        f"error: --tensor-parallel-size with --url; expected one of them, as vLLM runs the decoder; {SEE_HELP}"
    )


def test_servers_of_vllm_are_named_with_their_backend(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert error_of(capsys, str(tmp_path), "--url", "http://a") == (
        f"error: --url without --backend vllm; expected both, as the servers are vLLM's; {SEE_HELP}"
    )
    assert error_of(capsys, str(tmp_path), "--vllm-url", "http://a") == (
        "error: unknown option --vllm-url; it is now --url."
    )


def test_adapters_are_assigned_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert serve_adapters(["red=a", "blue=/b=c"]) == {"red": Path("a").absolute(), "blue": Path("/b=c")}
    for words in (["--adapter", "red"], ["--adapter", "red=a", "--adapter", "red=b"]):
        assert error_of(capsys, str(tmp_path), *words) == (
            f"error: --adapter {words[-1]}; expected NAME=DIR, each name once; {SEE_HELP}"
        )
    assert error_of(capsys, str(tmp_path), "--adapter", "red=a", "--tensor-parallel-size", "2") == (
        f"error: --adapter with --tensor-parallel-size or vLLM; expected it with neither; {SEE_HELP}"
    )


def test_tensor_parallel_ranks_serve_until_one_is_lost(
    model_parts: ModelComponents, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(tmp_path / "tiny", model_parts)
    monkeypatch.setattr(launcher, "SPAWN_CONTEXT", SERVER)
    ports: SimpleQueue[int] = SimpleQueue()
    monkeypatch.setattr(serve, "_print_url", lambda config, host, port: ports.put(port))

    def ask_and_kill() -> str:
        url = f"http://127.0.0.1:{ports.get(timeout=60)}/v1/chat/completions"
        body = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 9, "stream": True}
        request = Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urlopen(request, timeout=60) as answer:
            assert "[DONE]" in answer.read().decode()
        (worker,) = multiprocessing.active_children()
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGSTOP)
        with urlopen(request, timeout=60) as answer:
            worker.kill()
            result: str = answer.read().decode()
        return result

    with ThreadPoolExecutor(1) as other:
        result = other.submit(ask_and_kill)
        assert main(["serve", str(tmp_path / "tiny"), "--port", "0", "--tensor-parallel-size", "2"]) == 2
    assert "the server lost a worker process of its model; retry, or use another server." in result.result()
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: rank 1 of 2 has exited (SIGKILL); expected all of them, for each")
    assert multiprocessing.active_children() == []
