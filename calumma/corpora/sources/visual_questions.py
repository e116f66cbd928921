"""Visual question answering: easy-VQA, and CIFAR-10's test set."""

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
    """Read easy-VQA, one conversation per image, with the image before the first question.

    The test set has the attribute split = "held-out".
    """
    for part, split in _SPLITS.items():
        folder = folders["easy-vqa"] / "easy_vqa" / "data" / part
        for number, questions in sorted(_questions_by_image(folder / "questions.json").items()):
            image = image_from_file(folder / "images" / f"{number}.png")
            yield Document(
                id=f"{part}-{number:04d}",
                messages=conversation(image, questions),
                attributes={"split": split, "questions": str(len(questions))},
            )


def conversation(image: Image, questions: list[tuple[str, str]]) -> tuple[Turn, ...]:
    """Build the turns of a conversation: the image with the first question, answers between."""
    turns: list[Turn] = []
    for question, answer in questions:
        text = Text(question)
        turns.append(Turn("user", (text,) if turns else (image, text)))
        turns.append(Turn("assistant", (Text(answer),)))
    return tuple(turns)


def _questions_by_image(path: Path) -> dict[int, list[tuple[str, str]]]:
    questions: defaultdict[int, list[tuple[str, str]]] = defaultdict(list)
    for question, answer, number in json.loads(path.read_text("utf-8")):
        questions[number].append((question, answer))
    return dict(questions)


def read_cifar10_test(folders: PackageFolders) -> Iterator[Document]:
    """Read the 10,000 photographs of CIFAR-10's test set from BIG-bench.

    BIG-bench files must not be used for training: every document has the attribute never-train.
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
