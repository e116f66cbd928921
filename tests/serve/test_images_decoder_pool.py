"""Processes that decode pictures: shared, and replaced when they hang or die."""

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
def readers() -> Iterator[ImageDecoderPool]:
    made = ImageDecoderPool(8, ServeLimits(image_processes=1, image_timeout_seconds=20))
    yield made
    made.close()


def refusal(readers: ImageDecoderPool, data: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        readers.decode(data, "picture 1", "pad")
    return str(caught.value)


def test_threads_share_the_processes_and_each_gets_its_own_picture() -> None:
    readers = ImageDecoderPool(8, ServeLimits(image_processes=2))
    with ThreadPoolExecutor(8) as threads:
        seeds = list(range(16))
        made = list(threads.map(lambda seed: readers.decode(png(seed), "p", "pad"), seeds))
    readers.close()
    assert [one.tobytes() for one in made] == [
        to_square(noise(seed), 8, "pad").tobytes() for seed in seeds
    ]
    assert readers.num_crashes == 0


def test_what_is_no_picture_is_refused_and_the_process_goes_on(readers: ImageDecoderPool) -> None:
    assert "not an image" in refusal(readers, b"junk")
    assert readers.decode(png(1), "p", "pad").size == (8, 8)
    assert readers.num_crashes == 0


def stands_in(monkeypatch: pytest.MonkeyPatch, readers: ImageDecoderPool, code: str) -> None:
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
def test_a_process_that_dies_is_told_and_replaced(
    readers: ImageDecoderPool, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    stands_in(monkeypatch, readers, code)
    assert refusal(readers, png(1)) == (
        "picture 1: crashed its decoder; expected an ordinary picture. Save it anew as PNG, or leave "
        "it out."
    )
    assert readers.num_crashes == 1
    assert readers.decode(png(1), "p", "pad").size == (8, 8)


def test_a_process_that_hangs_is_ended_and_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    readers = ImageDecoderPool(8, ServeLimits(image_processes=1, image_timeout_seconds=0.2))
    stands_in(monkeypatch, readers, "import time; time.sleep(60)")
    assert refusal(readers, png(1)) == (
        "picture 1: took longer than 0.2 s to decode; expected an ordinary picture. Save it anew as "
        "PNG, or leave it out."
    )
    assert readers.num_crashes == 1
    readers.close()
