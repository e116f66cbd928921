"""What the demo's model draws and names right, on held-out scenes."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

from calumma.corpora.still_life import StillLife
from calumma.demo.scenes import load_scenes, scene_caption
from calumma.evaluate.captioning import generate_captions, nearest_captions
from calumma.evaluate.color_accuracy import generate_images
from calumma.evaluate.context import EvalConfig, EvalContext
from calumma.evaluate.metric import Metric, proportion_metric
from calumma.evaluate.still_life_judge import read_still_life
from calumma.evaluate.still_life_scores import score_caption

_Item = TypeVar("_Item")


def scene_metrics(context: EvalContext, config: EvalConfig) -> list[Metric]:
    """Draw held-out captions by the model's own sampling rules, and describe held-out images."""
    by_caption = {scene_caption(scene): scene for scene in load_scenes().held_out}
    scenes = [by_caption[pair.text] for pair in context.pairs]
    images = generate_images(context.model, [pair.text for pair in context.pairs], config)
    drawn = [read_still_life(image).scene for image in images]
    captions = generate_captions(context, context.pairs, config)
    nearest = nearest_captions(context.pairs, config.training_documents)
    return [
        *drawing_metrics(scenes, {"": drawn, "another prompt's image": _shifted(drawn)}),
        *naming_metrics(
            scenes, {"": captions, "another image's caption": _shifted(captions), "nearest image's caption": nearest}
        ),
    ]


def _shifted(items: Sequence[_Item]) -> list[_Item]:
    return [items[-1], *items[:-1]]


def drawing_metrics(scenes: Sequence[StillLife], drawn: Mapping[str, Sequence[StillLife]]) -> list[Metric]:
    """Compare drawn images with the scenes of their prompts.

    Args:
        scenes: the requested scenes.
        drawn: what the images show, by the name of the baseline; "" are the model's images.
    """
    metrics = []
    for name, is_shape in (("shapes", True), ("objects", False)):
        hits = {
            baseline: [
                position in image.positions
                for scene, image in zip(scenes, images, strict=True)
                for position in scene.positions
                if bool(position[1].color) is is_shape
            ]
            for baseline, images in drawn.items()
        }
        metrics += _metrics(f"{name}_drawn_right", hits, "kind, color and position, read by a program")
    return metrics


def naming_metrics(scenes: Sequence[StillLife], captions: Mapping[str, Sequence[str]]) -> list[Metric]:
    """Compare captions with the scenes of their images; "" are the model's captions."""
    metrics = []
    for name in ("things", "colors"):
        hits = {
            baseline: [
                hit
                for scene, text in zip(scenes, texts, strict=True)
                for hit in getattr(score_caption(scene, text), name)
            ]
            for baseline, texts in captions.items()
        }
        metrics += _metrics(f"{name}_named_right", hits, "greedy captions")
    return metrics


def _metrics(name: str, hits: Mapping[str, Sequence[bool]], note: str) -> list[Metric]:
    """Return a metric with its baselines; none if there is nothing to count."""
    if not hits[""]:
        return []
    baselines = {baseline: float(np.mean(found or [False])) for baseline, found in hits.items() if baseline}
    return [proportion_metric(name, hits[""], note).with_baselines(baselines)]
