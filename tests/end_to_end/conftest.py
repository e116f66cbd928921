"""The end-to-end tests call the command in their own process, as the tests of cli do."""

from tests.cli.conftest import restore_signal_handlers as restore_signal_handlers
