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
from calumma.tokens.pixels import to_array
from calumma.tokens.squares import Fit

Picture = tuple[Image | PIL.Image.Image, Fit]
"""A picture, opened or still to be opened, and how it becomes square."""

Prepared = np.ndarray | ImageError
"""[3, R, R] uint8, or why there is none."""


def default_workers() -> int:
    """Threads that decode: as many as processors, but at most 16."""
    return min(16, os.cpu_count() or 1)


def arrays_ahead(
    pictures: Iterable[Picture], resolution: int, *, workers: int, ahead: int
) -> Iterator[Prepared]:
    """Each picture as [3, R, R] uint8, or the reason why it is none, in the order given.

    Args:
        pictures: taken one by one as room is made, never all at once.
        resolution: R.
        workers: threads that decode.
        ahead: pictures that are decoded, or being decoded, before they are asked for, at most.
    """
    pending: deque[Future[Prepared]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        for picture, fit in pictures:
            if len(pending) >= ahead:
                yield pending.popleft().result()
            pending.append(pool.submit(_prepared, picture, resolution, fit))
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _prepared(picture: Image | PIL.Image.Image, resolution: int, fit: Fit) -> Prepared:
    try:
        opened = picture.open() if isinstance(picture, Image) else picture
        return to_array(opened, resolution, fit)
    except ImageError as error:
        return error
