"""The command line listens to signals; after a test nobody does."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from calumma.runtime import STOP


@pytest.fixture(autouse=True)
def nobody_listens() -> Iterator[None]:
    """Put back what the process did on signals, and forget a wish to stop."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # Tests that were started in the background of a shell begin deaf to Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    STOP.is_requested = False
