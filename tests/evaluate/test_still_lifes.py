"""The task of still lifes, with a model that knows everything and one that knows nothing."""

from collections.abc import Sequence

import PIL.Image
import pytest

from calumma.evaluate import still_lifes as module
from calumma.evaluate.context import EvalConfig, EvalContext
from calumma.evaluate.still_life_prompts import DRAWING_SKILLS, sample_drawing_prompts
from calumma.evaluate.still_lifes import NUM_SHEET_PROMPTS, make_sheet, still_lifes
from calumma.generate.model import Model


def test_an_untrained_model_gets_almost_nothing_right_and_perfect_images_everything(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_NUM_NEIGHBORS", 50)
    monkeypatch.setattr(module, "_training_pairs", [])
    context = EvalContext(model, [])
    config = EvalConfig(max_prompts=3, log_samples=2)
    metrics = {metric.name: metric for metric in still_lifes(context, config)}
    assert {f"draws_{skill}" for skill in DRAWING_SKILLS} < set(metrics)
    assert {"draws_new_wordings", "captions_things", "questions", "edits_exact", "refuses_unknown"} < set(metrics)
    assert {"stories_exact", "stories_consistent", "questions_new_wordings", "refusal_calibration"} < set(metrics)
    assert metrics["refusal_calibration"].baselines == {"always 1/2": 0.75}
    assert metrics["questions"].n == 10
    assert set(metrics["questions"].baselines) == {"chance", "most common answer"}
    assert metrics["edits_exact"].value == 0.0
    assert metrics["edits_unchanged"].baselines["the image before"] == 1.0
    assert all(metric.interval is not None for metric in metrics.values())
    assert (len(context.image_grids), len(context.logged_samples)) == (1, 2)

    scenes = {
        prompt.caption: prompt.scene
        for skill in DRAWING_SKILLS
        for new in (False, True)
        for prompt in sample_drawing_prompts(skill, 6, 0, new_wording=new)
    }

    def draw(model: Model, captions: Sequence[str], config: EvalConfig) -> list[PIL.Image.Image | None]:
        return [scenes[caption].render() for caption in captions]

    monkeypatch.setattr(module, "draw_captions", draw)
    for name in ("_captions", "_questions", "_edits", "_stories", "_when_to_draw"):
        monkeypatch.setattr(module, name, lambda model, config: [])
    perfect = {metric.name: metric for metric in still_lifes(context, config) if metric.name.startswith("draws_")}
    for skill in DRAWING_SKILLS:
        metric = perfect[f"draws_{skill}"]
        assert metric.value == 1.0
        assert metric.baseline is not None and metric.baseline < 1.0
    assert perfect["draws_new_wordings"].value == 1.0


def test_the_sheet_has_a_row_per_skill_and_gaps_for_missing_images() -> None:
    prompts = [p for skill in DRAWING_SKILLS for p in sample_drawing_prompts(skill, 8, 0)]
    sheet = make_sheet([(prompt, prompt.scene.render() if number else None) for number, prompt in enumerate(prompts)])
    assert len(prompts) == NUM_SHEET_PROMPTS
    assert prompts[0].caption in sheet.note
    assert sheet.png.startswith(b"\x89PNG")
