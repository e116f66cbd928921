"""Logged samples: the exact prompts and answers of a task, for the report."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image

from calumma.documents.image_formats import data_url, encode_png
from calumma.files import atomic_write, make_folder

SAMPLES_FOLDER = "samples"

SampleParts = Sequence[str | PIL.Image.Image]


@dataclass(frozen=True, kw_only=True)
class LoggedSample:
    """One prompt of a task with its answer."""

    task: str

    prompt: SampleParts
    """The exact input of the model."""

    answer: SampleParts
    """The output: text, an image, or candidates with their scores."""

    target: SampleParts = ()
    score: float | None = None
    """Score of the answer."""

    def parts_by_name(self) -> dict[str, SampleParts]:
        """Return all parts by their role."""
        return {"prompt": self.prompt, "answer": self.answer, "expected": self.target}

    def to_text(self) -> str:
        """Format the sample for a terminal; white space is kept."""
        lines = [f"--- {self.task}" + ("" if self.score is None else f"  score {self.score:g}")]
        for name, parts in self.parts_by_name().items():
            if parts:
                lines += [f"[{name}]", "".join(_plain(part) for part in parts)]
        return "\n".join(lines)

    def to_html(self) -> str:
        """Format the sample for a page, images embedded."""
        score = "" if self.score is None else f" <small>score {self.score:g}</small>"
        rows = "".join(
            f"<dt>{name}</dt><dd>{''.join(_tag(part) for part in parts)}</dd>"
            for name, parts in self.parts_by_name().items()
            if parts
        )
        head = f"<summary>{html.escape(self.task)}{score}</summary>"
        return f"<details>{head}<dl>{rows}</dl></details>"


def logged_samples_json(samples: Sequence[LoggedSample], folder: Path) -> list[dict[str, Any]]:
    """Return samples as JSON, parts as in documents; images are written into `folder`/samples.

    Raises:
        OutputError: the folder cannot be written.
    """
    return [
        {
            "task": sample.task,
            **{
                name: _write_parts(parts, folder, f"{index:04}-{name}")
                for name, parts in sample.parts_by_name().items()
            },
            "score": sample.score,
        }
        for index, sample in enumerate(samples)
    ]


def _write_parts(parts: SampleParts, folder: Path, name: str) -> list[dict[str, str]]:
    tree = []
    for number, part in enumerate(parts):
        if isinstance(part, str):
            tree.append({"type": "text", "text": part})
            continue
        path = make_folder(folder / SAMPLES_FOLDER) / f"{name}-{number}.png"
        with atomic_write(path) as temporary:
            temporary.write_bytes(encode_png(part))
        tree.append({"type": "image", "path": f"{SAMPLES_FOLDER}/{path.name}"})
    return tree


def _plain(part: str | PIL.Image.Image) -> str:
    return part if isinstance(part, str) else f"[image of {part.width} x {part.height}]"


def _tag(part: str | PIL.Image.Image) -> str:
    if isinstance(part, str):
        return f"<pre>{html.escape(part)}</pre>" + ("<br>" if part.endswith("\n") else "")
    return f'<img alt="" src="{data_url(encode_png(part))}">'
