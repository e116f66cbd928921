"""The demo's report page: a `PageData` as one self-contained HTML file.

The same data gives the same bytes.
"""

import re
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

from calumma.charts import Chart, stacked_bar
from calumma.demo.metrics_table import metrics_table
from calumma.demo.page_data import CaptionedImage, GeneratedImages, InterleavedSample, PageData, PagePart
from calumma.demo.tokenization_strip import tokenization_html
from calumma.files import write_text
from calumma.html_report import CHART_STYLE, html_page, image_tag
from calumma.text_format import format_duration
from calumma.train.run_samples import SAMPLE_STYLE

_GENERATED_SIDE = 128
_CAPTIONED_SIDE = 96
_PAIR_SIDE = 64
"""Display sizes of images in pixels, by section."""


def write_report_page(path: Path, data: PageData) -> None:
    """Write the page atomically.

    Raises:
        OutputError: the file cannot be written.
    """
    write_text(path, render_page(data))


def render_page(data: PageData) -> str:
    """Return the page as HTML."""
    sections = _sections(data)
    links = " ".join(f'<a href="#{anchor}">{title}</a>' for anchor, title, _ in sections)
    bodies = (f'<section id="{anchor}"><h2>{title}</h2>{body}</section>' for anchor, title, body in sections)
    header = [
        f"<h1>{escape(data.title)}</h1>",
        f'<p class="lead">{escape(data.lead)}</p>',
        f'<p class="facts">{_facts(data)}</p>',
        *(f'<p class="warning">{escape(line)}</p>' for line in data.warnings),
        f"<nav>{links}</nav>" if len(sections) > 2 else "",
    ]
    body = "\n".join(["<header>", *header, "</header>", "<main>", *bodies, "</main>"])
    style = files("calumma.demo").joinpath("page.css").read_text(encoding="utf-8")
    return html_page(data.title, body, style=CHART_STYLE + SAMPLE_STYLE + style)


def _sections(data: PageData) -> list[tuple[str, str, str]]:
    """Return anchor, heading and body of every section with content."""
    tokenization = tokenization_html(data.tokenization) if data.tokenization else ""
    sections = [
        ("generated", "Generated images", _generated(data.generated_images)),
        ("captions", "Captions", _captions(data.captions)),
        ("interleaved", "Interleaved documents", _interleaved(data.interleaved)),
        ("tokenization", "Tokenization", tokenization),
        ("learning", "Learning to draw", _learning(data.sample_strip)),
        ("training", "Training", _charts(data.charts)),
        ("reconstructions", "Reconstructions", _reconstructions(data)),
        ("evaluation", "Evaluation", _metrics(data)),
        ("time", "Time", _time(data)),
        ("sizes", "Sizes", _sizes(data.sizes)),
        ("next", "Next steps", _commands(data.next_commands)),
        ("sources", "Data sources", _attribution(data.attribution)),
    ]
    return [section for section in sections if section[2]]


def _facts(data: PageData) -> str:
    facts = [f"<code>{escape(data.command)}</code>"] if data.command else []
    total = sum(data.seconds.values())
    if total > 0:
        facts.append(f"<span>{format_duration(total)}</span>")
    if data.machine:
        facts.append(f"<span>{escape(data.machine)}</span>")
    return "".join(facts)


def _generated(samples: Sequence[GeneratedImages]) -> str:
    articles = []
    for sample in samples:
        images = "".join(
            image_tag(image, f"generated for: {sample.prompt}", _GENERATED_SIDE) for image in sample.images
        )
        note = f"<small>{escape(sample.note)}</small>" if sample.note else ""
        heading = f"<h3>{escape(sample.prompt)}</h3>"
        articles.append(f'<article>{heading}<div class="reel">{images}</div>{note}</article>')
    return _section(
        "Images sampled token by token from a text prompt, with classifier-free guidance.", "generated", articles
    )


def _captions(captions: Sequence[CaptionedImage]) -> str:
    return _section(
        "Greedy captions of held-out images. Dotted lines mark words that the reference caption does not have. "
        "<em>Nearest</em> is the baseline: the caption of the training image with the nearest pixels.",
        "captions",
        [_caption(caption) for caption in captions],
    )


