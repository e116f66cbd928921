"""Readers of vision-language benchmarks' published files: images with human captions and answers.

    DIR/coco/dataset_coco.json or captions_val2014.json     DIR/flickr30k/dataset_flickr30k.json
    DIR/vqav2/v2_OpenEnded_mscoco_val2014_questions.json with its annotations
    DIR/easy_vqa/test/questions.json, train/questions.json

The images are anywhere inside the benchmark's folder, under the names that the files give.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calumma.documents.document import Image
from calumma.errors import EvaluationError
from calumma.files import read_json

_IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png"}

KARPATHY, COCO, FLICKR = "dataset_*.json", "captions_*.json", "*.token"
VQA_QUESTIONS, VQA_ANNOTATIONS = "*_questions.json", "*_annotations.json"


@dataclass(frozen=True)
class VlmExample:
    """A question about one image, with human answers."""

    image: Image
    question: str
    """The question; empty for captioning."""

    references: tuple[str, ...]
    """Human captions or answers."""

    answer_type: str = ""
    """The benchmark's type of the answer; empty where it has none."""

    @property
    def most_common_reference(self) -> str:
        """The most common reference; the first of equals."""
        return Counter(self.references).most_common(1)[0][0]


@dataclass(frozen=True)
class VlmSplits:
    """A benchmark's test questions, and its training questions for examples and baselines."""

    test: list[VlmExample]
    train: list[VlmExample]


class ImageIndex:
    """The images of a benchmark by their names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        paths = (path for path in folder.rglob("*") if path.suffix.lower() in _IMAGE_SUFFIXES)
        self.paths = {(path.parent.name, path.name): path for path in sorted(paths)}
        self.by_name = {path.name: path for path in self.paths.values()}

    def find(self, name: str, parent: str = "") -> Image:
        """Find an image by its name, and by the name of its folder where there are several.

        Raises:
            EvaluationError: the image does not exist.
        """
        path = self.paths.get((parent, name)) or self.by_name.get(name)
        if path is None:
            raise EvaluationError(
                f"{self.folder}: found no image {name}; expected the benchmark's images inside "
                "this folder. Copy them there, or leave the task out."
            )
        return Image(path=path)


def read_captions(folder: Path) -> VlmSplits:
    """Read captions of COCO or Flickr30k, as published or in Karpathy's splits.

    Karpathy's test split is the test, his other splits are for examples; of files as published,
    those of a training split are for examples and all others are the test.

    Raises:
        EvaluationError: the files or an image are missing.
    """
    index = ImageIndex(folder)
    if paths := sorted(folder.glob(KARPATHY)):
        return _karpathy(read_json(paths[0]), index)
    test: list[VlmExample] = []
    train: list[VlmExample] = []
    paths = sorted([*folder.glob(COCO), *folder.glob(FLICKR)])
    if not paths:
        raise _missing(folder, f"{KARPATHY}, {COCO} or {FLICKR}")
    for path in paths:
        examples = _flickr(path, index) if path.suffix == ".token" else _coco(path, index)
        (train if "train" in path.name else test).extend(examples)
    return VlmSplits(test, train)


def _karpathy(tree: Any, index: ImageIndex) -> VlmSplits:
    test: list[VlmExample] = []
    train: list[VlmExample] = []
    for each in tree["images"]:
        image = index.find(each["filename"], Path(each.get("filepath", "")).name)
        captions = tuple(sentence["raw"].strip() for sentence in each["sentences"])
        (test if each["split"] == "test" else train).append(VlmExample(image, "", captions))
    return VlmSplits(test, train)


def _coco(path: Path, index: ImageIndex) -> list[VlmExample]:
    tree = read_json(path)
    captions: Mapping[int, list[str]] = defaultdict(list)
    for annotation in tree["annotations"]:
        captions[annotation["image_id"]].append(annotation["caption"].strip())
    return [
        VlmExample(index.find(each["file_name"]), "", tuple(captions[each["id"]]))
        for each in tree["images"]
        if each["id"] in captions
    ]


def _flickr(path: Path, index: ImageIndex) -> list[VlmExample]:
    captions: Mapping[str, list[str]] = defaultdict(list)
    for line in path.read_text(encoding="utf-8").splitlines():
        name, _, caption = line.partition("\t")
        captions[name.partition("#")[0]].append(caption.strip())
    return [VlmExample(index.find(name), "", tuple(each)) for name, each in captions.items()]


def read_vqa(folder: Path) -> VlmSplits:
    """Read questions and answers of VQA v2; those of a training split are for examples.

    Raises:
        EvaluationError: there are no questions or annotations, or an image is missing.
    """
    index = ImageIndex(folder)
    test: list[VlmExample] = []
    train: list[VlmExample] = []
    paths = sorted(folder.glob(VQA_QUESTIONS))
    if not paths:
        raise _missing(folder, VQA_QUESTIONS)
    annotations = {
        each["question_id"]: each
        for path in sorted(folder.glob(VQA_ANNOTATIONS))
        for each in read_json(path)["annotations"]
    }
    for path in paths:
        tree = read_json(path)
        for each in tree["questions"]:
            annotation = annotations.get(each["question_id"])
            if annotation is None:
                raise _missing(folder, f"{VQA_ANNOTATIONS} for question {each['question_id']}")
            image = index.find(f"COCO_{tree['data_subtype']}_{each['image_id']:012}.jpg")
            answers = tuple(answer["answer"] for answer in annotation["answers"])
            example = VlmExample(image, each["question"], answers, annotation.get("answer_type", ""))
            (train if "train" in path.name else test).append(example)
    return VlmSplits(test, train)


def read_easy_vqa(folder: Path) -> VlmSplits:
    """Read the package easy-vqa (MIT): rows of a question, an answer and an image.

    Raises:
        EvaluationError: there are no questions, or an image is missing.
    """
    index = ImageIndex(folder)
    splits = []
    for split in ("test", "train"):
        path = folder / split / "questions.json"
        if not path.is_file() and split == "test":
            raise _missing(folder, "test/questions.json")
        rows = read_json(path) if path.is_file() else []
        paths = {n: folder / split / "images" / f"{n}.png" for _, _, n in rows}
        splits.append(
            [VlmExample(_image(paths[n], index), text, (answer,), _answer_type(answer)) for text, answer, n in rows]
        )
    return VlmSplits(*splits)


def _image(path: Path, index: ImageIndex) -> Image:
    return Image(path=path) if path.is_file() else index.find(path.name)


def _answer_type(answer: str) -> str:
    return "yes/no" if answer in ("yes", "no") else "other"


def _missing(folder: Path, names: str) -> EvaluationError:
    return EvaluationError(
        f"{folder}: found no {names}; expected the benchmark's own files under their own names. "
        "`calumma evaluate --list` names them; copy them there, or leave the task out."
    )
