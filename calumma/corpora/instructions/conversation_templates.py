"""Conversations of one prompt and one answer, from templates filled with real text and images.

Every document has the attributes category, kind and written-by = "template". Text and images keep
the license of the document they come from.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from calumma.corpora.captions import Split
from calumma.documents.document import Document, Part, Text, Turn


@dataclass(frozen=True, kw_only=True)
class SourceInfo:
    """Name, license and split of the text and images of a conversation."""

    name: str
    """Name of the document or line, unique in its category."""

    license: str
    split: Split


def make_conversation(
    category: str, kind: str, prompt: Sequence[Part | str], answer: Sequence[Part | str], source: SourceInfo
) -> Document:
    """Build a conversation of one prompt and its answer.

    Args:
        category: one of the six fine-tuning categories.
        kind: the task in the category.
        prompt: parts; strings are text.
        answer: parts; strings are text.
        source: name, license and split.
    """
    return Document(
        id=f"{kind}/{source.name}",
        source=category,
        license=source.license,
        messages=(Turn("user", _parts(prompt)), Turn("assistant", _parts(answer))),
        attributes={"category": category, "kind": kind, "split": source.split, "written-by": "template"},
    )


def _parts(parts: Sequence[Part | str]) -> tuple[Part, ...]:
    return tuple(Text(part) if isinstance(part, str) else part for part in parts)


def pick_template(choices: Sequence[str], name: str) -> str:
    """Pick one of several templates by a hash of `name`."""
    return choices[stable_hash(name) % len(choices)]


def stable_hash(name: str) -> int:
    """Return a 32-bit hash of a name that is the same in every process."""
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)
