"""Documents of still lifes: kinds, order of parts, and what follows from seed and number."""

from collections import Counter

from calumma.corpora.still_life_documents import (
    HELD_OUT_UNKNOWN_THINGS,
    STILL_LIFE_SHARES,
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
    for document in of_kind("stories"):
        assert 2 <= len(document.images) <= 5
        assert len(document.content) == 2 * len(document.images)
    assert {len(document.images) for document in of_kind("stories")} >= {3, 4, 5}
    for document in of_kind("chat"):
        assert document.messages[0].role == "user" and document.messages[-1].role == "assistant"
    assert any(len(document.messages) == 6 for document in of_kind("chat"))


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
