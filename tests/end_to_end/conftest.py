"""The road's tests call the command in the process of the tests, too."""

from tests.cli.conftest import restore_signal_handlers as restore_signal_handlers
