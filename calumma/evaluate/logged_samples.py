"""What exactly was asked, and what came: the evidence behind a figure."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image

from calumma.documents.image_formats import data_url, encode_png
from calumma.files import make_folder, replacing

FOLDER_NAME = "shown"

Parts = Sequence[str | PIL.Image.Image]


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One question of a task."""

    task: str

    prompt: Parts
    """To the letter what the model was given."""

    answer: Parts
    """What came of it: a text, a picture, or candidates with their scores."""

    wanted: Parts = ()
    score: float | None = None
    """What the answer counts."""

    def named_parts(self) -> dict[str, Parts]:
        """All its parts, by what they are."""
        return {"prompt": self.prompt, "answer": self.answer, "expected": self.wanted}

    def to_text(self) -> str:
        """The question for a terminal; white space that counts is kept."""
        lines = [f"--- {self.task}" + ("" if self.score is None else f"  score {self.score:g}")]
        for name, parts in (
            ("prompt", self.prompt),
            ("answer", self.answer),
            ("expected", self.wanted),
        ):
            if parts:
                lines += [f"[{name}]", "".join(_plain(part) for part in parts)]
        return "\n".join(lines)

    def to_html(self) -> str:
        """The same for a page; pictures stand in it."""
        score = "" if self.score is None else f" <small>score {self.score:g}</small>"
        rows = "".join(
            f"<dt>{name}</dt><dd>{''.join(_tag(part) for part in parts)}</dd>"
            for name, parts in self.named_parts().items()
            if parts
        )
        head = f"<summary>{html.escape(self.task)}{score}</summary>"
        return f"<details>{head}<dl>{rows}</dl></details>"


def shown_json(shown: Sequence[Shown], folder: Path) -> list[dict[str, Any]]:
    """Questions for machines; parts as in documents, pictures written into `folder`/shown.

    Raises:
        OutputError: the folder cannot be written.
    """
    return [
        {
            "task": each.task,
            **{
                name: _written(parts, folder, f"{place:04}-{name}")
                for name, parts in each.named_parts().items()
            },
            "score": each.score,
        }
        for place, each in enumerate(shown)
    ]


def _written(parts: Parts, folder: Path, name: str) -> list[dict[str, str]]:
    made = []
    for number, part in enumerate(parts):
        if isinstance(part, str):
            made.append({"type": "text", "text": part})
            continue
        path = make_folder(folder / FOLDER_NAME) / f"{name}-{number}.png"
        with replacing(path) as temporary:
            temporary.write_bytes(encode_png(part))
        made.append({"type": "image", "path": f"{FOLDER_NAME}/{path.name}"})
    return made


def _plain(part: str | PIL.Image.Image) -> str:
    return part if isinstance(part, str) else f"[picture of {part.width} x {part.height}]"


def _tag(part: str | PIL.Image.Image) -> str:
    if isinstance(part, str):
        return f"<pre>{html.escape(part)}</pre>" + ("<br>" if part.endswith("\n") else "")
    return f'<img alt="" src="{data_url(encode_png(part))}">'
