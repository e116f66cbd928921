"""Questions about small pictures of shapes, with their answers, as conversations."""

from __future__ import annotations

import base64
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from calumma.corpora.catalog_entry import PackageFolders
from calumma.corpora.image_conversion import image_from_file
from calumma.documents.document import Document, Image, Text, Turn

_SPLITS = {"train": "train", "test": "held-out"}


def read_easy_vqa_corpus(folders: PackageFolders) -> Iterator[Document]:
    """Read easy-VQA, a conversation a picture: the picture stands before the first question.

    The set's own test part has the attribute split = "held-out".
    """
    for part, split in _SPLITS.items():
        folder = folders["easy-vqa"] / "easy_vqa" / "data" / part
        for number, questions in sorted(_by_picture(folder / "questions.json").items()):
            image = image_from_file(folder / "images" / f"{number}.png")
            yield Document(
                id=f"{part}-{number:04d}",
                messages=conversation(image, questions),
                attributes={"split": split, "questions": str(len(questions))},
            )


def conversation(image: Image, questions: list[tuple[str, str]]) -> tuple[Turn, ...]:
    """Turns that ask each question in turn and answer it; the first shows the picture."""
    turns: list[Turn] = []
    for question, answer in questions:
        asked = Text(question)
        turns.append(Turn("user", (asked,) if turns else (image, asked)))
        turns.append(Turn("assistant", (Text(answer),)))
    return tuple(turns)


def _by_picture(path: Path) -> dict[int, list[tuple[str, str]]]:
    pictures: defaultdict[int, list[tuple[str, str]]] = defaultdict(list)
    for question, answer, number in json.loads(path.read_text("utf-8")):
        pictures[number].append((question, answer))
    return dict(pictures)


def read_cifar10_test(folders: PackageFolders) -> Iterator[Document]:
    """Read the 10,000 photographs of CIFAR-10's test part out of BIG-bench.

    BIG-bench asks that its files are never trained on; every document says so in an attribute.
    """
    root = folders["bigbench"]
    path = next(root.rglob("benchmark_tasks/cifar10_classification/base64/task.json"))
    task = json.loads(path.read_text("utf-8"))
    for number, example in enumerate(task["examples"]):
        label = max(example["target_scores"], key=example["target_scores"].get)
        encoded = str(example["input"]).split(",")[-1].strip()
        yield Document(
            id=f"{number:05d}",
            content=(Image(data=base64.b64decode(encoded)), Text(label)),
            attributes={"caption": label, "split": "held-out", "never-train": "yes"},
        )
