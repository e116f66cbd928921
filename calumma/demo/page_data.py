"""The content of the demo's report page as plain values.

`measure.py` fills a `PageData`; `report_page.py` renders it as one HTML file. Images are RGB, of
any size; empty lists leave out their section.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import PIL.Image

from calumma.charts import Chart
from calumma.evaluate.metric import Metric

PagePart = str | PIL.Image.Image
"""A part of an interleaved document."""

TokenLabel = Literal["text", "code", "control", "padding"]


@dataclass(frozen=True)
class TokenCell:
    """One token of a packed sequence."""

    token_id: int
    kind: TokenLabel

    label: str
    """The token's text, the number of its code, or the name of the control token."""

    document_id: int
    """Index of its document in the packed sequence."""


@dataclass(frozen=True)
class TokenizationExample:
    """One document from image to packed sequence."""

    text: str
    image: PIL.Image.Image

    codes: Sequence[Sequence[int]]
    """The image's codes, row by row, each in [0, num_codes)."""

    num_codes: int
    reconstruction: PIL.Image.Image

    packed_sequence: Sequence[TokenCell] = ()
    """A packed sequence of the batch that contains this document."""


@dataclass(frozen=True)
class GeneratedImages:
    """A prompt and the images that the model generated for it."""

    prompt: str
    images: Sequence[PIL.Image.Image]
    note: str = ""


@dataclass(frozen=True)
class CaptionedImage:
    """A held-out image with its reference, generated and baseline caption."""

    image: PIL.Image.Image
    reference: str
    generated: str

    nearest: str = ""
    """The baseline: the caption of the training image with the nearest pixels."""


@dataclass(frozen=True)
class InterleavedSample:
    """A document that the model continued."""

    prompt: Sequence[PagePart]
    answer: Sequence[PagePart]


@dataclass(frozen=True)
class MetricRow:
    """One held-out metric with its target."""

    metric: Metric

    target: str = ""
    """The target in words, such as "30 % below the baseline"; empty where there is none."""

    is_met: bool | None = None
    """Whether the target is met; None where there is none."""


@dataclass(frozen=True, kw_only=True)
class PageData:
    """The content of the page, in order."""

    title: str
    lead: str
    command: str
    machine: str

    seconds: Mapping[str, float] = field(default_factory=dict)
    """Duration of each step of the demo, in order."""

    warnings: Sequence[str] = ()
    generated_images: Sequence[GeneratedImages] = ()
    captions: Sequence[CaptionedImage] = ()
    interleaved: Sequence[InterleavedSample] = ()
    tokenization: TokenizationExample | None = None
    charts: Sequence[Chart] = ()

    sample_strip: str = ""
    """HTML of images by step of pre-training; empty for none."""

    reconstructions: Sequence[tuple[PIL.Image.Image, PIL.Image.Image]] = ()
    """Held-out images with their reconstructions."""

    metrics: Sequence[MetricRow] = ()

    sizes: Sequence[tuple[str, str]] = ()
    """Labels with formatted counts, such as ("parameters", "3.1 M")."""

    next_commands: Sequence[tuple[str, str]] = ()
    """Commands to try next, with descriptions."""

    attribution: Sequence[str] = ()
    """The data sources with their licenses."""


def next_commands(folder: str, prompt: str, question: str) -> tuple[tuple[str, str], ...]:
    """Return commands to try on the demo's model.

    Args:
        folder: the demo's folder.
        prompt: a prompt for an image, as in fine-tuning.
        question: the question for a caption, as in fine-tuning.

    >>> next_commands("out/demo", "draw a red fox", "what is this?")[0][0]
    "calumma generate out/demo/model --prompt 'draw a red fox' --out out/demo/image"
    """
    model, image, text = (shlex.quote(f"{folder}/{name}") for name in ("model", "image", "text"))
    load = f"import calumma; print(calumma.load({json.dumps(folder + '/model')}).vocabulary)"
    return (
        (
            f"calumma generate {model} --prompt {shlex.quote(prompt)} --out {image}",
            "generates an image for your own prompt, with an HTML page of it",
        ),
        (
            f"calumma generate {model} --image picture.png --prompt {shlex.quote(question)} "
            f"--max-images 0 --out {text}",
            "generates a caption for your own image",
        ),
        (f"python -c {shlex.quote(load)}", "loads the model in Python"),
    )
