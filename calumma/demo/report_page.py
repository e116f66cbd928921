"""The demo's page: a `Story` as one HTML file that needs nothing beside it.

No network, no script, no font: pictures are inside as PNG, charts as SVG, and a content security
policy in its head keeps it so. The same story gives the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from string import Template

from calumma.demo.charts import line_chart, shares_bar
from calumma.demo.embed import duration, escaped, picture
from calumma.demo.metrics_table import metrics_table
from calumma.demo.page_data import (
    CaptionedImage,
    Curve,
    GeneratedImages,
    InterleavedSample,
    PageData,
    PagePart,
)
from calumma.demo.tokenization_strip import tokenization_html
from calumma.files import write_text

DRAWN_SIDE = 128
CAPTIONED_SIDE = 96
PAIR_SIDE = 64
"""Pixels of the screen for a picture in each part of the page."""


def write_report_page(path: Path, story: PageData) -> None:
    """Write the page, whole or not at all.

    Raises:
        OutputError: the file cannot be written.
    """
    write_text(path, render_page(story))


def render_page(story: PageData) -> str:
    """The page as HTML."""
    here = files("calumma.demo")
    sections = _sections(story)
    links = " ".join(f'<a href="#{anchor}">{title}</a>' for anchor, title, _ in sections)
    bodies = (
        f'<section id="{anchor}"><h2>{title}</h2>{body}</section>'
        for anchor, title, body in sections
    )
    return Template(here.joinpath("page.html").read_text(encoding="utf-8")).substitute(
        style=here.joinpath("page.css").read_text(encoding="utf-8"),
        title=escaped(story.title),
        lead=escaped(story.lead),
        facts=_facts(story),
        warnings="".join(f'<p class="warning">{escaped(line)}</p>' for line in story.warnings),
        links=f"<nav>{links}</nav>" if len(sections) > 2 else "",
        sections="\n".join(bodies),
    )


def _sections(story: PageData) -> list[tuple[str, str, str]]:
    """Anchor, heading and body of every part that has something to show."""
    parts = [
        ("drawn", "What it drew", _drawings(story.generated_images)),
        ("captioned", "What it saw", _captions(story.captions)),
        ("interleaved", "Words and pictures in one", _interleaved(story.interleaved)),
        ("road", "The road", tokenization_html(story.tokenization) if story.tokenization else ""),
        ("curves", "How it learned", _curves(story.curves)),
        ("rebuilt", "Through the tokenizer", _pairs(story)),
        ("figures", "How good it is", _figures(story)),
        ("time", "Where the time went", _time(story)),
        ("sizes", "How large it is", _sizes(story.sizes)),
        ("on", "How to go on", _ways_on(story.next_commands)),
        ("sources", "Where it comes from", _attribution(story.attribution)),
    ]
    return [part for part in parts if part[2]]


def _facts(story: PageData) -> str:
    facts = [f"<code>{escaped(story.command)}</code>"] if story.command else []
    whole = sum(story.seconds.values())
    if whole > 0:
        facts.append(f"<span>{duration(whole)}</span>")
    if story.machine:
        facts.append(f"<span>{escaped(story.machine)}</span>")
    return "".join(facts)


def _drawings(drawings: Sequence[GeneratedImages]) -> str:
    shown = [
        f'<article><h3>{escaped(drawing.prompt)}</h3><div class="reel">'
        + "".join(
            picture(image, f"drawn for: {drawing.prompt}", DRAWN_SIDE) for image in drawing.images
        )
        + f"</div>{_small(drawing.note)}</article>"
        for drawing in drawings
    ]
    return _with_intro(
        "The words were given; the pictures are the model&rsquo;s own, drawn cell by cell, each "
        "cell guided towards the words.",
        "drawings",
        shown,
    )


def _captions(captions: Sequence[CaptionedImage]) -> str:
    shown = [_captioned(caption) for caption in captions]
    return _with_intro(
        "Pictures it had never seen, and the captions it wrote for them; a dotted line marks words "
        "that the true caption has not. <em>Nearest</em> is the baseline: the caption of the "
        "training picture with the nearest pixels.",
        "captions",
        shown,
    )


def _captioned(caption: CaptionedImage) -> str:
    lines = [("wrote", _differing(caption.generated, caption.reference), "written")]
    lines.append(("truth", escaped(caption.reference), "truth"))
    if caption.nearest:
        lines.append(("nearest", _differing(caption.nearest, caption.reference), "nearest"))
    said = "".join(
        f'<div class="{style}"><dt>{name}</dt><dd>{text}</dd></div>' for name, text, style in lines
    )
    shown = picture(caption.image, caption.reference, CAPTIONED_SIDE)
    return f"<article>{shown}<dl>{said}</dl></article>"


def _differing(text: str, truth: str) -> str:
    """The text, with every word marked that `truth` has not; a tick behind the very truth."""
    known = {word.casefold() for word in re.findall(r"\w+", truth)}
    pieces = re.split(r"(\w+)", text)
    shown = "".join(
        f"<u>{escaped(piece)}</u>"
        if place % 2 and piece.casefold() not in known
        else escaped(piece)
        for place, piece in enumerate(pieces)
    )
    same = " ".join(text.casefold().split()) == " ".join(truth.casefold().split())
    return f'{shown} <b class="met">✓</b>' if same else shown


def _interleaved(documents: Sequence[InterleavedSample]) -> str:
    shown = [
        f'<article><div class="given">{_parts(document.prompt)}</div>'
        f'<div class="answer">{_parts(document.answer)}</div></article>'
        for document in documents
    ]
    return _with_intro(
        "One document of text and pictures in one stream. The model was given what stands on "
        "grey, and wrote and drew the rest.",
        "documents",
        shown,
    )


def _parts(parts: Sequence[PagePart]) -> str:
    return "".join(
        f"<p>{escaped(part)}</p>" if isinstance(part, str) else picture(part, "a picture")
        for part in parts
    )


def _curves(curves: Sequence[Curve]) -> str:
    shown = [
        f"<figure><figcaption><b>{escaped(curve.title)}</b> {escaped(curve.unit)}</figcaption>"
        f"{chart}</figure>"
        for curve in curves
        if (chart := line_chart(curve))
    ]
    intro = "Step by step: the running median strong, each step&rsquo;s own value faint behind it."
    if any(curve.baseline for curve in curves):
        intro += " A dashed line is what knowing the frequencies alone would give."
    return _with_intro(intro, "curves", shown)


def _pairs(story: PageData) -> str:
    shown = [
        f"<figure>{picture(original, 'original', PAIR_SIDE)}"
        f"{picture(rebuilt, 'reconstruction', PAIR_SIDE)}</figure>"
        for original, rebuilt in story.reconstructions
    ]
    return _with_intro(
        "Held-out pictures: on the left the original, on the right what is left of it after "
        "encoding into codes and decoding. No picture that the model draws can be sharper.",
        "pairs",
        shown,
    )


def _figures(story: PageData) -> str:
    if not story.metrics:
        return ""
    return (
        "<p>On held-out documents only. Each line runs from zero: the dot on it is the value, the "
        "band around the dot the 95 % interval, the upright stroke the baseline.</p>"
        + metrics_table(story.metrics)
    )


def _time(story: PageData) -> str:
    bar = shares_bar(story.seconds)
    whole = duration(sum(story.seconds.values()))
    return f"<p>{whole} of work from the first file to this page.</p>{bar}" if bar else ""


def _sizes(sizes: Sequence[tuple[str, str]]) -> str:
    shown = "".join(
        f"<div><dd>{escaped(value)}</dd><dt>{escaped(label)}</dt></div>" for label, value in sizes
    )
    return f'<dl class="sizes">{shown}</dl>' if shown else ""


def _ways_on(ways: Sequence[tuple[str, str]]) -> str:
    shown = "".join(
        f"<li><pre><code>{escaped(command)}</code></pre><span>{escaped(does)}</span></li>"
        for command, does in ways
    )
    return f'<ul class="ways">{shown}</ul>' if shown else ""


def _attribution(sources: Sequence[str]) -> str:
    shown = "".join(f"<li>{escaped(source)}</li>" for source in sources)
    return f'<ul class="attribution">{shown}</ul>' if shown else ""


def _with_intro(intro: str, style: str, shown: Sequence[str]) -> str:
    """A sentence of HTML, and a block of things below it; nothing if there are no things."""
    return f'<p>{intro}</p><div class="{style}">{"".join(shown)}</div>' if shown else ""


def _small(text: str) -> str:
    return f"<small>{escaped(text)}</small>" if text else ""
