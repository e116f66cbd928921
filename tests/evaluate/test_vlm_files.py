import json
from pathlib import Path

import PIL.Image
import pytest

from calumma.errors import EvaluationError
from calumma.evaluate.vlm_files import read_captions, read_easy_vqa, read_vqa
from tests.evaluate.published import BLUE, lines, paint, write_vlm_benchmarks


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vlm_benchmarks(tmp_path_factory.mktemp("vlm"))


def test_of_karpathys_splits_test_is_asked_and_the_rest_is_for_examples(published: Path) -> None:
    read = read_captions(published / "coco")
    assert [each.references for each in read.test] == [
        ("a blue square", "blue all over b1.jpg"), ("a red square", "red all over r1.jpg"),
    ]  # fmt: skip
    assert [each.references[0] for each in read.train] == ["a blue square", "a red square"]
    pixel = read.test[0].image.open().getpixel((8, 8))
    assert isinstance(pixel, tuple) and pixel[2] > 200


def test_captions_of_coco_as_published_are_split_by_their_files_names(tmp_path: Path) -> None:
    for split, said in (("val2014", "a cat "), ("train2014", "a dog")):
        paint(tmp_path / split / f"{split}.jpg", BLUE)
        tree = {
            "images": [{"id": 7, "file_name": f"{split}.jpg"}, {"id": 8, "file_name": "none.jpg"}],
            "annotations": [{"image_id": 7, "caption": said}],
        }
        lines(tmp_path / f"captions_{split}.json", [tree])
    read = read_captions(tmp_path)
    assert [each.references for each in read.test] == [("a cat",)]
    assert [each.references for each in read.train] == [("a dog",)]


def test_a_token_file_of_flickr_gives_all_captions_of_an_image(published: Path) -> None:
    read = read_captions(published / "flickr30k")
    assert [each.references for each in read.test] == [
        ("a square .", "it is b1.jpg"), ("a square .", "it is r1.jpg"),
    ]  # fmt: skip
    assert read.train == []


def test_questions_find_their_answers_and_images_by_number(published: Path) -> None:
    read = read_vqa(published / "vqav2")
    [first, second] = read.test
    assert (first.question, first.most_common_reference, len(first.references)) == ("What color is it?", "blue", 10)
    assert (second.most_common_reference, second.answer_type) == ("red", "other")
    assert second.image.path is not None
    assert second.image.path.name == "COCO_val2014_000000000002.jpg"
    assert [each.most_common_reference for each in read.train] == ["blue", "red"]


def test_rows_of_easy_vqa_have_one_answer_each(published: Path) -> None:
    read = read_easy_vqa(published / "easy_vqa")
    assert [(each.references, each.answer_type) for each in read.test] == [
        (("red",), "other"), (("yes",), "yes/no"),
    ]  # fmt: skip
    with PIL.Image.open(published / "easy_vqa/test/images/0.png") as image:
        assert read.test[0].image.open().convert("RGB").tobytes() == image.tobytes()


def test_what_is_missing_is_reported(tmp_path: Path) -> None:
    for read, names in (
        (read_captions, "dataset_*.json, captions_*.json or *.token"),
        (read_vqa, "*_questions.json"),
        (read_easy_vqa, "test/questions.json"),
    ):
        with pytest.raises(EvaluationError) as caught:
            read(tmp_path)
        assert str(caught.value) == (
            f"{tmp_path}: found no {names}; expected the benchmark's own files under their own "
            "names. `calumma evaluate --list` names them; copy them there, or leave the task out."
        )
    lines(tmp_path / "a.token", ["cat.jpg#0\ta cat"])
    with pytest.raises(EvaluationError) as caught:
        read_captions(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: found no image cat.jpg; expected the benchmark's images inside this "
        "folder. Copy them there, or leave the task out."
    )
    questions = {"data_subtype": "val2014", "questions": [{"question_id": 5, "image_id": 1}]}
    (tmp_path / "v2_questions.json").write_text(json.dumps(questions))
    with pytest.raises(EvaluationError, match=r"found no \*_annotations.json for question 5;"):
        read_vqa(tmp_path)
