"""Write generated samples: documents with their images, and one HTML page of all of them."""

import html
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import PIL.Image

from calumma.documents.document import Part, Text
from calumma.documents.image_formats import data_url, encode_png
from calumma.files import atomic_write, make_folder, write_json, write_text
from calumma.generate.events import ImageCodes, OutputPart, Sample
from calumma.html_report import html_page

_STYLE = """
:root { color-scheme: light dark; --ink: light-dark(#1c2321, #e6ebe8);
  --quiet: light-dark(#5d6b66, #93a39d); --paper: light-dark(#f4f6f3, #141a18);
  --card: light-dark(#fff, #1d2522); --line: light-dark(#dde3df, #2e3935);
  --mark: light-dark(#2f8f6b, #59c79d) }
* { box-sizing: border-box }
body { font: 1.05rem/1.65 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 46rem; margin: 0 auto; padding: 2.5rem 1rem 4rem }
h1 { font-size: 1rem; font-weight: 600; color: var(--quiet); margin: 0 0 1.5rem }
h1 b { color: var(--mark) }
article { background: var(--card); border: 1px solid var(--line); border-radius: .9rem;
  padding: 1.1rem 1.4rem; margin: 0 0 1.2rem }
article.prompt { border-left: .3rem solid var(--mark) }
h2 { font-size: .8rem; font-weight: 600; color: var(--quiet); margin: 0 0 .6rem;
  letter-spacing: .03em }
p { margin: .5rem 0; white-space: pre-wrap; overflow-wrap: anywhere }
figure { display: inline-block; margin: .5rem .8rem .5rem 0; vertical-align: top }
img { display: block; max-width: 100%; height: auto; border-radius: .5rem;
  image-rendering: pixelated }
figcaption, footer { font-size: .82rem; color: var(--quiet); font-variant-numeric: tabular-nums }
footer { border-top: 1px solid var(--line); margin-top: .9rem; padding-top: .6rem }
footer span { white-space: nowrap; margin-right: 1.1em }
.none { color: var(--quiet); font-style: italic }
"""

_GRID_STYLE = """
body { max-width: 76rem } article.prompt { max-width: 46rem }
main { display: grid; gap: 0 1.2rem; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(min(22rem, 100%), 1fr)) }
"""
"""Additional style of a page of several samples."""

_DISPLAY_SIDE = 320
"""Pixels on the screen; smaller images are enlarged up to it by an integer factor."""

_FINISH_REASONS = {"stop": "finished", "length": "reached the token limit", "abort": "aborted"}


def write_samples(
    folder: Path, prompt: Sequence[Part], samples: Sequence[Sample], requests: Sequence[Mapping[str, Any]]
) -> None:
    """Write `document.json` and `images/` of each sample, and `document.html` of all.

    A single sample is written to the folder itself, several to its subfolders `1`, `2`, ...
    Earlier samples there are replaced.

    Args:
        folder: created if it does not exist.
        prompt: the parts of the prompt, in reading order.
        samples: the samples of that prompt.
        requests: the resolved request of each sample, with its "seed"; part of `document.json`.
    """
    prompt_parts = [part.text if isinstance(part, Text) else part.open() for part in prompt]
    for number, (sample, request) in enumerate(zip(samples, requests, strict=True), start=1):
        sample_folder = folder if len(samples) == 1 else folder / str(number)
        _write_document(sample_folder, prompt_parts, sample, request)
    write_text(folder / "document.html", _page(prompt_parts, samples, requests))


