"""Map every public name of versions before the first release to its present name.

Old names are not accepted. Where a config, an option, a request or a file uses one, the error
names the new one, from these tables. A value of "" says that the name is gone; its comment and the
error's text say what replaces it.
"""

from __future__ import annotations

FIELDS: dict[str, str] = {}
"""Dotted fields of TOML configs, which are `--dotted.options` as well: old -> new."""

OPTIONS: dict[str, str] = {}
"""Options of the command line that are no config fields: "--old" -> "--new"."""

REQUEST_FIELDS: dict[str, str] = {}
"""Fields of HTTP request bodies: old -> new."""
