import json
from pathlib import Path

import PIL.Image

from calumma.evaluate.logged_samples import LoggedSample
from calumma.evaluate.metric import Metric
from calumma.evaluate.report import EvalReport

RED = PIL.Image.new("RGB", (4, 2), (255, 0, 0))
SHOWN = LoggedSample(task="vqav2", prompt=[RED, "what <b> is it?\n "], answer=["red"], score=1 / 3)


def test_a_terminal_gets_the_prompt_to_the_letter() -> None:
    assert SHOWN.to_text() == (
        "--- vqav2  score 0.333333\n[prompt]\n[image of 4 x 2]what <b> is it?\n \n[answer]\nred"
    )


def test_a_page_shows_images_and_escapes_texts() -> None:
    page = SHOWN.to_html()
    assert '<img alt="" src="data:image/png;base64,' in page
    assert "<pre>what &lt;b&gt; is it?\n </pre>" in page
    assert "expected" not in page


def test_logged_samples_of_a_report_have_parts_and_image_files(tmp_path: Path) -> None:
    metric = Metric("vqav2_accuracy", 0.5, None, 1, None, "share", task="vqav2")
    EvalReport(metrics=[metric], seconds=1, seed=0, logged_samples=[SHOWN]).save(tmp_path)
    [written] = json.loads((tmp_path / "report.json").read_text())["samples"]
    assert written["prompt"] == [
        {"type": "image", "path": "samples/0000-prompt-0.png"},
        {"type": "text", "text": "what <b> is it?\n "},
    ]
    assert (written["answer"], written["expected"], written["score"]) == (
        [{"type": "text", "text": "red"}], [], 1 / 3,
    )  # fmt: skip
    with PIL.Image.open(tmp_path / written["prompt"][0]["path"]) as image:
        assert image.tobytes() == RED.tobytes()
