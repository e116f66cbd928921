"""Composed images: captions that are true, and the same image for the same scene."""

import io

import PIL.Image
import pytest

from calumma.corpora.synthetic_scenes import (
    GROUNDS,
    SHAPES,
    SIZES,
    Scene,
    draw_scene,
    encode_fast_png,
    object_scenes,
    scene_document,
    shape_scenes,
)
from calumma.documents.document import Image, Text


def test_captions_by_hand() -> None:
    shape = Scene("circle", "large", "blue", "red")
    assert shape.caption == "a large red circle on a blue ground"
    assert shape.attributes == {"thing": "circle", "size": "large", "ground": "blue", "colour": "red"}
    assert Scene("gecko", "small", "white").caption == "a small gecko on a white ground"
    assert "colour" not in Scene("gecko", "small", "white").attributes


def test_every_scene_comes_once_and_none_is_invisible() -> None:
    scenes = list(shape_scenes())
    assert len(scenes) == len({scene.caption for scene in scenes}) == 6 * 2 * 8 * 7
    assert all(scene.color != scene.ground for scene in scenes)
    assert len(list(object_scenes(["a", "b"]))) == 2 * 2 * 8


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", SIZES)
def test_a_shape_has_its_color_on_its_ground(shape: str, size: str) -> None:
    image = draw_scene(Scene(shape, size, "blue", "yellow"), {}, 64)
    assert (image.mode, image.size) == ("RGB", (64, 64))
    assert image.getpixel((0, 0)) == image.getpixel((63, 63)) == GROUNDS["blue"]
    middle = image.getpixel((32, 32))
    assert middle == (GROUNDS["blue"] if shape == "ring" else GROUNDS["yellow"])
    colors = {color: count for count, color in image.getcolors(64 * 64) or []}
    assert colors[GROUNDS["yellow"]] > 20


def test_the_box_of_a_square_by_hand() -> None:
    image = draw_scene(Scene("square", "small", "black", "white"), {}, 32)
    assert image.crop((6, 6, 26, 26)).getcolors() == [(400, GROUNDS["white"])]
    counts = {color: count for count, color in image.getcolors() or []}
    assert counts == {GROUNDS["white"]: 400, GROUNDS["black"]: 624}


def test_a_shift_moves_the_thing_and_nothing_else() -> None:
    image = draw_scene(Scene("square", "small", "black", "white"), {}, 32, (2, -1))
    assert image.crop((8, 5, 28, 25)).getcolors() == [(400, GROUNDS["white"])]
    counts = {color: count for count, color in image.getcolors() or []}
    assert counts == {GROUNDS["white"]: 400, GROUNDS["black"]: 624}


def test_an_object_is_put_on_the_ground_through_its_own_transparency() -> None:
    half = PIL.Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    half.paste((10, 20, 30, 255), (0, 0, 32, 64))
    image = draw_scene(Scene("half", "small", "green"), {"half": half}, 32)
    assert image.getpixel((10, 16)) == (10, 20, 30)
    assert image.getpixel((22, 16)) == GROUNDS["green"]


def test_a_scene_s_document_is_its_caption_and_its_image() -> None:
    scene = Scene("ring", "large", "red", "white")
    image = Image(data=encode_fast_png(draw_scene(scene, {}, 16)))
    document = scene_document(scene, "composed", image)
    assert document.content == (Text("a large white ring on a red ground"), image)
    assert (document.source, document.id) == ("composed", f"composed/{scene.caption}")
    assert document.attributes == scene.attributes


def test_an_image_comes_back_from_its_bytes() -> None:
    image = draw_scene(Scene("cross", "large", "red", "white"), {}, 16)
    assert PIL.Image.open(io.BytesIO(encode_fast_png(image))).tobytes() == image.tobytes()
