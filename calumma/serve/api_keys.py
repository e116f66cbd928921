"""API keys: generated at random, stored as hashes, compared in constant time.

A key file has one key per line, `NAME SHA256`, where SHA256 is the hash of the key in 64 hex
digits; lines that begin with # are comments. A key has 256 random bits, so an unsalted hash
cannot be inverted.
"""

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
    """The API keys that a server accepts."""

    hashes: dict[str, bytes]
    """SHA-256 of each key, by its name."""

    def lookup(self, key: str) -> str | None:
        """Return the name of a key, or None if unknown.

        All hashes are compared, so the time taken reveals nothing.
        """
        given = _hash(key)
        found = None
        for name, known in self.hashes.items():
            if hmac.compare_digest(given, known):
                found = name
        return found


def parse_api_keys(text: str, where: str) -> APIKeys:
    """Parse the lines of a key file.

    Raises:
        ConfigError: a line is invalid, a name occurs twice, or there is no key.
    """
    hashes: dict[str, bytes] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None or match["name"] in hashes:
            # The line is not repeated in the message: it may be a key pasted by mistake.
            raise ConfigError(
                f"{where}, line {number}: not a key, or a name that occurs twice; expected NAME and the 64 hex digits "
                "of the key's SHA-256. `calumma serve --create-api-key NAME --api-keys-file FILE` writes such a line."
            )
        hashes[match["name"]] = bytes.fromhex(match["hash"])
    if not hashes:
        raise ConfigError(
            f"{where} contains no keys; expected at least one. Create one: calumma serve "
            "--create-api-key NAME --api-keys-file FILE."
        )
    return APIKeys(hashes)


def load_api_keys(path: Path) -> APIKeys:
    """Read a key file.

    Raises:
        ConfigError: it cannot be read or parsed.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} cannot be read as a key file ({error}); expected lines of NAME and SHA-256. "
            "Create one: calumma serve --create-api-key NAME --api-keys-file FILE."
        ) from error
    return parse_api_keys(text, str(path))


def create_api_key(name: str, path: Path) -> str:
    """Generate a key, append its hash to a key file (mode 600), and return the key.

    Raises:
        ConfigError: the name is invalid or already has a key.
    """
    if not re.fullmatch(r"[\w.@-]{1,64}", name):
        raise ConfigError(
            f"{name!r} cannot be the name of a key; expected 1 to 64 letters, digits, dots or "
            "dashes. Choose another name."
        )
    if path.exists() and name in load_api_keys(path).hashes:
        raise ConfigError(
            f"{path} already has a key for {name}; expected another name. Choose one, or delete "
            "its line from the file first."
        )
    key = _PREFIX + secrets.token_urlsafe(32)
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    write_text(path, f"{before.rstrip()}\n{name} {_hash(key).hex()}\n".lstrip())
    path.chmod(0o600)
    return key


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="replace")).digest()
