"""A public name means one thing: it is defined once in the package."""

from tests.style.tree import names_defined_twice

ALLOWED: set[str] = set()
"""Names that may be defined more than once; empty, and to be kept empty."""


def test_every_public_name_is_defined_once() -> None:
    assert {name: where for name, where in names_defined_twice().items() if name not in ALLOWED} == {}
