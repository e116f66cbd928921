"""A prompt and an answer by a template."""

from __future__ import annotations

from calumma.corpora.instructions.conversation_templates import (
    SourceInfo,
    make_conversation,
    pick_template,
    stable_hash,
)
from calumma.documents.document import Text


def test_a_conversation_says_what_it_is_and_that_a_template_wrote_it() -> None:
    of = SourceInfo(name="cat", license="MIT", split="train")
    made = make_conversation("text", "meaning", ["What is a cat?"], ["an animal"], of)
    assert (made.id, made.source, made.license) == ("meaning/cat", "text", "MIT")
    assert [(turn.role, turn.parts) for turn in made.messages] == [
        ("user", (Text("What is a cat?"),)),
        ("assistant", (Text("an animal"),)),
    ]
    assert made.attributes == {
        "category": "text", "kind": "meaning", "split": "train", "written-by": "template"
    }  # fmt: skip


def test_the_wording_of_a_name_never_changes_and_all_wordings_occur() -> None:
    wordings = ("a", "b", "c")
    names = [str(number) for number in range(30)]
    assert [pick_template(wordings, n) for n in names] == [pick_template(wordings, n) for n in names]
    assert {pick_template(wordings, name) for name in names} == set(wordings)
    assert stable_hash("cat") == 0x77AF778B
