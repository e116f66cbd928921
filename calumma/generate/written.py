"""A sample on disk: the document, its pictures, and a page of it."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import PIL.Image

from calumma.documents.document import Image, Part, Text
from calumma.files import make_folder, replacing, write_json, write_text
from calumma.generate.sample import Sample

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>calumma: a generated document</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>
:root {{ color-scheme: light dark }}
body {{ font: 1.1rem/1.6 system-ui, sans-serif;
  max-width: 44rem; margin: 3rem auto; padding: 0 1rem }}
section {{ border-left: .25rem solid #8888; padding-left: 1rem; margin: 1.5rem 0;
  white-space: pre-wrap }}
img {{ display: block; min-width: 12rem; max-width: 100%; image-rendering: pixelated;
  margin: .5rem 0 }}
h2 {{ font-size: .9rem; font-weight: 600; opacity: .7 }}
</style></head><body><h2>Prompt</h2><section>{prompt}</section>
<h2>Answer</h2><section>{answer}</section></body></html>
"""


def write_sample(folder: Path, prompt: Sequence[Part], sample: Sample) -> None:
    """Write `document.json`, `document.html` and `images/` into a folder.

    What an earlier sample left there is replaced.
    """
    make_folder(folder / "images")
    for old in (folder / "images").glob("[0-9]*.png"):
        old.unlink()
    asked = [_picture_or_text(part) for part in prompt]
    content: list[dict[str, str]] = []
    for number, part in enumerate(sample.parts):
        if isinstance(part, str):
            content.append({"type": "text", "text": part})
            continue
        path = f"images/{number}.png"
        with replacing(folder / path) as temporary:
            part.save(temporary, "PNG")
        content.append({"type": "image", "path": path})
    record: dict[str, Any] = {
        "id": "generated",
        "source": "calumma generate",
        "content": content,
        "prompt": [part if isinstance(part, str) else "[picture]" for part in asked],
        "finish_reason": sample.finish_reason,
        "num_tokens": len(sample.ids),
        "timings": sample.timings,
    }
    write_json(folder / "document.json", record)
    page = _PAGE.format(prompt=_body(asked), answer=_body(sample.parts))
    write_text(folder / "document.html", page)


def _picture_or_text(part: Part) -> str | PIL.Image.Image:
    return part.text if isinstance(part, Text) else _opened(part)


def _opened(image: Image) -> PIL.Image.Image:
    return image.open().convert("RGB")


def _body(parts: Sequence[str | PIL.Image.Image]) -> str:
    return "".join(html.escape(p) if isinstance(p, str) else _inline(p) for p in parts)


def _inline(picture: PIL.Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="a picture" src="data:image/png;base64,{data}">'
