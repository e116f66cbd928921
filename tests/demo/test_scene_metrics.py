"""What counts as drawn and named right, by hand."""

from calumma.corpora.still_life import StillLife, Thing
from calumma.demo.scene_metrics import drawing_metrics, naming_metrics

CIRCLE, RING, BANANA = Thing("circle", "red"), Thing("ring", "blue"), Thing("banana")
ROW = StillLife("white", "row", (CIRCLE, BANANA))
COLUMN = StillLife("black", "column", (RING, CIRCLE))


def test_a_thing_must_have_its_color_and_place() -> None:
    swapped = StillLife("white", "row", (BANANA, CIRCLE))
    red_ring = StillLife("black", "column", (Thing("ring", "red"), CIRCLE))
    drawn = {"": [ROW, red_ring], "swapped": [swapped, COLUMN]}
    shapes, objects = drawing_metrics([ROW, COLUMN], drawn)
    assert (shapes.name, shapes.n, shapes.value) == ("shapes_drawn_right", 3, 2 / 3)
    assert shapes.baselines == {"swapped": 2 / 3}
    assert (objects.name, objects.n, objects.value, objects.baseline) == ("objects_drawn_right", 1, 1.0, 0.0)
    assert [m.name for m in drawing_metrics([COLUMN], {"": [COLUMN]})] == ["shapes_drawn_right"]


def test_captions_are_scored_by_thing_and_color() -> None:
    captions = [
        "a blue circle left of a banana on a white background",
        "a blue ring above a red cross on a white background",
    ]
    things, colors = naming_metrics([ROW, COLUMN], {"": captions, "none": ["", ""]})
    assert (things.name, things.n, things.value) == ("things_named_right", 4, 0.75)
    assert (colors.name, colors.n, colors.value) == ("colors_named_right", 4, 0.5)
    assert things.baselines == {"none": 0.0} and colors.baselines == {"none": 0.0}
