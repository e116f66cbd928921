"""Columns that are turns of a conversation: lists of turns, and questions with answers."""

import itertools
from collections import Counter
from collections.abc import Mapping
from typing import Any

from calumma.documents.record_columns import ColumnReader, is_empty, type_name
from calumma.errors import DocumentError

CONVERSATION_COLUMNS = ("conversations", "conversation", "dialogue", "dialog", "qa_pairs")
"""Names of columns that are lists of turns, or of pairs of a question and an answer."""

QUESTION_COLUMNS = ("question", "questions", "query", "instruction", "problem")
"""Names of columns that are the user's turn if there is an answer, and else text."""

ANSWER_COLUMNS = ("answer", "answers", "response", "output", "completion", "solution", "label")
"""Names of columns that are the assistant's turn, the first one of them that is there."""

_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant"}
_PAIRS = (("user", "assistant"), ("question", "answer"), ("query", "response"), ("human", "gpt"), ("q", "a"))

_Turn = dict[str, Any]


def have_marks(columns: Mapping[str, Any]) -> bool:
    """Return whether a record has a list of turns, in whose texts the images are marked."""
    values = [columns[name] for name in CONVERSATION_COLUMNS if not is_empty(columns.get(name))]
    return any(not isinstance(value, list) or not all(map(_pair_keys, value)) for value in values)


def take_turns(columns: dict[str, Any], reader: ColumnReader) -> list[_Turn] | None:
    """Remove the columns that are turns, and return the turns; None if there are none.

    Each turn has the name of its column in `column`, for the account.

    Raises:
        DocumentError: a column of turns has a value of another type.
    """
    for name in CONVERSATION_COLUMNS:
        if not is_empty(columns.get(name)):
            return _system_turn(columns) + _conversation(name, columns.pop(name), reader.where)
    texts = columns.get("texts")
    if isinstance(texts, list) and texts and all(map(_pair_keys, texts)):
        return _conversation("texts", columns.pop("texts"), reader.where)
    pairs = _question_with_answer(columns, reader)
    return None if pairs is None else _system_turn(columns) + _history(columns) + pairs


def normalize_turns(turns: Any) -> Any:
    """Name roles and texts of turns as documents do; anything but a list of turns is unchanged."""
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        return turns
    return [_normalize_turn(turn) for turn in turns]


def _normalize_turn(turn: Mapping[str, Any]) -> _Turn:
    names = {"from": "role", "value": "content"}
    made = {names[key] if key in names and names[key] not in turn else key: value for key, value in turn.items()}
    role = made.get("role")
    return made | {"role": _ROLES.get(role, role) if isinstance(role, str) else role}


def _conversation(name: str, value: Any, where: str) -> list[_Turn]:
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise DocumentError(
            f"{where}, column {name!r}: found {type_name(value)}; expected a list of turns, such "
            'as {"from": "human", "value": "..."}. Convert the column, or rename it.'
        )
    turns: list[_Turn] = []
    for turn in value:
        keys = _pair_keys(turn)
        if keys is None:
            turns.append({"content": None, **_normalize_turn(turn), "column": name})
        else:
            rest = {key: item for key, item in turn.items() if key not in keys}
            turns += [rest | _turn("user", turn[keys[0]], name), _turn("assistant", turn[keys[1]], name)]
    return turns


def _turn(role: str, content: Any, column: str) -> _Turn:
    return {"role": role, "content": content, "column": column}


def _pair_keys(value: Any) -> tuple[str, str] | None:
    """Return the keys of a question and its answer in one entry of a list, None if there are none."""
    keys = value.keys() if isinstance(value, dict) else ()
    return next((pair for pair in _PAIRS if pair[0] in keys and pair[1] in keys), None)


def _system_turn(columns: dict[str, Any]) -> list[_Turn]:
    has_text = isinstance(columns.get("system"), str) and columns["system"]
    return [_turn("system", columns.pop("system"), "system")] if has_text else []


def _history(columns: dict[str, Any]) -> list[_Turn]:
    """Take LlamaFactory's column of earlier turns, pairs of a question and an answer."""
    history = columns.get("history")
    is_history = isinstance(history, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in history)
    if not history or not is_history:
        return []
    del columns["history"]
    turns = ([_turn("user", q, "history"), _turn("assistant", a, "history")] for q, a in history)
    return list(itertools.chain.from_iterable(turns))


def _question_with_answer(columns: dict[str, Any], reader: ColumnReader) -> list[_Turn] | None:
    questions = [name for name in (*QUESTION_COLUMNS, "prompt") if not is_empty(columns.get(name))]
    answers = [name for name in ANSWER_COLUMNS if not is_empty(columns.get(name))]
    if not questions or not answers:
        return None
    question_name, answer_name = questions[0], answers[0]
    if answer_name == "label" and (question_name == "prompt" or not isinstance(columns["label"], str | list)):
        return None
    question, answer = columns.pop(question_name), columns.pop(answer_name)
    if isinstance(question, list) and isinstance(answer, list) and len(question) == len(answer):
        found = list(zip(question, answer, strict=True))
    else:
        found = [(question, _one_answer(answer))]
        num_others = len(answer) - 1 if isinstance(answer, list) else 0
        reader.account.add("not read", answer_name, num_others, "other answers to the question")
    if question_name == "instruction" and isinstance(columns.get("input"), str):  # Alpaca's
        more = columns.pop("input")
        reader.account.add("text", "input", 1 if more else 0)
        found = [(f"{q}\n{more}" if more else q, a) for q, a in found]
    turns: list[_Turn] = []
    for q, a in found:
        for role, name, value in (("user", question_name, q), ("assistant", answer_name, a)):
            if not isinstance(value, str):
                raise DocumentError(
                    f"{reader.where}, column {name!r}: found {type_name(value)}; expected text. Convert the "
                    "column, or rename it."
                )
            turns.append(_turn(role, value, name))
    return turns


def _one_answer(answers: Any) -> Any:
    """Return the most frequent answer of a list, as VQA has one from each of ten people."""
    if isinstance(answers, dict) and isinstance(answers.get("text"), list):  # SQuAD's
        answers = answers["text"]
    if not isinstance(answers, list):
        return answers
    given = [answer.get("answer") if isinstance(answer, dict) else answer for answer in answers]
    if not given or not all(isinstance(each, str) for each in given):
        return answers
    return Counter(given).most_common(1)[0][0]
