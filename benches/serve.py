"""Throughput of concurrent requests against sequential ones, and memory over thousands of requests.

    python benches/serve.py                  64 clients of a random 11M model; then 2,000 requests
    python benches/serve.py --model FOLDER   the same, of a given model
    python benches/serve.py --quick          a tiny model, to see that it runs

The server is started as users start it; the clients are threads of this process. The requests are
mixed: text only, images in prompts, generated images, streamed and complete responses. The peer
"one_at_a_time" is the same server with one request at a time. Memory is the resident memory of the
server's process, after a warm-up and after thousands of requests, of which every fifth client
disconnects at a random moment.
"""

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

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it can be run as a file

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
    """A running server."""

    port: int
    process: subprocess.Popen[str]

    def chat(self, body: dict[str, Any], disconnect_after: float | None = None) -> dict[str, Any] | None:
        """Return the response to a chat; None if the client disconnects after some seconds."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        try:
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
            if disconnect_after is not None:
                time.sleep(disconnect_after)
                return None
            response = connection.getresponse()
            data = response.read()
            assert response.status == 200, data
            return json.loads(data) if not body.get("stream") else {}
        finally:
            connection.close()

    def health(self) -> dict[str, Any]:
        """Return the state of the server."""
        return self._request("GET", "/health")

    def codes_per_image(self) -> int:
        """Return the number of codes of an image."""
        response = self._request("POST", "/tokenize", {"prompt": "a"})
        return int(response["codes_per_side"]) ** 2

    def _request(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            headers = {"Content-Type": "application/json"}
            connection.request(method, path, json.dumps(body), headers)
            response: dict[str, Any] = json.loads(connection.getresponse().read())
            return response
        finally:
            connection.close()

    def resident_bytes(self) -> int:
        """Return the memory of its process, without the image decoder processes."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(text.split("VmRSS:")[1].split()[0])

    def wait_until_idle(self) -> None:
        """Wait until no request is in flight."""
        while any(self.health()[name] for name in ("num_in_flight", "num_running", "num_waiting")):
            time.sleep(0.05)


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """Run `calumma serve`."""
    command = [sys.executable, "-m", "calumma", "serve", str(folder), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline().split(":")[2].split(";")[0])
        yield Server(port, process)
    finally:
        process.terminate()
        process.communicate()


def write_random(folder: Path, dim: int, layers: int, resolution: int) -> None:
    """Write a model folder with random weights: 8 pixels per code, 256 codes."""
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


def image_part(seed: int) -> dict[str, Any]:
    """Build a content part with a noise image."""
    values = np.random.default_rng(seed).integers(0, 256, (48, 64, 3), np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(values).save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


def chat_body(seed: int, max_tokens: int) -> dict[str, Any]:
    """Build one of the mixed requests."""
    parts: list[dict[str, Any]] = [{"type": "text", "text": TEXTS[seed % 3]}]
    if seed % 3 == 1:
        parts.append(image_part(seed))
    modalities: list[list[str] | None] = [["text"], None, ["image"], ["text"]]
    return {
        "messages": [{"role": "user", "content": parts}],
        "seed": seed,
        "max_tokens": max_tokens,
        "modalities": modalities[seed % 4],
        "stream": seed % 5 == 0,
    }


def load(server: Server, bodies: Sequence[dict[str, Any]], clients: int) -> Callable[[], None]:
    """Return a function that sends all requests with a number of clients."""

    def send() -> None:
        with ThreadPoolExecutor(clients) as threads:
            list(threads.map(server.chat, bodies))

    return send


def measure_memory(server: Server, count: int, max_tokens: int) -> dict[str, float]:
    """Measure the server's memory after a tenth of the requests and after all."""
    generator = random.Random(0)

    def send(number: int) -> None:
        disconnect_after = generator.random() * 0.3 if number % 5 == 0 else None
        server.chat(chat_body(number, max_tokens), disconnect_after)

    memory = []
    for numbers in (range(count // 10), range(count // 10, count)):
        with ThreadPoolExecutor(32) as threads:
            list(threads.map(send, numbers))
        server.wait_until_idle()
        memory.append(server.resident_bytes())
    return {
        "resident_bytes_after_a_tenth": memory[0],
        "resident_bytes_after_all": memory[1],
        "resident_growth": round(memory[1] / memory[0], 4),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="a model folder")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=2000, help="for the memory")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args(argv)
    num_requests, clients = (24, 8) if args.quick else (64, 64)
    with tempfile.TemporaryDirectory() as folder:
        path = args.model or Path(folder) / "model"
        if args.model is None:
            size = (64, 2, 32) if args.quick else (384, 6, 64)
            write_random(path, *size)
        with serving(path) as server:
            max_tokens = server.codes_per_image() + 16
            bodies = [chat_body(seed, max_tokens) for seed in range(num_requests)]
            sides = {OURS: load(server, bodies, clients), "one_at_a_time": load(server, bodies, 1)}
            rounds = 1 if args.quick else args.rounds
            seconds = median_seconds(time_interleaved(sides, num_rounds=rounds, synchronize=server.wait_until_idle))
            memory = measure_memory(server, 40 if args.quick else args.requests, max_tokens)
    rates: dict[str, dict[str, float | None]] = {
        name: {"requests_per_second": round(num_requests / s, 3)} for name, s in seconds.items()
    }
    rates[OURS] |= memory
    print(format_result("serve", rates, describe_machine(), clients=clients, requests=num_requests))


if __name__ == "__main__":
    main()
