"""Pictures decoded and fitted by threads, ahead of the encoder that waits for them.

Pillow lets go of Python's lock while it decodes and resizes, so that threads are enough.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import PIL.Image

from calumma.documents.document import Image
from calumma.errors import ImageError
from calumma.tokens.image_preprocessing import ResizeMode
from calumma.tokens.pixels import image_to_array

ImageInput = tuple[Image | PIL.Image.Image, ResizeMode]
"""A picture, opened or still to be opened, and how it becomes square."""

PreparedImage = np.ndarray | ImageError
"""[3, R, R] uint8, or why there is none."""


def default_decode_threads() -> int:
    """Threads that decode: as many as processors, but at most 16."""
    return min(16, os.cpu_count() or 1)


def prefetch_images(
    images: Iterable[ImageInput], resolution: int, *, num_threads: int, prefetch: int
) -> Iterator[PreparedImage]:
    """Each picture as [3, R, R] uint8, or the reason why it is none, in the order given.

    Args:
        pictures: taken one by one as room is made, never all at once.
        resolution: R.
        workers: threads that decode.
        ahead: pictures that are decoded, or being decoded, before they are asked for, at most.
    """
    pending: deque[Future[PreparedImage]] = deque()
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="decode")
    try:
        for picture, fit in images:
            if len(pending) >= prefetch:
                yield pending.popleft().result()
            pending.append(pool.submit(_prepare, picture, resolution, fit))
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _prepare(picture: Image | PIL.Image.Image, resolution: int, fit: ResizeMode) -> PreparedImage:
    try:
        opened = picture.open() if isinstance(picture, Image) else picture
        return image_to_array(opened, resolution, fit)
    except ImageError as error:
        return error
