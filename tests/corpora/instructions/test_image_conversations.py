"""Conversations about images and with image_conversations."""

from calumma.corpora.instructions import image_conversations
from calumma.documents.document import Document, Image, Text
from tests.images import png


def pair(name: str, *, split: str = "train", **attributes: str) -> Document:
    known = {"caption": name, "split": split, **attributes}
    parts = (Image(data=png(len(name))), Text(name))
    return Document(id=f"x/{name}", license="MIT", content=parts, attributes=known)


def test_an_image_is_asked_about_and_its_color_only_where_it_is_known() -> None:
    describe, color = image_conversations.visual_chat(pair("cat", **{"colour": "red"}))
    prompt, answer = describe.messages
    assert isinstance(prompt.parts[0], Image) and answer.parts == (Text("cat"),)
    assert color.messages[1].parts == (Text("red"),)
    assert [d.attributes["kind"] for d in image_conversations.visual_chat(pair("dog"))] == ["describe"]


def test_a_caption_asks_for_its_image() -> None:
    made = image_conversations.image_request(pair("cat", split="held-out"))
    assert "cat" in made.messages[0].parts[0].text
    assert made.messages[1].parts == pair("cat").content[:1]
    assert (made.source, made.attributes["split"]) == ("image_generation", "held-out")


def test_a_caption_without_a_split_is_put_where_its_group_belongs() -> None:
    bare = Document(id="a", content=(Text("a red cat"), Image(data=png(0))))
    assert image_conversations.image_request(bare).attributes["split"] in ("train", "held-out")
    assert image_conversations.document_caption(bare) == "a red cat"


def test_words_and_an_image_where_the_words_are_known() -> None:
    page = Document(id="n", content=(Text("cat, true cat (noun): a feline; meow\nx (verb): y"),))
    known = image_conversations.noun_glosses([page])
    assert known == {"cat": "a feline", "true cat": "a feline"}
    made = image_conversations.explain_with_image(pair("The Cat"), known)
    assert made is not None
    assert [p.text if isinstance(p, Text) else "image" for p in made.messages[1].parts] == [
        "The Cat: a feline", "image"
    ]  # fmt: skip
    assert made.license == "MIT and WordNet-3.0"
    assert image_conversations.explain_with_image(pair("dog"), known) is None
    both = list(image_conversations.interleaved_conversations([pair("cat"), pair("dog")], known))
    assert [d.attributes["kind"] for d in both] == ["tell", "show"]


def test_two_images_of_one_split_are_shown_with_their_names() -> None:
    pairs = [pair("cat"), pair("owl", split="held-out"), pair("dog"), pair("fox")]
    (made,) = image_conversations.show_pairs(pairs)
    shown = [p.text if isinstance(p, Text) else "image" for p in made.messages[1].parts]
    assert shown == ["cat:", "image", "dog:", "image"]
    assert made.license == "MIT" and made.attributes["split"] == "train"
