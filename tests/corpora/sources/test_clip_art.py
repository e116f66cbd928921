"""Open Clip Art: public domain only, with captions that say something."""

from pathlib import Path

from calumma.corpora.sources.clip_art import read_openclipart
from calumma.documents.document import Document
from tests.corpora.packages import text, write_image

PD = "http://web.resource.org/cc/PublicDomain"


def add(root: Path, name: str, title: str, *, license: str = PD, body: str = "") -> None:
    text(
        root / f"svg/usr/share/openclipart/svg/{name}.svg",
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:dc="d" xmlns:rdf="r" xmlns:cc="c">'
        f"<metadata><dc:title>{title}</dc:title><rdf:li>fruit</rdf:li><rdf:li/>"
        f'<cc:license rdf:resource="{license}"/></metadata>{body}</svg>',
    )
    write_image(root / f"png/usr/share/openclipart/png/{name}.png")


def captions(root: Path) -> dict[str, str]:
    return {document.id: document.text for document in documents(root)}


def documents(root: Path) -> list[Document]:
    return list(read_openclipart({"openclipart-svg": root / "svg", "openclipart-png": root / "png"}))


def test_titles_become_captions_and_folders_categories(tmp_path: Path) -> None:
    add(tmp_path, "food/fruit/x", "Red  Apple")
    (document,) = documents(tmp_path)
    assert document.text == "Red Apple"
    assert document.attributes == {
        "caption": "Red Apple",
        "category": "food",
        "subgroup": "fruit",
        "keywords": "fruit",
    }


def test_titles_that_many_share_or_that_say_nothing_yield_to_the_file_name(tmp_path: Path) -> None:
    for name in ("bigTree_nicu_01", "old-boat", "cat_x"):
        add(tmp_path, f"plants/{name}", "My Collection Nr. 3")
    add(tmp_path, "plants/rose", "Flat icon collection")
    assert captions(tmp_path) == {
        "plants/bigTree_nicu_01": "big tree",
        "plants/cat_x": "cat",
        "plants/old-boat": "old boat",
        "plants/rose": "rose",
    }


def test_drawings_that_are_not_marked_as_public_domain_are_left_out(tmp_path: Path) -> None:
    add(tmp_path, "food/a", "Copyleft Pear", license="http://creativecommons.org/licenses/GPL/2.0/")
    add(tmp_path, "food/b", "A Plum", license="")
    add(tmp_path, "food/duplicates/c", "Second Apple")
    assert captions(tmp_path) == {}


def test_photographs_in_a_frame_are_marked(tmp_path: Path) -> None:
    add(tmp_path, "people/a", "Old Man", body="<image/>")
    assert documents(tmp_path)[0].attributes["holds-raster"] == "yes"


def test_playing_cards_are_named_by_their_files(tmp_path: Path) -> None:
    add(tmp_path, "recreation/games/cards/simple_h_q", "Deck")
    assert list(captions(tmp_path).values()) == ["queen of hearts playing card, simple style"]


def test_one_star_polygon_in_seven_is_kept(tmp_path: Path) -> None:
    for points in range(10, 17):
        add(tmp_path, f"shapes/stars/star_{points}pt3step", "gramastar")
    assert list(captions(tmp_path).values()) == ["star polygon with 16 points and step 3"]


def test_broken_files_are_left_out(tmp_path: Path) -> None:
    add(tmp_path, "food/a", "Good Fig")
    add(tmp_path, "food/b", "Fig without a file")
    text(tmp_path / "png/usr/share/openclipart/png/food/b.png", "no image")
    text(tmp_path / "svg/usr/share/openclipart/svg/food/c.svg", "<svg")
    assert list(captions(tmp_path).values()) == ["Good Fig"]
