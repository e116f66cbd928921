"""The life of a follower that does not want to; see test_group.py. It needs no torch."""

from multiprocessing.connection import Connection


def sulk(line: Connection) -> None:
    """Say so, and end."""
    line.send("it would rather not.")
