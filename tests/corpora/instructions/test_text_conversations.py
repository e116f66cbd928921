"""Questions about words and code, from pages small enough to read."""

from calumma.corpora.instructions.text_conversations import (
    SourceInfo,
    code_conversations,
    gloss_conversations,
    make_conversation,
    pick_template,
    stable_hash,
)
from calumma.documents.document import Document, Text

GLOSSES = "sea lion, otary (noun): an eared seal; large\nto swim (verb): move in water\n(what) is this?"
PAGE = """\
Adding is easy:
>>> 1 + 1
2
and so is
>>> x = [1,
...      2]
Here x is bound."""


def said(documents: list[Document]) -> list[tuple[str, str, str]]:
    """Kind, prompt and answer of each."""
    return [(d.attributes["kind"], *(turn.parts[0].text for turn in d.messages)) for d in documents]


def test_glosses_ask_for_the_word_and_for_the_meaning_in_turn() -> None:
    page = Document(id="noun-1", license="WordNet-3.0", content=(Text(GLOSSES),))
    first, second = said(list(gloss_conversations(page)))
    assert (first[0], first[2]) == ("word", "sea lion")
    assert "an eared seal" in first[1] and "large" not in first[1]
    assert (second[0], second[2]) == ("meaning", "move in water")
    assert "to swim" in second[1]
    assert {d.license for d in gloss_conversations(page)} == {"WordNet-3.0"}


def test_a_word_is_held_out_on_every_line() -> None:
    lines = "\n".join(f"word{n} (noun): a thing called {n}" for n in range(200))
    there = Document(id="a", content=(Text(lines),))
    shifted = Document(id="b", content=(Text("other (noun): one more\n" + lines),))
    splits = [d.attributes["split"] for d in gloss_conversations(there)]
    assert splits == [d.attributes["split"] for d in gloss_conversations(shifted)][1:]
    assert 2 <= splits.count("held-out") <= 25


def test_code_is_asked_for_by_the_sentence_before_it_and_for_what_it_prints() -> None:
    page = Document(id="guide", content=(Text(PAGE),))
    program, printed = said(list(code_conversations(page)))
    assert (program[0], program[2]) == ("program", "1 + 1")
    assert "Adding is easy." in program[1]
    assert (printed[0], printed[2]) == ("printed", "2")
    assert printed[1].endswith("\n1 + 1")


def test_a_session_goes_on_over_its_continued_lines() -> None:
    text = "This is a list of two:\n>>> x = [1,\n...      2]\n>>> x\n[1, 2]"
    program, printed = said(list(code_conversations(Document(id="g", content=(Text(text),)))))
    assert program[2] == "x = [1,\n     2]\nx"
    assert printed[2] == "[1, 2]"


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
