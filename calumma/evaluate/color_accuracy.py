"""The `color_accuracy` task: whether generated images have the colors that the prompt names.

Colors are found from pixels alone and compared in CIELAB, where equal distances look about equally
far. The formulas are those of CIE 15:2004 for sRGB under D65.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from calumma.corpora.synthetic_scenes import GROUNDS
from calumma.errors import EvaluationError
from calumma.evaluate.context import BATCH_SIZE, EvalConfig, EvalContext, TextImagePair, subsample
from calumma.evaluate.logged_samples import LoggedSample
from calumma.evaluate.metric import Metric, wilson_interval
from calumma.evaluate.reconstruction import require_images
from calumma.generate.model import Model

COLOR_NAMES = tuple(GROUNDS)
COLOR_CHANCE = 1 / len(GROUNDS)

BORDER_FRACTION = 1 / 16
"""Width of the frame that shows only background, as a fraction of the side."""

_TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
_WHITE = _TO_XYZ.sum(axis=1)


@dataclass(frozen=True)
class RequestedColors:
    """Colors that a prompt names."""

    ground: str | None
    thing: str | None

    def matches(self, image: PIL.Image.Image) -> dict[str, bool]:
        """Return for each requested color whether the image has it."""
        found = {}
        if self.ground:
            found["ground"] = background_color(image) == self.ground
        if self.thing:
            found["thing"] = object_color(image) == self.thing
        return found


def colored_pairs(context: EvalContext) -> list[TextImagePair]:
    """Return the pairs that name a color of their ground or thing.

    Raises:
        EvaluationError: there are none, or the model has no image decoder.
    """
    pairs = [pair for pair in context.pairs if requested_colors(pair) is not None]
    if not pairs:
        raise EvaluationError(
            f"color_accuracy: found no color of ground or thing among {len(context.pairs)} pairs; "
            f'expected attributes "ground" or "colour" among {", ".join(GROUNDS)}. Give composed '
            "scenes such as the embedded corpus has (--documents), or leave this task out."
        )
    require_images("color_accuracy", context, len(pairs))
    return pairs


def color_accuracy(context: EvalContext, config: EvalConfig) -> list[Metric]:
    """Generate images for the captions of composed scenes and measure the color accuracy.

    Raises:
        EvaluationError: no pair names one of the eight colors, or the model has no image decoder.
    """
    pairs = subsample(colored_pairs(context), config.max_prompts, config.seed)
    images = generate_images(context.model, [pair.text for pair in pairs], config)
    for pair, image in config.first_to_log(pairs, images):
        prompt = list(_prompt(pair.text, config))
        context.logged_samples.append(
            LoggedSample(task="color_accuracy", prompt=prompt, answer=[image], target=[pair.pil_image])
        )
    requested = [colors for pair in pairs if (colors := requested_colors(pair))]
    references = _match_all(requested, [pair.pil_image for pair in pairs])
    return color_metrics(_match_all(requested, images), references)


def requested_colors(pair: TextImagePair) -> RequestedColors | None:
    """Return the colors among the eight that a pair's attributes name; None for none."""
    attributes = pair.document.attributes
    ground, thing = attributes.get("ground"), attributes.get("colour")
    colors = RequestedColors(ground if ground in GROUNDS else None, thing if thing in GROUNDS else None)
    return colors if colors.ground or colors.thing else None


def generate_images(model: Model, captions: Sequence[str], config: EvalConfig) -> list[PIL.Image.Image]:
    """Generate one image for each caption, each with its own seed."""
    max_new_tokens = model.vocabulary.max_image_tokens(model.image.config.codes_per_image)
    images = []
    for start in range(0, len(captions), BATCH_SIZE):
        batch = captions[start : start + BATCH_SIZE]
        samples = model.generate_batch(
            [list(_prompt(caption, config)) for caption in batch],
            add_generation_prompt=config.chat_template,
            seeds=[config.seed + start + number for number in range(len(batch))],
            max_new_tokens=max_new_tokens,
            max_images=1,
            image_first=True,
            **config.image_options,
        )
        for sample in samples:
            images.append(_first_image(sample.decoded_parts))
        config.on_progress(start + len(batch), len(captions))
    return images


def _prompt(caption: str, config: EvalConfig) -> Sequence[str]:
    """Return the texts of the prompt for a caption's image."""
    if config.format_prompt:
        return config.format_prompt(caption)
    return [f"draw {caption}" if config.chat_template else caption]


