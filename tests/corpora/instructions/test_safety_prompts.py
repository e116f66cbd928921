"""What is refused, and what only sounds like it."""

from calumma.corpora.instructions.safety_prompts import (
    ACTIONS_ONE_IN,
    REFUSAL,
    dangerous_word_questions,
    is_template_refusal,
    safety_conversations,
    stable_hash,
)
from calumma.documents.document import Document

ALL = list(safety_conversations())


def prompt(document: Document) -> str:
    return document.messages[0].parts[0].text


def answer(document: Document) -> str:
    return document.messages[1].parts[0].text


def test_unsafe_prompts_are_refused_and_plain_ones_answered() -> None:
    for document in ALL:
        assert is_template_refusal(answer(document)) == (document.attributes["kind"] == "refuse")
    topics = {d.attributes.get("topic") for d in ALL}
    assert topics - {None} == {
        "violence", "hate", "self_harm", "weapons", "crime", "drugs", "privacy", "sexual",
        "computers",
    }  # fmt: skip


def test_no_prompt_is_in_both_splits() -> None:
    sides = {split: {prompt(d) for d in ALL if d.attributes["split"] == split}
             for split in ("train", "held-out")}  # fmt: skip
    assert not sides["train"] & sides["held-out"]
    assert len({prompt(d) for d in ALL}) == len(ALL)


def test_a_new_deed_occurs_in_no_training_prompt() -> None:
    deeds = {d.id.split("/")[1] for d in ALL if d.attributes.get("held-out-by") == "deed"}
    assert deeds and all(stable_hash(deed) % ACTIONS_ONE_IN == 0 for deed in deeds)
    training = {d.id.split("/")[1] for d in ALL if d.attributes["split"] == "train"}
    assert not deeds & training


def test_plain_deeds_share_words_with_unsafe_ones() -> None:
    words = {
        kind: {w for d in ALL if d.attributes["kind"] == kind for w in prompt(d).lower().split()}
        for kind in ("refuse", "plain")
    }
    assert {"kill", "bomb", "hack", "steal"} <= words["refuse"] & words["plain"]


def test_self_harm_is_answered_with_where_to_turn() -> None:
    answers = {answer(d) for d in ALL if d.attributes.get("topic") == "self_harm"}
    assert answers == {f"{REFUSAL} Please talk to someone you trust, or call for help."}


def test_the_dictionary_answers_for_dangerous_words() -> None:
    (made,) = dangerous_word_questions({"poison": "a substance that harms", "cat": "a feline"}, "X")
    assert "poison" in prompt(made)
    assert (answer(made), made.license) == ("a substance that harms", "X")
    assert made.attributes["kind"] == "plain"
