"""A codebook's life in training, drawn from its run's metrics: codes out of use, perplexity."""

from __future__ import annotations

import io
import json
from pathlib import Path

import PIL.Image
import PIL.ImageDraw

from calumma.evaluate.sheet import Sheet

METRICS_NAME = "metrics.jsonl"

_SIZE = 720, 220
_EDGE = 30
_DEAD, _PERPLEXITY = (190, 40, 40), (40, 80, 190)
_GREY, _WHITE = (120, 120, 120), (255, 255, 255)

Points = list[tuple[int, float]]
"""Steps, and a share from 0 to 1 at each."""


def codebook_history(folder: Path, num_codes: int) -> Sheet | None:
    """The share of dead codes and the perplexity over the steps of a run.

    Args:
        folder: the run's folder; one without metrics of a codebook has no history.
        num_codes: rows of the codebook.
    """
    dead, perplexity = _read(folder / METRICS_NAME, num_codes)
    if not dead:
        return None
    note = (
        f"Over {dead[-1][0]} steps of training, from 0 to 1: the share of dead codes in red, "
        f"{dead[-1][1]:.1%} at the end, and in blue the perplexity as a share of {num_codes} "
        f"codes, {perplexity[-1][1]:.1%} at the end."
    )
    return Sheet("Codebook in training", note, _drawn(dead, perplexity))


def _read(path: Path, num_codes: int) -> tuple[Points, Points]:
    dead: Points = []
    perplexity: Points = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            metrics = json.loads(line)
        except ValueError:
            continue  # the last line of a run that was killed
        if "codes_used" in metrics and "perplexity" in metrics:
            dead.append((metrics["step"], 1.0 - metrics["codes_used"]))
            perplexity.append((metrics["step"], metrics["perplexity"] / num_codes))
    return dead, perplexity


def _drawn(dead: Points, perplexity: Points) -> bytes:
    picture = PIL.Image.new("RGB", _SIZE, _WHITE)
    draw = PIL.ImageDraw.Draw(picture)
    width, height = _SIZE[0] - 2 * _EDGE, _SIZE[1] - 2 * _EDGE
    draw.rectangle((_EDGE, _EDGE, _EDGE + width, _EDGE + height), outline=_GREY)
    last = max(1, dead[-1][0])
    for points, colour in ((dead, _DEAD), (perplexity, _PERPLEXITY)):
        line = [
            (_EDGE + step / last * width, _EDGE + (1 - min(1.0, share)) * height)
            for step, share in points
        ]
        draw.line(line, fill=colour, width=2)
    for share, y in (("1", _EDGE - 6), ("0", _EDGE + height - 6)):
        draw.text((_EDGE - 14, y), share, fill=_GREY)
    draw.text((_EDGE + width - 30, _EDGE + height + 6), str(dead[-1][0]), fill=_GREY)
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()
