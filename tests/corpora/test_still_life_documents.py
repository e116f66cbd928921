"""Documents of still lifes: kinds, order of parts, and what follows from seed and number."""

import itertools
from collections import Counter

from calumma.corpora.still_life_documents import (
    HELD_OUT_UNKNOWN_THINGS,
    STILL_LIFE_SHARES,
    STILL_LIFE_TUNING_SHARES,
    UNKNOWN_THINGS,
    StillLifeWriter,
    refusal,
)
from calumma.documents.document import Document, Image, Text

DOCUMENTS = [StillLifeWriter(0, side=16).document(number) for number in range(400)]


def of_kind(kind: str) -> list[Document]:
    return [document for document in DOCUMENTS if document.attributes["kind"] == kind]


def test_a_document_follows_from_seed_and_number() -> None:
    writer = StillLifeWriter(0, side=16)
    assert writer.document(17) == DOCUMENTS[17]
    assert StillLifeWriter(1, side=16).document(17) != DOCUMENTS[17]
    assert DOCUMENTS[17].id == "still-lifes/0/17"


def test_kinds_have_their_shares_and_name_their_source() -> None:
    counts = Counter(document.attributes["kind"] for document in DOCUMENTS)
    assert set(counts) == set(STILL_LIFE_SHARES)
    assert abs(sum(STILL_LIFE_SHARES.values()) - 1) < 1e-9
    assert 0.2 < counts["pairs"] / len(DOCUMENTS) < 0.35
    assert {document.source for document in DOCUMENTS} == {f"still-life-{kind}" for kind in STILL_LIFE_SHARES}


def test_the_parts_of_each_kind() -> None:
    for document in of_kind("pairs"):
        assert [type(part) for part in document.content] == [Text, Image]
    for document in of_kind("draw"):
        assert [type(turn.parts[-1]) for turn in document.messages] == [Text, Image]
    for document in of_kind("describe") + of_kind("ask"):
        assert len(document.images) == 1
        assert isinstance(document.messages[0].parts[0], Image | Text)
        assert isinstance(document.messages[-1].parts[0], Text)
    for document in of_kind("edit"):
        answers = [turn.parts for turn in document.messages if turn.role == "assistant"]
        drawn = [parts for parts in answers if isinstance(parts[-1], Image)]
        assert all(isinstance(parts[0], Text) and "; now a" in parts[0].text for parts in drawn)
    for document in of_kind("stories"):
        assert 2 <= len(document.images) <= 5
        assert len(document.content) == 2 * len(document.images)
    assert {len(document.images) for document in of_kind("stories")} >= {3, 4, 5}
    for document in of_kind("chat"):
        assert document.messages[0].role == "user" and document.messages[-1].role == "assistant"
    assert any(len(document.messages) == 6 for document in of_kind("chat"))


def test_conversations_for_fine_tuning_go_on_after_an_image() -> None:
    assert abs(sum(STILL_LIFE_TUNING_SHARES.values()) - 1) < 1e-9
    writer = StillLifeWriter(0, 16, STILL_LIFE_TUNING_SHARES)
    documents = [writer.document(number) for number in range(200)]
    assert {document.attributes["kind"] for document in documents} == set(STILL_LIFE_TUNING_SHARES)
    conversations = [document for document in documents if document.source == "still-life-conversation"]
    assert len(conversations) > 15
    for document in conversations:
        answers = [turn.parts for turn in document.messages if turn.role == "assistant"]
        drawn = [number for number, parts in enumerate(answers) if isinstance(parts[0], Image)]
        assert drawn[0] == 0 and len(drawn) in (2, 3)
    assert any(
        isinstance(turn.parts[0], Text) for d in conversations for turn in d.messages if turn.role == "assistant"
    )


def test_answers_and_stories_for_fine_tuning_have_steps() -> None:
    shares = {"ask": 0.5, "stories": 0.5}
    plain, stepwise = (StillLifeWriter(3, 8, shares, step_by_step=steps) for steps in (False, True))
    answers = stories = 0
    for number in range(60):
        short, long = plain.document(number), stepwise.document(number)
        if long.attributes["kind"] == "ask":
            texts = [part.text for turn in long.messages for part in turn.parts if isinstance(part, Text)]
            answers += sum("; now " in text for text in texts)
            assert len(long.messages) <= 8
        else:
            assert long.images == short.images
            pairs = zip(long.content, short.content, strict=True)
            changed = [(new.text, old.text) for new, old in pairs if isinstance(new, Text) and isinstance(old, Text)]
            assert changed[0][0] == changed[0][1]
            assert all(new.startswith(f"{old} ") and "; now " in new for new, old in changed[1:])
            stories += len(changed) - 1
        assert "; now " not in plain.document(number).text
    assert answers > 30 and stories > 30


def test_an_answer_does_not_exclude_the_next() -> None:
    following = Counter()
    for document in of_kind("ask"):
        texts = [turn.parts[-1].text for turn in document.messages[2:] if isinstance(turn.parts[-1], Text)]
        pairs = zip(texts[::2], texts[1::2], strict=True)
        answers = [answer for text, answer in pairs if text.startswith(("Do you see a", "Is there", "Can you see a"))]
        following.update(itertools.pairwise(answers))
    assert {("no", "no"), ("no", "yes")} <= set(following)


def test_refusals_name_the_thing_and_held_out_things_never_occur() -> None:
    assert refusal("owl") == "I cannot draw an owl. I know 6 shapes and 24 objects."
    assert not set(UNKNOWN_THINGS) & set(HELD_OUT_UNKNOWN_THINGS)
    text = " ".join(document.text for document in DOCUMENTS).lower()
    assert not [thing for thing in HELD_OUT_UNKNOWN_THINGS if f" {thing}" in text]
    assert any("I cannot draw" in document.text for document in of_kind("refuse"))


def test_images_for_a_tokenizer_and_captioned_scenes() -> None:
    writer = StillLifeWriter(0, side=16)
    document = writer.image_document(5)
    assert (len(document.images), document.text) == (1, "")
    caption, scene = writer.captioned_scene(5)
    assert f"{scene.background} background" in caption
    assert writer.captioned_scene(5) == (caption, scene)
