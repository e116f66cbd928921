"""Prefetching: threads decode and resize images ahead of the encoder.

Pillow releases Python's lock while it decodes and resizes, so threads are enough.
"""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import PIL.Image

from calumma.documents.document import Image
from calumma.errors import ImageError
from calumma.tokens.image_preprocessing import ResizeMode, image_to_array, named_errors

ImageInput = tuple[Image | PIL.Image.Image, ResizeMode]
"""An image, decoded or not, and how it becomes square."""

PreparedImage = np.ndarray | ImageError
"""[3, R, R] uint8, or the error that prevented decoding."""


def default_decode_threads() -> int:
    """Return the default number of decoding threads: one per processor, at most 16."""
    return min(16, os.cpu_count() or 1)


def prefetch_images(
    images: Iterable[ImageInput], resolution: int, *, num_threads: int, prefetch: int
) -> Iterator[PreparedImage]:
    """Decode and resize images in threads and yield the results in order.

    Args:
        images: read one at a time as the queue empties, never all at once.
        resolution: R.
        num_threads: number of threads.
        prefetch: maximum number of images in the queue.
    """
    pending: deque[Future[PreparedImage]] = deque()
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="decode")
    try:
        for image, resize_mode in images:
            if len(pending) >= prefetch:
                yield pending.popleft().result()
            pending.append(pool.submit(_prepare, image, resolution, resize_mode))
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _prepare(image: Image | PIL.Image.Image, resolution: int, resize_mode: ResizeMode) -> PreparedImage:
    try:
        if not isinstance(image, Image):
            return image_to_array(image, resolution, resize_mode)
        decoded = image.open()
        with named_errors(image.display_name):
            return image_to_array(decoded, resolution, resize_mode)
    except ImageError as error:
        return error
