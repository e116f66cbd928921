"""Restore the signal handlers that the command line installs."""

import signal
from collections.abc import Iterator

import pytest

from calumma.runtime import STOP


@pytest.fixture(autouse=True)
def restore_signal_handlers() -> Iterator[None]:
    """Restore the handlers after each test, and clear the stop request."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # A shell starts background jobs with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    STOP.is_requested = False
