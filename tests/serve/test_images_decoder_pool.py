"""Processes that decode images: shared_server, and replaced when they hang or die."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from calumma.errors import ImageError
from calumma.serve.config import ServeLimits
from calumma.serve.images.decoder_pool import ImageDecoderPool
from calumma.tokens.image_preprocessing import to_square
from tests.images import noise, png


@pytest.fixture
def pool() -> Iterator[ImageDecoderPool]:
    made = ImageDecoderPool(8, ServeLimits(image_processes=1, image_timeout_seconds=20))
    yield made
    made.close()


def refusal(pool: ImageDecoderPool, data: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        pool.decode(data, "image 1", "pad")
    return str(caught.value)


def test_threads_share_the_processes_and_each_gets_its_own_image() -> None:
    pool = ImageDecoderPool(8, ServeLimits(image_processes=2))
    with ThreadPoolExecutor(8) as threads:
        seeds = list(range(16))
        made = list(threads.map(lambda seed: pool.decode(png(seed), "p", "pad"), seeds))
    pool.close()
    assert [one.tobytes() for one in made] == [
        to_square(noise(seed), 8, "pad").tobytes() for seed in seeds
    ]
    assert pool.num_crashes == 0


def test_what_is_no_image_is_refused_and_the_process_goes_on(pool: ImageDecoderPool) -> None:
    assert "not an image" in refusal(pool, b"junk")
    assert pool.decode(png(1), "p", "pad").size == (8, 8)
    assert pool.num_crashes == 0


def stands_in(monkeypatch: pytest.MonkeyPatch, pool: ImageDecoderPool, code: str) -> None:
    """Have this run as the next process."""
    import subprocess

    start: Callable[..., subprocess.Popen[bytes]] = subprocess.Popen

    def instead(command: list[str], **options: object) -> subprocess.Popen[bytes]:
        monkeypatch.undo()
        return start([sys.executable, "-c", code], **options)

    monkeypatch.setattr(subprocess, "Popen", instead)


@pytest.mark.parametrize(
    "code", ["", "import os; input(); os.kill(os.getpid(), 11)", "print('{}'); input()"]
)
def test_a_process_that_dies_is_reported_and_replaced(
    pool: ImageDecoderPool, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    stands_in(monkeypatch, pool, code)
    assert refusal(pool, png(1)) == (
        "image 1: crashed its decoder; expected an ordinary image. Save it anew as PNG, or leave "
        "it out."
    )
    assert pool.num_crashes == 1
    assert pool.decode(png(1), "p", "pad").size == (8, 8)


def test_a_process_that_hangs_is_ended_and_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = ImageDecoderPool(8, ServeLimits(image_processes=1, image_timeout_seconds=0.2))
    stands_in(monkeypatch, pool, "import time; time.sleep(60)")
    assert refusal(pool, png(1)) == (
        "image 1: took longer than 0.2 s to decode; expected an ordinary image. Save it anew as "
        "PNG, or leave it out."
    )
    assert pool.num_crashes == 1
    pool.close()
