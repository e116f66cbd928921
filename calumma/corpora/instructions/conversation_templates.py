"""One prompt and one answer by a template, from real words and pictures.

Templates are ours and say so: every document's attributes name the category it belongs to and that
a template wrote it. Words and pictures keep the licence of the document they come from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from calumma.corpora.captions import Split
from calumma.documents.document import Document, Part, Text, Turn


@dataclass(frozen=True, kw_only=True)
class SourceInfo:
    """Where the words and pictures of a conversation come from."""

    name: str
    """Of the document or line, unique in its category."""

    license: str
    split: Split


def make_conversation(
    category: str,
    kind: str,
    prompt: Sequence[Part | str],
    answer: Sequence[Part | str],
    source: SourceInfo,
) -> Document:
    """A conversation of one prompt and its answer.

    Args:
        category: one of the six kinds of fine-tuning data.
        kind: which task of the category it is.
        prompt: parts; strings are texts.
        answer: parts; strings are texts.
        of: where they come from.
    """
    return Document(
        id=f"{kind}/{source.name}",
        source=category,
        license=source.license,
        messages=(Turn("user", _parts(prompt)), Turn("assistant", _parts(answer))),
        attributes={
            "category": category,
            "kind": kind,
            "split": source.split,
            "written-by": "template",
        },
    )


def _parts(parts: Sequence[Part | str]) -> tuple[Part, ...]:
    return tuple(Text(part) if isinstance(part, str) else part for part in parts)


def pick_template(choices: Sequence[str], name: str) -> str:
    """One of several wordings, always the same one for a name."""
    return choices[stable_hash(name) % len(choices)]


def stable_hash(name: str) -> int:
    """A number below 2^32 that looks random and is always the same for a name."""
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)
