"""Conversations as questions and answers, in the shape that fine-tuning counts on.

A conversation is exchanges: what was asked, then what was answered. System text is said by nobody
in the release's vocabulary, so it counts as the beginning of the user's next turn.
"""

from __future__ import annotations

from dataclasses import dataclass

from calumma.documents.document import Document, Part, Role, Turn
from calumma.errors import DocumentError


@dataclass(frozen=True)
class Exchange:
    """One question with its answer; only the answer is learned."""

    prompt: tuple[Part, ...]
    answer: tuple[Part, ...]


def as_turns(document: Document) -> tuple[Turn, ...]:
    """The turns of a conversation, user and assistant by turns, the user first.

    System text joins the user's turn after it, and neighbouring turns of one side become one. A
    plain document is the answer to an empty question: one turn of the assistant.

    Raises:
        DocumentError: the assistant speaks first.
    """
    if not document.messages:
        return (Turn("assistant", document.content),)
    turns: list[Turn] = []
    for turn in document.messages:
        role: Role = "assistant" if turn.role == "assistant" else "user"
        if turns and turns[-1].role == role:
            turns[-1] = Turn(role, turns[-1].parts + turn.parts)
        else:
            turns.append(Turn(role, turn.parts))
    if turns[0].role == "assistant":
        raise DocumentError(
            f"document {document.id}: the assistant speaks first; wanted a turn of the user before "
            "its answer. Add the question, or leave the turn out."
        )
    return tuple(turns)


def exchanges(document: Document) -> tuple[Exchange, ...]:
    """The questions of a conversation, each with its answer.

    Raises:
        DocumentError: the assistant speaks first, or the last question has no answer.
    """
    turns = as_turns(document)
    if len(turns) == 1 and turns[0].role == "assistant":
        return (Exchange((), turns[0].parts),)
    if len(turns) % 2:
        raise DocumentError(
            f"document {document.id}: the last turn is the user's; wanted the assistant's answer "
            "after it. Add the answer, or leave the turn out."
        )
    pairs = zip(turns[::2], turns[1::2], strict=True)
    return tuple(Exchange(question.parts, answer.parts) for question, answer in pairs)
