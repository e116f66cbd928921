"""What the demo's model draws and names right through the HTTP server, with no sampling field set.

    calumma demo
    python studies/served_demo/study.py out/demo/model
    python studies/served_demo/study.py out/demo/model --num-scenes 20

Starts `calumma serve`, requests an image of each held-out caption and a description of each held-out
image as a user types them, and reads the images with the judge of still lifes. Prints a table.
"""

import argparse
import base64
import io
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import PIL.Image

sys.path.insert(0, str(Path(__file__).parents[2]))  # run as a file, it finds the other modules too

from benches.measure import describe_machine
from benches.serve import serving
from calumma.corpora.still_life import StillLife
from calumma.demo.scene_metrics import drawing_metrics, naming_metrics
from calumma.demo.scenes import DESCRIBE_PROMPT, draw_prompt, load_scenes, scene_caption
from calumma.evaluate.metric import Metric
from calumma.evaluate.still_life_judge import read_still_life

_CLIENTS = 16
"""Requests at a time; the sampling of one does not depend on the others."""

_EMPTY = StillLife("white", "corners", (None,) * 4)
"""What an answer without an image shows."""


def draw(chat: Callable[[dict[str, Any]], dict[str, Any]], scene: StillLife) -> StillLife:
    """Request an image of a scene's caption and read it."""
    prompt = draw_prompt(scene_caption(scene))
    message = chat({"messages": [{"role": "user", "content": prompt}]})["choices"][0]["message"]
    if not message["images"]:
        return _EMPTY
    data = message["images"][0]["image_url"]["url"].partition(",")[2]
    return read_still_life(PIL.Image.open(io.BytesIO(base64.b64decode(data)))).scene


def describe(chat: Callable[[dict[str, Any]], dict[str, Any]], scene: StillLife) -> str:
    """Send the image of a scene and return the words of the answer."""
    url = "data:image/png;base64," + base64.b64encode(scene.to_png()).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": DESCRIBE_PROMPT}]
    message = chat({"messages": [{"role": "user", "content": content}]})["choices"][0]["message"]
    return str(message["content"] or "")


def measure(chat: Callable[[dict[str, Any]], dict[str, Any]], scenes: Sequence[StillLife]) -> list[Metric]:
    """Return the metrics over scenes.

    Args:
        chat: sends the body of a request to `/v1/chat/completions` and returns the response.
        scenes: held out from training.
    """
    with ThreadPoolExecutor(_CLIENTS) as pool:
        drawn = list(pool.map(lambda scene: draw(chat, scene), scenes))
        texts = list(pool.map(lambda scene: describe(chat, scene), scenes))
    others = {"another prompt's image": [drawn[-1], *drawn[:-1]]}
    return [
        *drawing_metrics(scenes, {"": drawn, **others}),
        *naming_metrics(scenes, {"": texts, "another image's caption": [texts[-1], *texts[:-1]]}),
    ]


def table(metrics: Sequence[Metric]) -> str:
    """Return the metrics as Markdown."""
    lines = ["| metric | n | value | 95 % interval | baseline |", "|---|---|---|---|---|"]
    for metric in metrics:
        assert metric.interval is not None and metric.baseline is not None, metric.name
        low, high = metric.interval
        lines.append(
            f"| {metric.name} | {metric.n} | {metric.value:.1%} | {low:.1%} to {high:.1%} | {metric.baseline:.1%} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Serve, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--num-scenes", type=int, default=120)
    args = parser.parse_args()

    with serving(args.model) as server:

        def chat(body: dict[str, Any]) -> dict[str, Any]:
            response = server.chat({"model": args.model.name, **body})
            assert response is not None, "the client does not disconnect"
            return response

        print(table(measure(chat, load_scenes().held_out[: args.num_scenes])))
    print(f"\n{describe_machine()}")


if __name__ == "__main__":
    main()
