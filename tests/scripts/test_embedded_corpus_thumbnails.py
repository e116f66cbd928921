"""What goes into the embedded corpus, rule by rule."""

import dataclasses
import io

import PIL.Image
import PIL.ImageDraw
import pytest

from calumma.corpora.captions import SKIN_TONES
from calumma.documents.document import Document, Image, Text
from scripts.embedded_corpus.thumbnails import ThumbnailMaker, is_blank, is_good_clip_art, shorten_page

ENGLISH = {"red", "apple", "horse"}


def image(size: int = 128, box: tuple[int, int, int, int] = (20, 20, 100, 100)) -> Image:
    drawn = PIL.Image.new("RGBA", (size, size), (0, 0, 0, 0))
    PIL.ImageDraw.Draw(drawn).ellipse(box, (200, 30, 30, 255))
    buffer = io.BytesIO()
    drawn.save(buffer, "PNG")
    return Image(data=buffer.getvalue())


def emoji(caption: str, image: Image, tone: str = "") -> Document:
    attributes = {"caption": caption} | ({"skin-tone": tone} if tone else {})
    content = (image, Text(caption))
    return Document(id=caption, source="set", content=content, attributes=attributes)


@pytest.fixture
def thumbnails() -> ThumbnailMaker:
    return ThumbnailMaker(side=64, quality=60)


def test_an_image_becomes_small_and_is_measured(thumbnails: ThumbnailMaker) -> None:
    small = thumbnails.make(emoji("ball", image()))
    assert small is not None
    thumbnail = small.images[0].open()
    assert (thumbnail.format, thumbnail.size, thumbnail.mode) == ("WEBP", (64, 64), "RGBA")
    assert small.attributes["colour"] == "red"
    assert float(small.attributes["colour-share"]) > 0.9
    assert set(small.attributes) == {"caption", "split", "group", "colour", "colour-share"}


def test_duplicates_and_blanks_are_dropped(thumbnails: ThumbnailMaker) -> None:
    assert thumbnails.make(emoji("ball", image()))
    assert thumbnails.make(emoji("round thing", image())) is None
    assert thumbnails.make(emoji("dot", image(box=(1, 1, 5, 5)))) is None
    assert thumbnails.make(emoji("broken", Image(data=b"no image"))) is None
    assert thumbnails.dropped == {"duplicate": 1, "blank": 1, "broken": 1}


def test_cropping_cuts_what_cannot_be_seen(thumbnails: ThumbnailMaker) -> None:
    thumbnails.crop_margins = True
    small = thumbnails.make(emoji("ball", image(box=(0, 0, 127, 31))))
    assert small is not None
    assert small.images[0].open().size == (64, 16)


def test_about_an_eighth_of_the_tones_is_kept_and_each_equally_often(thumbnails: ThumbnailMaker) -> None:
    kept = []
    for number in range(80):
        for tone in SKIN_TONES:
            box = (20, 20, 60 + number // 2, 70 + len(tone))
            document = emoji(f"hand {number}, {tone} skin tone", image(box=box), tone)
            if thumbnails._keeps_tone(document):
                kept.append(tone)
    assert 30 <= len(kept) <= 70
    assert max(map(kept.count, SKIN_TONES)) - min(map(kept.count, SKIN_TONES)) <= 1


def test_couples_of_two_tones_are_dropped(thumbnails: ThumbnailMaker) -> None:
    assert thumbnails.make(emoji("handshake", image(), "light and dark")) is None
    assert thumbnails.dropped == {"skin tone": 1}


def drawing(caption: str, **changes: str) -> Document:
    attributes = {"caption": caption, "category": "food", **changes}
    return Document(id=f"openclipart/{attributes['category']}/x", attributes=attributes)


@pytest.mark.parametrize(
    ("document", "good"),
    [
        (drawing("Red apples"), True),
        (drawing("mela rossa"), False),
        (drawing("horse 02"), True),
        (drawing("x 01"), False),
        (drawing("apple", category="computer"), False),
        (drawing("apple", **{"holds-raster": "yes"}), False),
        (drawing("apple", keywords="flags, red"), False),
        (drawing("star polygon red apple"), False),
    ],
)
def test_clip_art_is_plain_things_with_english_captions(document: Document, good: bool) -> None:
    assert is_good_clip_art(document, ENGLISH) is good


def test_a_page_is_cut_and_its_figures_made_small() -> None:
    page = Document(id="p", content=(Text("a b c"), image(), Text("d e f"), Text("g"), image()))
    small = shorten_page(page, side=32, quality=60, max_words=5)
    assert small is not None
    assert [type(part) for part in small.content] == [Text, Image, Text]
    assert small.images[0].open().size == (32, 32)


def test_a_page_without_figures_at_its_beginning_is_dropped() -> None:
    page = Document(id="p", content=(Text("a b c"), Text("d"), image()))
    assert shorten_page(page, side=32, quality=60, max_words=3) is None
    broken = dataclasses.replace(page, content=(Image(data=b"no image"),))
    assert shorten_page(broken, side=32, quality=60, max_words=3) is None


def test_blank_is_one_color_or_hardly_anything() -> None:
    assert is_blank(PIL.Image.new("RGB", (64, 64), "red"))
    speck = PIL.Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    speck.paste((255, 0, 0, 255), (0, 0, 4, 4))
    assert is_blank(speck)
    speck.paste((0, 0, 255, 255), (0, 0, 40, 40))
    assert not is_blank(speck)