def _first_image(parts: Sequence[str | PIL.Image.Image]) -> PIL.Image.Image:
    image = next((part for part in parts if isinstance(part, PIL.Image.Image)), None)
    if image is None:
        raise EvaluationError(
            "color_accuracy: a prompt leaves no tokens for an image; expected the prompt and the image's codes within "
            "the model's max_seq_len. Use shorter prompts, or leave this task out."
        )
    return image


_Matches = Sequence[dict[str, bool]]


def _match_all(requested: Sequence[RequestedColors], images: Sequence[PIL.Image.Image]) -> _Matches:
    return [colors.matches(image) for colors, image in zip(requested, images, strict=True)]


def color_metrics(generated: _Matches, references: _Matches) -> list[Metric]:
    """Return the proportion of requested colors that are there, over all and by kind.

    The metric is named `colour_asked_colour_drawn` in reports (a name of the contract).

    Args:
        generated: matches of each generated image.
        references: matches of the documents' own images: the accuracy of the measurement itself.
    """
    metrics = []
    for suffix, kind in (("", None), ("_ground", "ground"), ("_thing", "thing")):
        matches = [_of_kind(match, kind) for match in generated if _of_kind(match, kind)]
        if not matches:
            continue
        accuracy = _mean(matches)
        reference_accuracy = _mean([_of_kind(match, kind) for match in references])
        num_requested = sum(map(len, matches))
        metrics.append(
            Metric(
                name=f"colour_asked_colour_drawn{suffix}",
                value=accuracy,
                baseline=COLOR_CHANCE,
                n=len(matches),
                # Two colors of one image are not independent: n counts images.
                interval=wilson_interval(accuracy * len(matches), len(matches)),
                unit="share",
                note=f"{num_requested} colors requested of {len(matches)} generated images, by "
                f"pixels; the documents' own images get {reference_accuracy:.3f}",
            )
        )
    return metrics


def _of_kind(match: dict[str, bool], kind: str | None) -> list[bool]:
    return [hit for name, hit in match.items() if kind in (None, name)]


def _mean(matches: Sequence[Sequence[bool]]) -> float:
    flat = [hit for match in matches for hit in match]
    return sum(flat) / len(flat)


def to_lab(rgb: NDArray[np.generic]) -> NDArray[np.float64]:
    """Convert [..., 3] sRGB in [0, 255] to CIELAB: L in [0, 100], a and b about in [-100, 100].

    >>> to_lab(np.array([255, 255, 255])).round(3).tolist()
    [100.0, 0.0, 0.0]
    """
    values = np.asarray(rgb, dtype=np.float64) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    xyz = linear @ _TO_XYZ.T / _WHITE
    low, slope = (6 / 29) ** 3, (29 / 6) ** 2 / 3
    f = np.where(xyz > low, np.cbrt(xyz), slope * xyz + 4 / 29)
    x, y, z = f[..., 0], f[..., 1], f[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


@cache
def _color_lab() -> NDArray[np.float64]:
    return to_lab(np.array(list(GROUNDS.values())))


def nearest_colors(rgb: NDArray[np.generic]) -> NDArray[np.intp]:
    """Return the index in COLOR_NAMES of the nearest color: [N, 3] sRGB in [0, 255] -> [N]."""
    difference = to_lab(rgb)[:, None] - _color_lab()
    return np.square(difference).sum(axis=-1).argmin(axis=1)


def background_color(image: PIL.Image.Image) -> str:
    """Return the name of the background color: that of the median pixel of the border."""
    pixels = np.asarray(image.convert("RGB"))
    return COLOR_NAMES[nearest_colors(np.median(pixels[_border(pixels)], axis=0)[None])[0]]


def object_color(image: PIL.Image.Image) -> str | None:
    """Return the most common color inside the border other than the background's, or None."""
    pixels = np.asarray(image.convert("RGB"))
    inside = nearest_colors(pixels[~_border(pixels)])
    counts = np.bincount(inside, minlength=len(COLOR_NAMES))
    counts[COLOR_NAMES.index(background_color(image))] = 0
    return COLOR_NAMES[int(counts.argmax())] if counts.any() else None


def _border(pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return a mask [H, W] bool, True in the frame."""
    height, width = pixels.shape[:2]
    frame = np.ones((height, width), dtype=bool)
    rows, columns = max(1, round(height * BORDER_FRACTION)), max(1, round(width * BORDER_FRACTION))
    frame[rows : height - rows, columns : width - columns] = False
    return frame
