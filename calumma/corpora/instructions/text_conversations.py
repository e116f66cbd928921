"""Conversations of one prompt and one answer, from templates filled with real text.

Texts are words of WordNet and examples of documentation; `image_conversations` has those with
images. Every document has the attributes category, kind and written-by = "template". Text and images
keep the license of the document they come from.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from calumma.corpora.captions import Split, group_split
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


_GLOSS = re.compile(r"(?P<words>[^()]+) \((?P<part>\w+)\): (?P<gloss>.+)")

MEANING_PROMPTS = ('What does "{word}" mean?', "Define the {part} {word}.", "What is meant by {word} ({part})?")
WORD_PROMPTS = ("Which {part} means: {gloss}?", "What is the word for this? {gloss}")

PROGRAM_PROMPTS = ("Write Python code. {task}", "How is this done in Python? {task}")
OUTPUT_PROMPTS = ("What does this Python code print?\n{code}", "What comes out?\n{code}")

MAX_CODE_CHARS = 400
"""Maximum number of characters of a task, of code and of its output."""


def gloss_conversations(document: Document) -> Iterator[Document]:
    """Build questions from a page of glosses: odd lines ask for the meaning, even for the word.

    Args:
        document: lines of the corpus "wordnet", such as "sea lion, otary (noun): an eared seal".
    """
    for number, line in enumerate(document.text.splitlines()):
        found = _GLOSS.fullmatch(line)
        if not found:
            continue
        word, gloss = found["words"].split(", ")[0], found["gloss"].split("; ")[0]
        info = _source_info(document, number, word)
        if number % 2:
            prompt = pick_template(MEANING_PROMPTS, info.name).format(word=word, part=found["part"])
            yield make_conversation("text", "meaning", [prompt], [gloss], info)
        else:
            prompt = pick_template(WORD_PROMPTS, info.name).format(gloss=gloss, part=found["part"])
            yield make_conversation("text", "word", [prompt], [word], info)


def _source_info(document: Document, number: int, group: str) -> SourceInfo:
    # The split depends on the word, not the line: a held-out word is held out everywhere.
    digits = f"{stable_hash(group.lower()):08x}"
    name = f"{document.id}/{number}"
    return SourceInfo(name=name, license=document.license, split=group_split(digits))


def code_conversations(document: Document) -> Iterator[Document]:
    """Build tasks from the interactive Python sessions of a documentation page.

    A sentence that ends in a colon before a session is a task; if the session prints something, a
    second task asks for the output.
    """
    lines = document.text.splitlines()
    position = 0
    while position < len(lines):
        if not lines[position].startswith(">>> "):
            position += 1
            continue
        task = lines[position - 1].strip() if position else ""
        code, printed, position = _session(lines, position)
        is_short = max(len(task), len(code), len(printed)) <= MAX_CODE_CHARS
        info = _source_info(document, position, document.id)
        if is_short and task.endswith(":") and len(task.split()) > 2:
            prompt = pick_template(PROGRAM_PROMPTS, info.name).format(task=task[:-1] + ".")
            yield make_conversation("code", "program", [prompt], [code], info)
        if is_short and printed:
            prompt = pick_template(OUTPUT_PROMPTS, info.name).format(code=code)
            yield make_conversation("code", "printed", [prompt], [printed], info)


def _session(lines: list[str], position: int) -> tuple[str, str, int]:
    """Return the code from a line on, the output of its last statement, and the line after both."""
    code: list[str] = []
    while position < len(lines) and lines[position].startswith((">>> ", "... ")):
        code.append(lines[position][4:])
        position += 1
    printed: list[str] = []
    # Prose follows a session without a marker: only lines that look like output are taken.
    while position < len(lines) and _is_printed(lines[position]) and len(printed) < 3:
        printed.append(lines[position].strip())
        position += 1
    return "\n".join(code), "\n".join(printed), position


def _is_printed(line: str) -> bool:
    """Return whether a line looks like a value rather than a sentence.

    >>> [_is_printed(line) for line in ("262144", "(0, 255)", "array([1, 2])", "Here we see")]
    [True, True, True, False]
    """
    return bool(re.match(r"\s*(-?\d|[(\[{<'\"]|array\(|True$|False$|None$)", line))
