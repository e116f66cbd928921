"""`calumma serve`: what it is result, and what it refuses to do."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from urllib.request import Request, urlopen

import pytest

from calumma.checkpoints.model_folder import ModelComponents, save_model
from calumma.cli import serve
from calumma.cli.main import main
from calumma.cli.serve import limits_of
from calumma.errors import ConfigError
from calumma.generate.tensor_parallel import launcher
from calumma.serve.api_keys import load_api_keys
from calumma.serve.config import ServeLimits
from tests.launch import SERVER


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["serve", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_new_key_is_printed_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys"
    assert main(["serve", "--new-key", "anna", "--keys", str(path)]) == 0
    key = capsys.readouterr().out.strip()
    assert load_api_keys(path).lookup(key) == "anna"


SEE_HELP = "`calumma serve --help` lists the options."


def test_a_key_without_a_file_and_a_server_without_a_model_are_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert refusal(capsys, "--new-key", "anna") == (
        f"error: --new-key needs --keys FILE, where its hash is kept; {SEE_HELP}"
    )
    assert refusal(capsys) == f"error: no MODEL; expected a model folder; {SEE_HELP}"


def test_certificates_and_their_key_come_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, file = str(tmp_path), str(tmp_path / "file.pem")
    assert refusal(capsys, model, "--c2pa", file) == (
        f"error: --c2pa needs --c2pa-key FILE, the key of its first certificate; {SEE_HELP}"
    )
    assert refusal(capsys, model, "--c2pa-key", file) == (
        f"error: --c2pa-key needs --c2pa FILE, the certificates for which it signs; {SEE_HELP}"
    )
    assert refusal(capsys, model, "--c2pa-timestamps", "http://a.example") == (
        f"error: --c2pa-timestamps needs --c2pa FILE and --c2pa-key FILE; {SEE_HELP}"
    )


def test_certificates_that_cannot_be_used_are_refused_before_the_model_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert refusal(capsys, "no-model", "--c2pa", "a.pem", "--c2pa-key", "b.pem") == (
        f"error: {tmp_path}/a.pem cannot be read (No such file or directory); expected certificates "
        "in PEM. Fix its path or its rights."
    )


def test_serving_all_the_world_without_keys_is_refused_before_the_model_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CALUMMA_API_KEYS", raising=False)
    line = refusal(capsys, str(tmp_path), "--host", "0.0.0.0")
    assert line.startswith("error: host 0.0.0.0 can be reached by others, and there are no keys;")
    monkeypatch.setenv("CALUMMA_API_KEYS", "nonsense")
    line = refusal(capsys, str(tmp_path), "--host", "0.0.0.0")
    assert line.startswith("error: $CALUMMA_API_KEYS, line 1: no key")


def test_without_the_packages_it_says_how_to_get_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    assert refusal(capsys, str(tmp_path)) == (
        "error: serving needs prometheus_client, which is not installed. "
        "`pip install 'calumma[serve]'` brings it."
    )


def test_limits_are_changed_by_name() -> None:
    made = limits_of(["max_pixels=9", "grace_seconds=0.5"], 7)
    assert made == ServeLimits(max_pixels=9, shutdown_grace_seconds=0.5, max_concurrent_requests=7)
    for wrong in ("max_pixels", "max_pixels=x", "mana=3", "max_pixels=1.5"):
        with pytest.raises(ConfigError) as caught:
            limits_of([wrong])
        assert str(caught.value).startswith(
            f"--limit {wrong} is not understood; expected NAME=N with one of max_queue, "
        )


def test_ranks_that_cannot_be_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refusal(capsys, str(tmp_path), "--tensor", "0") == (
        f"error: --tensor 0; expected at least 1; {SEE_HELP}"
    )
    for words in (("--weights", "int8"), ("--compile",)):
        assert refusal(capsys, str(tmp_path), "--tensor", "2", *words) == (
            "error: --tensor with --weights or --compile; expected plain weights, which are cut, and "
            f"blocks that are not compiled; {SEE_HELP}"
        )
    assert refusal(capsys, str(tmp_path), "--tensor", "2", "--fleet", "http://a") == (
        "error: --tensor and --fleet; expected one of them, as a fleet needs no decoder here; "
        f"{SEE_HELP}"
    )


def test_ranks_serve_until_one_is_lost_and_then_all_is_over(
    model_parts: ModelComponents,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save_model(tmp_path / "tiny", model_parts)
    monkeypatch.setattr(group, "CONTEXT", SERVER)
    ports: SimpleQueue[int] = SimpleQueue()
    monkeypatch.setattr(serve, "_tell", lambda config, host, port: ports.put(port))

    def ask_and_kill() -> str:
        url = f"http://127.0.0.1:{ports.get(timeout=60)}/v1/chat/completions"
        body = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 9, "stream": True}
        asked = Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urlopen(asked, timeout=60) as answer:
            assert "[DONE]" in answer.read().decode()
        (follower,) = multiprocessing.active_children()
        assert follower.pid is not None
        os.kill(follower.pid, signal.SIGSTOP)
        with urlopen(asked, timeout=60) as answer:
            follower.kill()
            result: str = answer.read().decode()
        return result

    with ThreadPoolExecutor(1) as other:
        result = other.submit(ask_and_kill)
        assert main(["serve", str(tmp_path / "tiny"), "--port", "0", "--tensor", "2"]) == 2
    assert "the server has lost a part of its model, and ends; ask another one" in result.result()
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: rank 1 of 2 has ended (SIGKILL); expected all of them, for each")
    assert multiprocessing.active_children() == []
