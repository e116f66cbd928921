"""Image decoder pool: processes are shared, and replaced when they hang or crash."""

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from calumma.errors import ImageError
from calumma.serve.config import ServeLimits
from calumma.serve.images.decoder_pool import ImageDecoderPool
from calumma.tokens.image_preprocessing import to_square
from tests.images import noise, png

CRASH = "image 1: {}; expected an ordinary image. Save it as PNG, or leave it out."


@pytest.fixture
def crashes() -> list[int]:
    return []


@pytest.fixture
def pool(crashes: list[int]) -> Iterator[ImageDecoderPool]:
    limits = ServeLimits(image_processes=1, image_timeout_seconds=20)
    pool = ImageDecoderPool(8, limits, on_crash=lambda: crashes.append(1))
    yield pool
    pool.close()


def error_of(pool: ImageDecoderPool, data: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        pool.decode(data, "image 1", "pad")
    return str(caught.value)


def test_threads_share_the_processes_and_each_gets_its_own_image() -> None:
    crashes: list[int] = []
    limits = ServeLimits(image_processes=2)
    pool = ImageDecoderPool(8, limits, on_crash=lambda: crashes.append(1))
    with ThreadPoolExecutor(8) as threads:
        seeds = list(range(16))
        images = list(threads.map(lambda seed: pool.decode(png(seed), "p", "pad"), seeds))
    pool.close()
    assert [image.tobytes() for image in images] == [to_square(noise(seed), 8, "pad").tobytes() for seed in seeds]
    assert crashes == []


def test_an_invalid_file_is_rejected_and_the_process_goes_on(pool: ImageDecoderPool, crashes: list[int]) -> None:
    assert error_of(pool, b"junk").startswith("image 1: ")
    assert pool.decode(png(1), "p", "pad").size == (8, 8)
    assert crashes == []


def replace_process(monkeypatch: pytest.MonkeyPatch, pool: ImageDecoderPool, code: str) -> None:
    """Run this code as the next process."""
    import subprocess

    start: Callable[..., subprocess.Popen[bytes]] = subprocess.Popen

    def start_code(command: list[str], **options: object) -> subprocess.Popen[bytes]:
        monkeypatch.undo()
        return start([sys.executable, "-c", code], **options)

    monkeypatch.setattr(subprocess, "Popen", start_code)


@pytest.mark.parametrize("code", ["", "import os; input(); os.kill(os.getpid(), 11)", "print('{}'); input()"])
def test_a_process_that_crashes_is_replaced(
    pool: ImageDecoderPool, crashes: list[int], monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    replace_process(monkeypatch, pool, code)
    assert error_of(pool, png(1)) == CRASH.format("crashed its decoder")
    assert crashes == [1]
    assert pool.decode(png(1), "p", "pad").size == (8, 8)


def test_a_process_that_hangs_is_killed_and_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    crashes: list[int] = []
    limits = ServeLimits(image_processes=1, image_timeout_seconds=0.2)
    pool = ImageDecoderPool(8, limits, on_crash=lambda: crashes.append(1))
    replace_process(monkeypatch, pool, "import time; time.sleep(60)")
    assert error_of(pool, png(1)) == CRASH.format("took longer than 0.2 s to decode")
    assert crashes == [1]
    pool.close()
