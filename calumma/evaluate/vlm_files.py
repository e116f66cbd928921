"""Questions about pictures as their authors publish them: captions and answers that people gave.

    DIR/coco/dataset_coco.json or captions_val2014.json     DIR/flickr30k/dataset_flickr30k.json
    DIR/vqav2/v2_OpenEnded_mscoco_val2014_questions.json with its annotations
    DIR/easy_vqa/test/questions.json, train/questions.json

The pictures lie anywhere inside the benchmark's folder, under the names that the files give.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calumma.documents.document import Image
from calumma.errors import EvaluationError
from calumma.files import read_json

_PICTURES = {".jpg", ".jpeg", ".png"}

KARPATHY, COCO, FLICKR = "dataset_*.json", "captions_*.json", "*.token"
VQA_QUESTIONS, VQA_ANNOTATIONS = "*_questions.json", "*_annotations.json"


@dataclass(frozen=True)
class VlmExample:
    """Something asked about one picture."""

    image: Image
    question: str
    """The question; empty where a caption is asked for."""

    references: tuple[str, ...]
    """What people said."""

    answer_type: str = ""
    """The kind of answer, where the benchmark tells it."""

    @property
    def most_common_reference(self) -> str:
        """What most people said; of equals the first."""
        return Counter(self.references).most_common(1)[0][0]


@dataclass(frozen=True)
class VlmSplits:
    """A benchmark's questions, and those of its training split, for examples and baselines."""

    test: list[VlmExample]
    train: list[VlmExample]


class ImageIndex:
    """The pictures of a benchmark by their names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        paths = (path for path in folder.rglob("*") if path.suffix.lower() in _PICTURES)
        self.paths = {(path.parent.name, path.name): path for path in sorted(paths)}
        self.by_name = {path.name: path for path in self.paths.values()}

    def find(self, name: str, parent: str = "") -> Image:
        """A picture by its name, in the folder of that name where there are several.

        Raises:
            EvaluationError: it is not there.
        """
        path = self.paths.get((parent, name)) or self.by_name.get(name)
        if path is None:
            raise EvaluationError(
                f"{self.folder}: found no picture {name}; expected the benchmark's pictures inside "
                "this folder. Put them there, or leave the task out."
            )
        return Image(path=path)


def read_captions(folder: Path) -> VlmSplits:
    """Captions of COCO or Flickr30k, as published or in Karpathy's splits.

    Karpathy's test split is asked and his other splits are for examples; of files as published,
    those of a training split are for examples and all others are asked.

    Raises:
        EvaluationError: there are no such files, or a picture is missing.
    """
    pictures = ImageIndex(folder)
    if paths := sorted(folder.glob(KARPATHY)):
        return _karpathy(read_json(paths[0]), pictures)
    asked: list[VlmExample] = []
    training: list[VlmExample] = []
    paths = sorted([*folder.glob(COCO), *folder.glob(FLICKR)])
    if not paths:
        raise _missing(folder, f"{KARPATHY}, {COCO} or {FLICKR}")
    for path in paths:
        made = _flickr(path, pictures) if path.suffix == ".token" else _coco(path, pictures)
        (training if "train" in path.name else asked).extend(made)
    return VlmSplits(asked, training)


def _karpathy(tree: Any, pictures: ImageIndex) -> VlmSplits:
    asked: list[VlmExample] = []
    training: list[VlmExample] = []
    for each in tree["images"]:
        image = pictures.find(each["filename"], Path(each.get("filepath", "")).name)
        said = tuple(sentence["raw"].strip() for sentence in each["sentences"])
        (asked if each["split"] == "test" else training).append(VlmExample(image, "", said))
    return VlmSplits(asked, training)


def _coco(path: Path, pictures: ImageIndex) -> list[VlmExample]:
    tree = read_json(path)
    said: Mapping[int, list[str]] = defaultdict(list)
    for annotation in tree["annotations"]:
        said[annotation["image_id"]].append(annotation["caption"].strip())
    return [
        VlmExample(pictures.find(each["file_name"]), "", tuple(said[each["id"]]))
        for each in tree["images"]
        if each["id"] in said
    ]


def _flickr(path: Path, pictures: ImageIndex) -> list[VlmExample]:
    said: Mapping[str, list[str]] = defaultdict(list)
    for line in path.read_text(encoding="utf-8").splitlines():
        name, _, caption = line.partition("\t")
        said[name.partition("#")[0]].append(caption.strip())
    return [VlmExample(pictures.find(name), "", tuple(each)) for name, each in said.items()]


def read_vqa(folder: Path) -> VlmSplits:
    """Questions and answers of VQA v2; those of a training split are for examples.

    Raises:
        EvaluationError: questions or annotations are not there, or a picture is missing.
    """
    pictures = ImageIndex(folder)
    asked: list[VlmExample] = []
    training: list[VlmExample] = []
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
            known = annotations.get(each["question_id"])
            if known is None:
                raise _missing(folder, f"{VQA_ANNOTATIONS} for question {each['question_id']}")
            image = pictures.find(f"COCO_{tree['data_subtype']}_{each['image_id']:012}.jpg")
            given = tuple(answer["answer"] for answer in known["answers"])
            made = VlmExample(image, each["question"], given, known.get("answer_type", ""))
            (training if "train" in path.name else asked).append(made)
    return VlmSplits(asked, training)


def read_easy_vqa(folder: Path) -> VlmSplits:
    """Questions of the package easy-vqa (MIT): rows of a question, an answer and a picture.

    Raises:
        EvaluationError: they are not there, or a picture is missing.
    """
    pictures = ImageIndex(folder)
    splits = []
    for split in ("test", "train"):
        path = folder / split / "questions.json"
        if not path.is_file() and split == "test":
            raise _missing(folder, "test/questions.json")
        rows = read_json(path) if path.is_file() else []
        found = {n: folder / split / "images" / f"{n}.png" for _, _, n in rows}
        splits.append(
            [
                VlmExample(_image(found[n], pictures), text, (answer,), _kind(answer))
                for text, answer, n in rows
            ]
        )
    return VlmSplits(*splits)


def _image(path: Path, pictures: ImageIndex) -> Image:
    return Image(path=path) if path.is_file() else pictures.find(path.name)


def _kind(answer: str) -> str:
    return "yes/no" if answer in ("yes", "no") else "other"


def _missing(folder: Path, names: str) -> EvaluationError:
    return EvaluationError(
        f"{folder}: found no {names}; expected the benchmark's own files under their own names. "
        "`calumma evaluate --list` names them; put them there, or leave the task out."
    )
