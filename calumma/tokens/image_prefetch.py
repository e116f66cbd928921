"""Prefetching: threads decode and resize images ahead of the encoder.

Pillow releases Python's lock while it decodes and resizes, so threads are enough.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import PIL.Image

from calumma.documents.document import Image
from calumma.errors import ImageError
from calumma.tokens.image_preprocessing import ResizeMode, named_errors

ImageInput = tuple[Image | PIL.Image.Image, ResizeMode]
"""An image, decoded or not, and how it becomes square."""

ToArray = Callable[[PIL.Image.Image, ResizeMode], np.ndarray]
"""Converts a decoded image to [3, H, W] uint8; raises `ImageError`."""

PreparedImage = np.ndarray | ImageError
"""[3, H, W] uint8, or the error that prevented decoding."""


def default_decode_threads() -> int:
    """Return the default number of decoding threads: one per processor, at most 16."""
    return min(16, os.cpu_count() or 1)


def prefetch_images(
    images: Iterable[ImageInput], to_array: ToArray, *, num_threads: int, prefetch: int
) -> Iterator[PreparedImage]:
    """Decode and resize images in threads and yield the results in order.

    Args:
        images: read one at a time as the queue empties, never all at once.
        to_array: resizes and crops.
        num_threads: number of threads.
        prefetch: maximum number of images in the queue.
    """
    pending: deque[Future[PreparedImage]] = deque()
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="decode")
    try:
        for image, resize_mode in images:
            if len(pending) >= prefetch:
                yield pending.popleft().result()
            pending.append(pool.submit(_prepare, image, to_array, resize_mode))
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _prepare(image: Image | PIL.Image.Image, to_array: ToArray, resize_mode: ResizeMode) -> PreparedImage:
    try:
        if not isinstance(image, Image):
            return to_array(image, resize_mode)
        decoded = image.open()
        with named_errors(image.display_name):
            return to_array(decoded, resize_mode)
    except ImageError as error:
        return error