def _write_document(
    folder: Path, prompt_parts: Sequence[str | PIL.Image.Image], sample: Sample, request: Mapping[str, Any]
) -> None:
    make_folder(folder / "images")
    for stale in (folder / "images").glob("[0-9]*.png"):
        stale.unlink()
    content: list[dict[str, Any]] = []
    for number, part in enumerate(sample.parts):
        if isinstance(part, str):
            content.append({"type": "text", "text": part})
            continue
        if isinstance(part, ImageCodes):
            content.append({"type": "image_codes", "codes": list(part.codes)})
            continue
        path = f"images/{number}.png"
        with atomic_write(folder / path) as temporary:
            part.save(temporary, "PNG")
        content.append({"type": "image", "path": path})
    record: dict[str, Any] = {
        "id": "generated",
        "source": "calumma generate",
        "content": content,
        "prompt": [part if isinstance(part, str) else "[image]" for part in prompt_parts],
        "request": dict(request),
        "finish_reason": sample.finish_reason,
        "num_tokens": len(sample.token_ids),
        "timings": sample.timings,
    }
    write_json(folder / "document.json", record)


def _page(
    prompt_parts: Sequence[str | PIL.Image.Image], samples: Sequence[Sample], requests: Sequence[Mapping[str, Any]]
) -> str:
    answers = []
    for number, (sample, request) in enumerate(zip(samples, requests, strict=True), start=1):
        name = "Answer" if len(samples) == 1 else f"Answer {number} of {len(samples)}"
        body = _body(sample.parts) or '<p class="none">empty</p>'
        facts = " ".join(f"<span>{html.escape(fact)}</span>" for fact in _facts(sample, request))
        answers.append(f"<article><h2>{name}</h2>{body}<footer>{facts}</footer></article>")
    is_single = len(samples) == 1
    main = "\n".join(answers)
    title = "generated document" if is_single else f"{len(samples)} generated documents"
    body = (
        f'<h1><b>calumma</b> {title}</h1>\n<article class="prompt"><h2>Prompt</h2>'
        f"{_body(prompt_parts)}</article>\n<main>{main}</main>"
    )
    return html_page(title, body, style=_STYLE if is_single else _STYLE + _GRID_STYLE)


def _facts(sample: Sample, request: Mapping[str, Any]) -> Iterator[str]:
    """Yield token counts, speed, mean negative log-likelihood, finish reason and seed."""
    usage = sample.usage.completion
    counts = [(usage.text_tokens, "text"), (usage.image_tokens, "image")]
    modalities = ", ".join(f"{count:,} {modality}" for count, modality in counts if count)
    yield f"{len(sample.token_ids):,} new tokens" + (f" ({modalities})" if modalities else "")
    latency = sample.timings.get("latency")
    if latency:
        yield f"{latency:.2f} s, {len(sample.token_ids) / latency:,.0f} tokens/s"
        yield f"first token after {sample.timings['time_to_first_token']:.2f} s"
    if sample.logprobs:
        yield f"{-sum(sample.logprobs) / len(sample.logprobs):.2f} nats per token"
    yield _FINISH_REASONS[sample.finish_reason]
    forms = (("seed", "seed {}"), ("keep_image_tokens", "{} image tokens kept"))
    yield from (form.format(request[name]) for name, form in forms if name in request)


def describe_image(image: PIL.Image.Image | ImageCodes) -> str:
    """Return a line in place of an image."""
    if isinstance(image, ImageCodes):
        return f"[image of {len(image.codes)} codes]"
    return f"[image of {image.width} x {image.height}]"


def _body(parts: Sequence[OutputPart]) -> str:
    texts = [describe_image(p) if isinstance(p, ImageCodes) else p for p in parts]
    shown = [_figure(p) if not isinstance(p, str) else f"<p>{html.escape(p)}</p>" for p in texts]
    return "".join(one for one in shown if one != "<p></p>")


def _figure(image: PIL.Image.Image) -> str:
    """Embed an image; a small one is enlarged by an integer factor without interpolation."""
    scale = max(1, _DISPLAY_SIDE // max(image.size))
    size = f'width="{image.width * scale}" height="{image.height * scale}"'
    enlarged = f", enlarged {scale} times" if scale > 1 else ""
    source = data_url(encode_png(image.convert("RGB")))
    return (
        f'<figure><img alt="a generated image" {size} src="{source}">'
        f"<figcaption>{image.width} × {image.height} pixels{enlarged}</figcaption></figure>"
    )
