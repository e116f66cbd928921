"""The study of the served demo, with a server that answers from a list."""

import base64
import io
from typing import Any

import PIL.Image

from calumma.corpora.still_life import StillLife, Thing
from calumma.demo.scenes import DESCRIBE_PROMPT, draw_prompt, scene_caption
from calumma.evaluate.still_life_judge import read_still_life
from studies.served_demo import study

ROW = StillLife("white", "row", (Thing("circle", "red"), Thing("banana")))
SINGLE = StillLife("black", "single", (Thing("ring", "blue"),), "small")
SCENES = [ROW, SINGLE]


def answer(body: dict[str, Any]) -> dict[str, Any]:
    """Draw the row and no single thing; caption everything right but for the banana."""
    assert set(body) == {"messages"}
    content = body["messages"][0]["content"]
    if isinstance(content, str):
        assert content in [draw_prompt(scene_caption(scene)) for scene in SCENES]
        url = "data:image/png;base64," + base64.b64encode(ROW.to_png()).decode()
        images = [{"image_url": {"url": url}}] if "banana" in content else []
        return {"choices": [{"message": {"images": images, "content": None}}]}
    image, text = content
    assert text["text"] == DESCRIBE_PROMPT
    png = base64.b64decode(image["image_url"]["url"].partition(",")[2])
    caption = scene_caption(read_still_life(PIL.Image.open(io.BytesIO(png))).scene)
    return {"choices": [{"message": {"images": [], "content": caption.replace("banana", "bell")}}]}


def test_answers_are_scored_against_the_scenes() -> None:
    metrics = {metric.name: metric for metric in study.measure(answer, SCENES)}
    assert {name: (metric.n, metric.value) for name, metric in metrics.items()} == {
        "shapes_drawn_right": (2, 0.5),
        "objects_drawn_right": (1, 1.0),
        "things_named_right": (3, 2 / 3),
        "colors_named_right": (4, 1.0),
    }
    rows = study.table(list(metrics.values())).splitlines()
    assert rows[2].startswith("| shapes_drawn_right | 2 | 50.0% | ")
