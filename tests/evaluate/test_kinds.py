from __future__ import annotations

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import pytest

from calumma.evaluate.kinds import holds_text

LINES = "The quick brown fox\njumps over the lazy\ndog, and then it does\nit again and again."


@pytest.mark.parametrize(("ink", "ground"), [("black", "white"), ("white", "navy")])
def test_a_page_of_writing_holds_text(ink: str, ground: str) -> None:
    page = PIL.Image.new("RGB", (192, 192), ground)
    font = PIL.ImageFont.load_default(16)
    PIL.ImageDraw.Draw(page).multiline_text((6, 20), LINES, fill=ink, font=font, spacing=12)
    assert holds_text(np.asarray(page))


def test_things_and_grounds_hold_none() -> None:
    y, x = np.mgrid[0:96, 0:96]
    ramp = np.stack([x * 2, y * 2, x + y], axis=-1).astype(np.uint8)
    assert not holds_text(ramp)
    picture = PIL.Image.new("RGB", (96, 96), "white")
    PIL.ImageDraw.Draw(picture).ellipse((20, 20, 70, 70), fill="black")
    assert not holds_text(np.asarray(picture))
    assert not holds_text(np.zeros((8, 8, 3), np.uint8))