def _caption(caption: CaptionedImage) -> str:
    lines = [
        ("model", _mark_differences(caption.generated, caption.reference), "model"),
        ("reference", escape(caption.reference), "reference"),
    ]
    if caption.nearest:
        lines.append(("nearest", _mark_differences(caption.nearest, caption.reference), "nearest"))
    rows = "".join(f'<div class="{style}"><dt>{name}</dt><dd>{text}</dd></div>' for name, text, style in lines)
    image = image_tag(caption.image, caption.reference, _CAPTIONED_SIDE)
    return f"<article>{image}<dl>{rows}</dl></article>"


def _mark_differences(text: str, reference: str) -> str:
    """Underline the words that the reference does not have; a check mark if both are equal."""
    known = {word.casefold() for word in re.findall(r"\w+", reference)}
    words = re.split(r"(\w+)", text)
    marked = "".join(
        f"<u>{escape(word)}</u>" if index % 2 and word.casefold() not in known else escape(word)
        for index, word in enumerate(words)
    )
    is_equal = " ".join(text.casefold().split()) == " ".join(reference.casefold().split())
    return f'{marked} <b class="met">✓</b>' if is_equal else marked


def _interleaved(samples: Sequence[InterleavedSample]) -> str:
    articles = [
        f'<article><div class="given">{_parts(sample.prompt)}</div>'
        f'<div class="answer">{_parts(sample.answer)}</div></article>'
        for sample in samples
    ]
    return _section(
        "Text and images in one sequence: the prompt is shaded, the rest is generated.", "documents", articles
    )


def _parts(parts: Sequence[PagePart]) -> str:
    return "".join(
        f"<p>{escape(part)}</p>" if isinstance(part, str) else image_tag(part, "an image") for part in parts
    )


def _charts(charts: Sequence[Chart]) -> str:
    intro = "Running median over the steps, with the raw values in a lighter shade."
    if any(chart.levels for chart in charts):
        intro += " Dashed lines: a unigram model of the training tokens."
    shown = [chart for chart in charts if any(curve.points for curve in chart.curves.values())]
    return _section(intro, "curves", [chart.to_html() for chart in shown])


def _learning(strip: str) -> str:
    intro = "Held-out captions, continued with an image by the weights after each number of steps of pre-training."
    return _section(intro, "learning", [strip] if strip else [])


def _reconstructions(data: PageData) -> str:
    figures = [
        f"<figure>{image_tag(original, 'original', _PAIR_SIDE)}"
        f"{image_tag(rebuilt, 'reconstruction', _PAIR_SIDE)}</figure>"
        for original, rebuilt in data.reconstructions
    ]
    return _section(
        "Held-out images (left) and their reconstructions from codes (right), an upper bound of "
        "the quality of generated images.",
        "pairs",
        figures,
    )


def _metrics(data: PageData) -> str:
    if not data.metrics:
        return ""
    return (
        "<p>On held-out documents. Each mark is on a line that starts at zero: the dot is the "
        "value, the blue band its 95 % interval, the orange tick the baseline.</p>" + metrics_table(data.metrics)
    )


def _time(data: PageData) -> str:
    bar = stacked_bar(data.seconds, "time by step")
    total = format_duration(sum(data.seconds.values()))
    return f"<p>{total} from the first step to this page.</p>{bar}" if bar else ""


def _sizes(sizes: Sequence[tuple[str, str]]) -> str:
    rows = "".join(f"<div><dd>{escape(value)}</dd><dt>{escape(label)}</dt></div>" for label, value in sizes)
    return f'<dl class="sizes">{rows}</dl>' if rows else ""


def _commands(commands: Sequence[tuple[str, str]]) -> str:
    items = "".join(
        f"<li><pre><code>{escape(command)}</code></pre><span>{escape(description)}</span></li>"
        for command, description in commands
    )
    return f'<ul class="commands">{items}</ul>' if items else ""


def _attribution(sources: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(source)}</li>" for source in sources)
    return f'<ul class="attribution">{items}</ul>' if items else ""


def _section(intro: str, style: str, blocks: Sequence[str]) -> str:
    """Return an introduction and blocks; nothing if there are no blocks."""
    return f'<p>{intro}</p><div class="{style}">{"".join(blocks)}</div>' if blocks else ""
