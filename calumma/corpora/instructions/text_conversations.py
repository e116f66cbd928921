"""Text and code: questions about words out of WordNet, and examples out of documentation."""

from __future__ import annotations

import re
from collections.abc import Iterator

from calumma.corpora.captions import group_split
from calumma.corpora.instructions.conversation_templates import (
    SourceInfo,
    make_conversation,
    pick_template,
    stable_hash,
)
from calumma.documents.document import Document

_GLOSS = re.compile(r"(?P<words>[^()]+) \((?P<part>\w+)\): (?P<gloss>.+)")

MEANING_PROMPTS = (
    'What does "{word}" mean?',
    "Define the {part} {word}.",
    "What is meant by {word} ({part})?",
)
WORD_PROMPTS = ("Which {part} means: {gloss}?", "What is the word for this? {gloss}")

PROGRAM_PROMPTS = ("Write Python code. {task}", "How is this done in Python? {task}")
OUTPUT_PROMPTS = ("What does this Python code print?\n{code}", "What comes out?\n{code}")

MAX_CODE_CHARS = 400
"""Letters of a task, of code and of what it prints, at most."""


def gloss_conversations(document: Document) -> Iterator[Document]:
    """Questions from a page of glosses: for the odd ones the meaning, for the even ones the word.

    Args:
        document: lines as the corpus "wordnet" has them: "sea lion, otary (noun): an eared seal".
    """
    for number, line in enumerate(document.text.splitlines()):
        found = _GLOSS.fullmatch(line)
        if not found:
            continue
        word, gloss = found["words"].split(", ")[0], found["gloss"].split("; ")[0]
        of = _source_info(document, number, word)
        if number % 2:
            asked = pick_template(MEANING_PROMPTS, of.name).format(word=word, part=found["part"])
            yield make_conversation("text", "meaning", [asked], [gloss], of)
        else:
            asked = pick_template(WORD_PROMPTS, of.name).format(gloss=gloss, part=found["part"])
            yield make_conversation("text", "word", [asked], [word], of)


def _source_info(document: Document, number: int, group: str) -> SourceInfo:
    # By the word, not by the line: a word that is held out is so wherever it stands.
    digits = f"{stable_hash(group.lower()):08x}"
    name = f"{document.id}/{number}"
    return SourceInfo(name=name, license=document.license, split=group_split(digits))


def code_conversations(document: Document) -> Iterator[Document]:
    """Tasks from a page of documentation, wherever it shows an interactive session.

    What a sentence that ends in a colon announces is a task; where the session prints something,
    what it prints is asked for too.
    """
    lines = document.text.splitlines()
    place = 0
    while place < len(lines):
        if not lines[place].startswith(">>> "):
            place += 1
            continue
        task = lines[place - 1].strip() if place else ""
        code, printed, place = _session(lines, place)
        whole = max(len(task), len(code), len(printed)) <= MAX_CODE_CHARS
        of = _source_info(document, place, document.id)
        if whole and task.endswith(":") and len(task.split()) > 2:
            asked = pick_template(PROGRAM_PROMPTS, of.name).format(task=task[:-1] + ".")
            yield make_conversation("code", "program", [asked], [code], of)
        if whole and printed:
            asked = pick_template(OUTPUT_PROMPTS, of.name).format(code=code)
            yield make_conversation("code", "printed", [asked], [printed], of)


def _session(lines: list[str], place: int) -> tuple[str, str, int]:
    """The code from a line on, what its last statement prints, and the place behind both."""
    code: list[str] = []
    while place < len(lines) and lines[place].startswith((">>> ", "... ")):
        code.append(lines[place][4:])
        place += 1
    printed: list[str] = []
    # Behind a session prose goes on without a mark: one line is sure to be printed, if it looks so.
    while place < len(lines) and _is_printed(lines[place]) and len(printed) < 3:
        printed.append(lines[place].strip())
        place += 1
    return "\n".join(code), "\n".join(printed), place


def _is_printed(line: str) -> bool:
    """Whether a line looks like a value rather than a sentence.

    >>> [_is_printed(line) for line in ("262144", "(0, 255)", "array([1, 2])", "Here we see")]
    [True, True, True, False]
    """
    return bool(re.match(r"\s*(-?\d|[(\[{<'\"]|array\(|True$|False$|None$)", line))
