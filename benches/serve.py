"""Many clients at once against one at a time, and memory over thousands of requests.

    python benches/serve.py                  64 clients of a random 11M; then 2,000 requests
    python benches/serve.py --model FOLDER   the same, of a model of yours
    python benches/serve.py --quick          a tiny one, to see that it runs

A server is started as users start it; the clients are threads here. The requests are mixed: text
alone, pictures in prompts, pictures drawn, streamed and whole. The peer "one_at_a_time" is the same
server asked the same, each request when the one before is answered. Memory is what the server's
process holds (resident), first after a warm-up, then after thousands of requests of which every
fifth client hangs up at a random moment.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import io
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a file, it finds its neighbours too

from benches.measure import OURS, describe_machine, format_result, median_seconds, time_interleaved
from calumma.checkpoints.model_folder import ModelComponents, save_model
from calumma.model.config import DecoderConfig
from calumma.model.decoder import Decoder
from calumma.tokens.folder import Tokenizers
from calumma.tokens.image import ImageTokenizer
from calumma.tokens.text import TextTokenizer
from calumma.tokens.vq.config import VQConfig
from calumma.tokens.vq.network import VQModel

TEXTS = ["a large red circle on a blue ground", "what is this?", "draw a small green cross, please"]


@dataclass(frozen=True)
class Server:
    """A server that listens."""

    port: int
    process: subprocess.Popen[str]

    def ask(self, body: dict[str, Any], leave_after: float | None = None) -> dict[str, Any] | None:
        """The answer to a chat; None where the client hangs up after so many seconds."""
        line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        try:
            head = {"Content-Type": "application/json"}
            line.request("POST", "/v1/chat/completions", json.dumps(body), head)
            if leave_after is not None:
                time.sleep(leave_after)
                return None
            response = line.getresponse()
            told = response.read()
            assert response.status == 200, told
            return json.loads(told) if not body.get("stream") else {}
        finally:
            line.close()

    def health(self) -> dict[str, Any]:
        """What it says of itself."""
        return self._told("GET", "/health")

    def codes_per_image(self) -> int:
        """How many codes a picture has."""
        told = self._told("POST", "/v1/tokens", {"prompt": "a"})
        return int(told["codes_per_side"]) ** 2

    def _told(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            line.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
            told: dict[str, Any] = json.loads(line.getresponse().read())
            return told
        finally:
            line.close()

    def resident_bytes(self) -> int:
        """Memory of its process, that of the processes that decode pictures left out."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(text.split("VmRSS:")[1].split()[0])

    def settle(self) -> None:
        """Wait until nothing is under way."""
        while any(self.health()[name] for name in ("answers", "running", "waiting")):
            time.sleep(0.05)


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """The command `calumma serve`, listening."""
    command = [sys.executable, "-m", "calumma", "serve", str(folder), "--port", "0"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline().split(":")[2].split(";")[0])
        yield Server(port, process)
    finally:
        process.terminate()
        process.communicate()


def write_random(folder: Path, dim: int, layers: int, resolution: int) -> None:
    """A model folder of drawn weights: 8 px to a code's side, 256 codes."""
    text = TextTokenizer.train(TEXTS * 4, num_text=300, num_codes=256)
    shape = VQConfig(
        resolution=resolution,
        base_channels=32,
        channel_multipliers=(1, 1, 2, 2),
        num_res_blocks=1,
        num_codes=256,
        code_dim=8,
    )
    decoder = Decoder(
        DecoderConfig(
            vocabulary_size=text.vocabulary.size,
            model_dim=dim,
            num_layers=layers,
            num_heads=dim // 32,
            num_kv_heads=dim // 32,
            feed_forward_dim=dim * 8 // 3 // 32 * 32,
            max_seq_len=512,
        )
    )
    decoder.init_weights(0)
    image = ImageTokenizer(VQModel(shape).eval())
    save_model(folder, ModelComponents(decoder.eval(), Tokenizers(text, image)))


def picture(seed: int) -> dict[str, Any]:
    """A part with a picture of noise."""
    values = np.random.default_rng(seed).integers(0, 256, (48, 64, 3), np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(values).save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


def request(seed: int, room: int) -> dict[str, Any]:
    """One of the mix."""
    parts: list[dict[str, Any]] = [{"type": "text", "text": TEXTS[seed % 3]}]
    if seed % 3 == 1:
        parts.append(picture(seed))
    kinds: list[list[str] | None] = [["text"], None, ["image"], ["text"]]
    return {
        "messages": [{"role": "user", "content": parts}],
        "seed": seed,
        "max_tokens": room,
        "modalities": kinds[seed % 4],
        "stream": seed % 5 == 0,
    }


def load_of(server: Server, requests: Sequence[dict[str, Any]], clients: int) -> Callable[[], None]:
    """All requests, by so many clients."""

    def work() -> None:
        with ThreadPoolExecutor(clients) as threads:
            list(threads.map(server.ask, requests))

    return work


def memory_over(server: Server, count: int, room: int) -> dict[str, float]:
    """What the server holds after a tenth of the requests and after all."""
    chance = random.Random(0)

    def visit(number: int) -> None:
        leave = chance.random() * 0.3 if number % 5 == 0 else None
        server.ask(request(number, room), leave)

    held = []
    for numbers in (range(count // 10), range(count // 10, count)):
        with ThreadPoolExecutor(32) as threads:
            list(threads.map(visit, numbers))
        server.settle()
        held.append(server.resident_bytes())
    return {
        "resident_bytes_after_a_tenth": held[0],
        "resident_bytes_after_all": held[1],
        "resident_growth": round(held[1] / held[0], 4),
    }


def main(words: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="a model folder")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=2000, help="for the memory")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args(words)
    many, clients = (24, 8) if args.quick else (64, 64)
    with tempfile.TemporaryDirectory() as folder:
        path = args.model or Path(folder) / "model"
        if args.model is None:
            size = (64, 2, 32) if args.quick else (384, 6, 64)
            write_random(path, *size)
        with serving(path) as server:
            room = server.codes_per_image() + 16
            requests = [request(seed, room) for seed in range(many)]
            sides = {
                OURS: load_of(server, requests, clients),
                "one_at_a_time": load_of(server, requests, 1),
            }
            rounds = 1 if args.quick else args.rounds
            seconds = median_seconds(
                time_interleaved(sides, num_rounds=rounds, synchronize=server.settle)
            )
            held = memory_over(server, 40 if args.quick else args.requests, room)
    rates: dict[str, dict[str, float | None]] = {
        name: {"requests_per_second": round(many / took, 3)} for name, took in seconds.items()
    }
    rates[OURS] |= held
    print(format_result("serve", rates, describe_machine(), clients=clients, requests=many))


if __name__ == "__main__":
    main()
