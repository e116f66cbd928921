"""Asked for a colour, does the model draw it? Measured on the pixels of what it drew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import PIL.Image

from calumma.corpora.synthetic_scenes import GROUNDS
from calumma.errors import EvaluationError
from calumma.evaluate.color import background_color, object_color
from calumma.evaluate.context import BATCH_SIZE, EvalConfig, EvalContext, TextImagePair, subsample
from calumma.evaluate.logged_samples import LoggedSample
from calumma.evaluate.metric import Metric, wilson_interval
from calumma.evaluate.reconstruction import require_images
from calumma.generate.model import Model

COLOR_CHANCE = 1 / len(GROUNDS)


@dataclass(frozen=True)
class RequestedColors:
    """Colours that a prompt asks for."""

    ground: str | None
    thing: str | None

    def matches(self, picture: PIL.Image.Image) -> dict[str, bool]:
        """For each kind of colour asked, whether the picture has it."""
        found = {}
        if self.ground:
            found["ground"] = background_color(picture) == self.ground
        if self.thing:
            found["thing"] = object_color(picture) == self.thing
        return found


def color_accuracy(context: EvalContext, config: EvalConfig) -> list[Metric]:
    """Pictures drawn for the captions of composed scenes, and the share of colours they have.

    Raises:
        EvaluationError: no pair has a known colour among the eight, or the model cannot draw.
    """
    known = [pair for pair in context.pairs if requested_colors(pair) is not None]
    if not known:
        raise EvaluationError(
            f"drawing: found no colour of ground or thing known of {len(context.pairs)} pairs; "
            f'expected attributes "ground" or "colour" among {", ".join(GROUNDS)}. Give composed '
            "scenes such as the embedded corpus has (--documents), or leave this task out."
        )
    require_images("drawing", context, len(known))
    pairs = subsample(known, config.max_prompts, config.seed)
    pictures = generate_images(context.model, [pair.text for pair in pairs], config)
    for pair, picture in config.first_to_log(pairs, pictures):
        prompt = list(_phrased(pair.text, config))
        context.logged_samples.append(
            LoggedSample(task="drawing", prompt=prompt, answer=[picture], target=[pair.picture])
        )
    asked = [question for pair in pairs if (question := requested_colors(pair))]
    ruler = _hits(asked, [pair.pil_image for pair in pairs])
    return color_metrics(_hits(asked, pictures), ruler)


def requested_colors(pair: TextImagePair) -> RequestedColors | None:
    """The colours among the eight that a pair's attributes name, or None for none."""
    attributes = pair.document.attributes
    ground, thing = attributes.get("ground"), attributes.get("colour")
    asked = RequestedColors(
        ground if ground in GROUNDS else None, thing if thing in GROUNDS else None
    )
    return asked if asked.ground or asked.thing else None


def generate_images(
    model: Model, captions: Sequence[str], config: EvalConfig
) -> list[PIL.Image.Image]:
    """One picture for each caption, each from a seed of its own."""
    room = model.image.config.codes_per_image + 2
    pictures = []
    for start in range(0, len(captions), BATCH_SIZE):
        piece = captions[start : start + BATCH_SIZE]
        samples = model.generate_batch(
            [list(_phrased(caption, config)) for caption in piece],
            answer=config.chat_template,
            seeds=[config.seed + start + number for number in range(len(piece))],
            max_new_tokens=room,
            max_images=1,
            image_first=True,
            image=config.image,
        )
        for sample in samples:
            pictures.append(_picture(sample.parts))
        config.on_progress(start + len(piece), len(captions))
    return pictures


def _phrased(caption: str, config: EvalConfig) -> Sequence[str]:
    """The texts of the prompt that asks for a caption's picture."""
    if config.format_prompt:
        return config.format_prompt(caption)
    return [f"draw {caption}" if config.chat_template else caption]


def _picture(parts: Sequence[str | PIL.Image.Image]) -> PIL.Image.Image:
    found = next((part for part in parts if isinstance(part, PIL.Image.Image)), None)
    if found is None:
        raise EvaluationError(
            "drawing: a prompt leaves no room for a picture; expected it and the picture's codes "
            "within the longest row the model reads. Ask more briefly, or leave this task out."
        )
    return found


_Matches = Sequence[dict[str, bool]]


def _hits(asked: Sequence[RequestedColors], pictures: Sequence[PIL.Image.Image]) -> _Matches:
    return [question.matches(p) for question, p in zip(asked, pictures, strict=True)]


def color_metrics(drawn: _Matches, ruler: _Matches) -> list[Metric]:
    """The share of colours that are there: of all that were asked, and by kind.

    Args:
        drawn: for each drawn picture, whether it has the ground's and the thing's colour.
        ruler: the same of the documents' own pictures: how good the measurement itself is.
    """
    figures = []
    for name, kind in (("", None), ("_ground", "ground"), ("_thing", "thing")):
        found = [_only(hits, kind) for hits in drawn if _only(hits, kind)]
        if not found:
            continue
        share = _share(found)
        own = _share([_only(hits, kind) for hits in ruler])
        asked = sum(map(len, found))
        figures.append(
            Metric(
                name=f"colour_asked_colour_drawn{name}",
                value=share,
                baseline=COLOR_CHANCE,
                n=len(found),
                # Two questions on one picture are no two pictures: n is what was drawn.
                interval=wilson_interval(share * len(found), len(found)),
                unit="share",
                note=f"{asked} colours asked of {len(found)} drawn pictures, by pixels; the "
                f"documents' own pictures get {own:.3f}",
            )
        )
    return figures


def _only(hits: dict[str, bool], kind: str | None) -> list[bool]:
    return [hit for name, hit in hits.items() if kind in (None, name)]


def _share(found: Sequence[Sequence[bool]]) -> float:
    flat = [hit for hits in found for hit in hits]
    return sum(flat) / len(flat)
