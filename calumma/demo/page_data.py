"""All that the demo's page shows, as plain values: no model, no file, nothing left to compute.

The program that walks the road fills a `Story`; `page.py` turns it into one HTML file. Pictures
are RGB Pillow pictures of any size; long lists are fine, empty ones leave no trace on the page.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import PIL.Image

PagePart = str | PIL.Image.Image
"""Of an interleaved document: a run of text, or a picture."""

TokenKind = Literal["text", "code", "control", "padding"]
"""What an id of a row is."""


@dataclass(frozen=True)
class TokenCell:
    """One id of a row of the batch."""

    token_id: int
    kind: TokenKind

    label: str
    """What the id stands for: a piece of text, the number of a code, a control token's name."""

    document_id: int
    """Which sequence of the row it belongs to, counted from 0."""


@dataclass(frozen=True)
class TokenizationExample:
    """One document on its way from picture to row."""

    text: str
    image: PIL.Image.Image

    codes: Sequence[Sequence[int]]
    """The picture's codes, row by row, each in [0, num_codes)."""

    num_codes: int
    reconstruction: PIL.Image.Image

    packed_sequence: Sequence[TokenCell] = ()
    """A row of the batch in which this document stands."""


@dataclass(frozen=True)
class Series:
    """One line of a chart."""

    name: str
    """One of its own among the lines of the chart."""

    points: Sequence[tuple[int, float]]
    """Step and value, steps rising; values that are not finite are left out of the chart."""


@dataclass(frozen=True)
class Curve:
    """One chart over the steps of a training run."""

    title: str
    unit: str
    series: Sequence[Series]

    boundary: int | None = None
    """The step at which stage two begins; None for a run of one stage."""

    boundary_label: str = "stage two"

    baseline: Mapping[str, float] = field(default_factory=dict)
    """Levels drawn as dashed lines; one with a series' name has that series' colour."""


@dataclass(frozen=True)
class GeneratedImages:
    """A prompt, and the pictures that the model drew for it."""

    prompt: str
    images: Sequence[PIL.Image.Image]

    note: str = ""
    """What the reader should know, such as that training never showed this combination."""


@dataclass(frozen=True)
class CaptionedImage:
    """A held-out picture, and what was said of it."""

    image: PIL.Image.Image
    reference: str
    generated: str

    nearest: str = ""
    """The baseline: the caption of the training picture whose pixels are nearest."""


@dataclass(frozen=True)
class InterleavedSample:
    """A document that the model went on with."""

    prompt: Sequence[PagePart]
    answer: Sequence[PagePart]


@dataclass(frozen=True)
class MetricRow:
    """One held-out figure beside its baseline."""

    name: str
    """As in `report.json`; the page says the known ones in plain words."""

    value: float
    baseline: float | None
    n: int

    interval: tuple[float, float] | None
    """Lower and upper end of the 95 % interval of the value."""

    unit: str
    """`share` (0 to 1, shown in per cent), or a unit that is written out, such as `bits`."""

    note: str = ""

    target: str = ""
    """The bar in words, such as "at most 70 % of the baseline"; empty where there is none."""

    is_met: bool | None = None
    """Whether the bar was met; None where there is none."""


@dataclass(frozen=True, kw_only=True)
class PageData:
    """Everything on the page, in the order in which the page tells it."""

    title: str
    lead: str
    command: str
    machine: str

    seconds: Mapping[str, float] = field(default_factory=dict)
    """How long each step of the road took, in the order of the road."""

    warnings: Sequence[str] = ()
    generated_images: Sequence[GeneratedImages] = ()
    captions: Sequence[CaptionedImage] = ()
    interleaved: Sequence[InterleavedSample] = ()
    tokenization: TokenizationExample | None = None
    curves: Sequence[Curve] = ()

    reconstructions: Sequence[tuple[PIL.Image.Image, PIL.Image.Image]] = ()
    """Held-out pictures, each with what the image tokenizer makes of it."""

    metrics: Sequence[MetricRow] = ()

    sizes: Sequence[tuple[str, str]] = ()
    """What was counted and the count as it should be read, such as ("parameters", "3.1 M")."""

    next_commands: Sequence[tuple[str, str]] = ()
    """A command to try next, and what it does."""

    attribution: Sequence[str] = ()
    """One source with its licence each."""


def next_commands(folder: str, prompt: str, question: str) -> tuple[tuple[str, str], ...]:
    """Commands to try on the model that the demo left in `folder`.

    Args:
        folder: where the demo wrote its model and page.
        prompt: words to draw from, as fine-tuning put them.
        question: words that fine-tuning put behind a picture to ask for its caption.

    >>> ways_on("out/demo", "draw a red fox", "what is this?")[0][0]
    "calumma generate out/demo/model --prompt 'draw a red fox' --out out/demo/drawn"
    """
    model, drawn, read = (shlex.quote(f"{folder}/{name}") for name in ("model", "drawn", "read"))
    load = f"import calumma; print(calumma.load({json.dumps(folder + '/model')}).vocabulary)"
    return (
        (
            f"calumma generate {model} --prompt {shlex.quote(prompt)} --out {drawn}",
            "draws a picture for words of your own, and leaves a page of it",
        ),
        (
            f"calumma generate {model} --image picture.png --prompt {shlex.quote(question)} "
            f"--max-images 0 --out {read}",
            "writes a caption for a picture of your own",
        ),
        (f"python -c {shlex.quote(load)}", "has the model in Python, to do anything with it"),
    )
