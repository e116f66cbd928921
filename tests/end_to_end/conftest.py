"""The road's tests call the command in the process of the tests, too."""

from tests.cli.conftest import nobody_listens as nobody_listens
