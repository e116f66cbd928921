from __future__ import annotations

import io
import json
from pathlib import Path

import PIL.Image

from calumma.evaluate.history import METRICS_NAME, codebook_history


def _write(folder: Path, lines: list[str]) -> None:
    (folder / METRICS_NAME).write_text("\n".join(lines))


def test_dead_codes_and_perplexity_are_drawn_over_the_steps(tmp_path: Path) -> None:
    lines = [
        json.dumps({"step": step, "codes_used": 1 - step / 200, "perplexity": 32.0})
        for step in range(1, 101)
    ]
    _write(tmp_path, [json.dumps({"step": 0, "loss": 1.0}), *lines, '{"step": 101, "co'])
    sheet = codebook_history(tmp_path, num_codes=64)
    assert sheet is not None and sheet.note == (
        "Over 100 steps of training, from 0 to 1: the share of dead codes in red, 50.0% at the "
        "end, and in blue the perplexity as a share of 64 codes, 50.0% at the end."
    )
    picture = PIL.Image.open(io.BytesIO(sheet.png))
    # Dead codes run from the lower left corner to half height on the right; perplexity is level.
    assert picture.getpixel((360, 150)) == (190, 40, 40)
    assert picture.getpixel((200, 110)) == (40, 80, 190)


def test_a_folder_without_metrics_of_a_codebook_has_no_history(tmp_path: Path) -> None:
    assert codebook_history(tmp_path, num_codes=64) is None
    _write(tmp_path, [json.dumps({"step": 1, "loss": 2.0})])
    assert codebook_history(tmp_path, num_codes=64) is None
