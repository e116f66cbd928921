"""API keys: made at random, kept as hashes, compared in constant time.

A file of keys has one line a key, `NAME SHA256`, where SHA256 are the 64 hex digits of the key's
hash; lines that begin with # are passed over. A key is 256 random bits, so a plain hash cannot be
guessed backwards.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

from calumma.errors import ConfigError
from calumma.files import write_text

_LINE = re.compile(r"(?P<name>[\w.@-]{1,64})\s+(?P<hash>[0-9a-fA-F]{64})")
_PREFIX = "cal-"


@dataclass(frozen=True)
class APIKeys:
    """Who may ask."""

    hashes: dict[str, bytes]
    """The SHA-256 of each key, by the name of its holder."""

    def lookup(self, key: str) -> str | None:
        """Whose key this is; None for nobody's. All are compared, so that time tells nothing."""
        asked = _hash(key)
        found = None
        for name, known in self.hashes.items():
            if hmac.compare_digest(asked, known):
                found = name
        return found


def parse_api_keys(text: str, where: str) -> APIKeys:
    """Read lines of keys.

    Raises:
        ConfigError: a line is no key, a name stands twice, or there is none.
    """
    hashes: dict[str, bytes] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None or match["name"] in hashes:
            # The line itself is not repeated: it may be a key that was pasted by mistake.
            raise ConfigError(
                f"{where}, line {number}: no key, or a name that stands twice; expected NAME and the "
                "64 hex digits of the key's SHA-256. `calumma serve --new-key NAME --keys FILE` "
                "writes such a line."
            )
        hashes[match["name"]] = bytes.fromhex(match["hash"])
    if not hashes:
        raise ConfigError(
            f"{where} holds no keys; expected at least one. "
            "Make one: calumma serve --new-key NAME --keys FILE."
        )
    return APIKeys(hashes)


def load_api_keys(path: Path) -> APIKeys:
    """Read a file of keys.

    Raises:
        ConfigError: it cannot be read, or is no file of keys.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} cannot be read as a file of keys ({error}); expected lines of NAME and SHA-256. "
            "Make one: calumma serve --new-key NAME --keys FILE."
        ) from error
    return parse_api_keys(text, str(path))


def create_api_key(name: str, path: Path) -> str:
    """Make a key, add its hash to a file (readable by its owner alone), and give the key.

    Raises:
        ConfigError: the name is no name, or has a key already.
    """
    if not re.fullmatch(r"[\w.@-]{1,64}", name):
        raise ConfigError(
            f"{name!r} cannot be the name of a key; expected 1 to 64 letters, digits, dots or "
            "dashes. Choose another."
        )
    if path.exists() and name in load_api_keys(path).hashes:
        raise ConfigError(
            f"{path} has a key of {name} already; expected another name. Choose one, or take its "
            "line out of the file first."
        )
    key = _PREFIX + secrets.token_urlsafe(32)
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    write_text(path, f"{before.rstrip()}\n{name} {_hash(key).hex()}\n".lstrip())
    path.chmod(0o600)
    return key


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="replace")).digest()
