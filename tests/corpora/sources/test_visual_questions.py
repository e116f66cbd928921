"""Questions about images become conversations."""

import base64
from pathlib import Path

from calumma.corpora.sources.visual_questions import read_cifar10_test, read_easy_vqa_corpus
from calumma.documents.document import Image, Text
from tests.corpora.packages import json_file, write_image


def test_the_image_is_before_its_first_question(tmp_path: Path) -> None:
    for part in ("train", "test"):
        data = tmp_path / "easy_vqa/data" / part
        json_file(data / "questions.json", [["what shape?", "circle", 0], ["red?", "no", 0]])
        write_image(data / "images/0.png")
    train, test = read_easy_vqa_corpus({"easy-vqa": tmp_path})
    assert [turn.role for turn in train.messages] == ["user", "assistant"] * 2
    image, question = train.messages[0].parts
    assert isinstance(image, Image) and question == Text("what shape?")
    assert train.text == "what shape?\ncircle\nred?\nno"
    assert train.attributes == {"split": "train", "questions": "2"}
    assert test.attributes["split"] == "held-out"


def test_photographs_for_evaluation_are_marked(tmp_path: Path) -> None:
    data = write_image(tmp_path / "a.png", (32, 32)).read_bytes()
    example = {
        "input": "data:image/png;base64," + base64.b64encode(data).decode(),
        "target_scores": {"cat": 0, "ship": 1},
    }
    json_file(tmp_path / "b/benchmark_tasks/cifar10_classification/base64/task.json", {"examples": [example]})
    (document,) = read_cifar10_test({"bigbench": tmp_path})
    assert document.text == "ship"
    assert document.images[0].open().size == (32, 32)
    assert document.attributes == {"caption": "ship", "split": "held-out", "never-train": "yes"}
