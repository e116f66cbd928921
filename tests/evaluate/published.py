"""Tiny benchmarks in the published formats, with our own questions."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import PIL.Image


def lines(path: Path, rows: Sequence[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))


def write_benchmarks(folder: Path) -> Path:
    """Write two or three questions of each text benchmark."""
    for split, count in (("valid", 3), ("train", 2)):
        rows = [{"goal": f"open box {n}", "sol1": "use a key", "sol2": "use a cloud"} for n in range(count)]
        lines(folder / f"piqa/{split}.jsonl", rows)
        lines(folder / f"piqa/{split}-labels.lst", ["0", "1", "0"][:count])
    question = {"context": "Ann ran.", "question": "Why?", "answerA": "fun", "answerB": "rain"}
    lines(folder / "siqa/dev.jsonl", [{**question, "answerC": "a dog"}] * 2)
    lines(folder / "siqa/dev-labels.lst", ["1", "3"])
    scene = {"ind": 1, "activity_label": "Running", "ctx_a": "A dog runs.", "ctx_b": "it"}
    endings = ["stops [title] now.", "flies.", "reads.", "sings."]
    lines(folder / "hellaswag/hellaswag_val.jsonl", [{**scene, "endings": endings, "label": 0}] * 2)
    pronoun = {"qID": "1", "sentence": "The cup beat the jug as _ was red.", "option1": "the cup"}
    lines(folder / "winogrande/dev.jsonl", [
        {**pronoun, "option2": "the jug", "answer": answer} for answer in "12"
    ])  # fmt: skip
    named = {"A": "ice", "B": "sun", "C": "tea"}
    choices = [{"text": text, "label": letter} for letter, text in named.items()]
    science = {"id": "q", "question": {"stem": "What is hot?", "choices": choices}}
    for name in ("Easy", "Challenge"):
        rows = [{**science, "answerKey": key} for key in "BA"]
        lines(folder / f"arc_{name.lower()}/ARC-{name}-Test.jsonl", rows)
    lines(folder / "openbookqa/test.jsonl", [{**science, "answerKey": "B"}] * 2)
    passage = {"question": "is tea hot", "title": "Tea", "passage": "Tea is hot."}
    lines(folder / "boolq/dev.jsonl", [{**passage, "answer": answer} for answer in (True, False)])
    for split, count in (("test", 2), ("dev", 5)):
        rows = ['"What, is it?",ice,sun,tea,"a, b",B'] * count
        lines(folder / f"mmlu/{split}/anatomy_{split}.csv", rows)
        lines(folder / f"mmlu/{split}/astronomy_{split}.csv", rows[:5])
    sums = [{"question": f"{n} and 1?", "answer": f"add\n#### {n + 1}"} for n in range(9)]
    lines(folder / "gsm8k/test.jsonl", sums[:2])
    lines(folder / "gsm8k/train.jsonl", sums)
    problem = {"problem": "$1+1$?", "level": "Level 1", "type": "Algebra"}
    lines(folder / "math/test/algebra/1.json", [{**problem, "solution": "It is $\\boxed{2}$."}])
    rows = [{"input": "hot?", "target_scores": {"ice": 0, "sun": 1}}] * 2
    lines(folder / "bigbench/heat/task.json", [{"name": "heat", "examples": rows}])
    return folder


RED, BLUE = (255, 0, 0), (0, 0, 255)


def paint(path: Path, color: tuple[int, int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", (16, 16), color).save(path)


def write_vlm_benchmarks(folder: Path) -> Path:
    """Write two test images and two training images of each benchmark, in its format."""
    names = {"b1.jpg": ("test", BLUE), "r1.jpg": ("test", RED)}
    names |= {"b2.jpg": ("train", BLUE), "r2.jpg": ("restval", RED)}
    tree = []
    for name, (split, color) in names.items():
        word = "blue" if color == BLUE else "red"
        said = [f"a {word} square", f"{word} all over {name}"]
        sentences = [{"raw": f"{text} ", "tokens": text.split()} for text in said]
        tree.append({"filename": name, "filepath": "val2014", "split": split} | {
            "sentences": sentences})  # fmt: skip
        paint(folder / "coco/val2014" / name, color)
        paint(folder / "flickr30k/images" / name, color)
    lines(folder / "coco/dataset_coco.json", [{"images": tree, "dataset": "coco"}])
    lines(folder / "flickr30k/results.token", [
        f"{name}#{n}\t{text}" for name in ("b1.jpg", "r1.jpg")
        for n, text in enumerate(("a square .", f"it is {name}"))
    ])  # fmt: skip
    for split, first in (("val2014", 1), ("train2014", 3)):
        questions, known = [], []
        for number, color in ((first, BLUE), (first + 1, RED)):
            paint(folder / f"vqav2/{split}/COCO_{split}_{number:012}.jpg", color)
            word = "blue" if color == BLUE else "red"
            about = {"image_id": number, "question_id": 10 * number}
            questions.append({**about, "question": "What color is it?"})
            given = [{"answer": word, "answer_id": n} for n in range(9)] + [{"answer": "dark"}]
            known.append({**about, "answers": given, "answer_type": "other"})
        head = {"data_subtype": split, "questions": questions}
        lines(folder / f"vqav2/v2_OpenEnded_mscoco_{split}_questions.json", [head])
        lines(folder / f"vqav2/v2_mscoco_{split}_annotations.json", [{"annotations": known}])
    for split in ("test", "train"):
        paint(folder / f"easy_vqa/{split}/images/0.png", RED)
        rows = [["what color is it?", "red", 0], ["is it red?", "yes", 0]]
        lines(folder / f"easy_vqa/{split}/questions.json", [rows])
    return folder
