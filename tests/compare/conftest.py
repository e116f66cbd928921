"""A small study: three prompts, two systems."""

from pathlib import Path

import pytest

from calumma.checkpoints.model_folder import ModelComponents
from calumma.compare.judgment_store import Judgment
from calumma.compare.study import Study, new_study, open_study
from calumma.documents.document import Document, Image, Text
from calumma.generate.model import Model
from tests.images import png


def prompt(id: str, category: str, *, with_image: bool = False) -> Document:
    parts = (Image(data=png(1), name=id), Text(f"about {id}")) if with_image else (Text(f"write {id}"),)
    return Document(id=id, content=parts, attributes={"category": category})


def answer(id: str, text: str) -> Document:
    return Document(id=id, content=(Text(text), Image(data=png(2), name=text)))


PROMPTS = {"p1": prompt("p1", "Advice"), "p2": prompt("p2", "Story", with_image=True), "p3": prompt("p3", "Story")}


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """Write a study and open it."""
    made = Study(folder=tmp_path / "study", systems=("ours", "other"), seed=3, prompts=PROMPTS)
    answers = {name: [answer(id, f"{name} on {id}") for id in PROMPTS] for name in made.systems}
    new_study(made, answers)
    return open_study(made.folder)


def preferences(study: Study, votes: dict[str, list[str]]) -> list[Judgment]:
    """Return judgments of pairs, from votes by prompt."""
    items = {item.prompt: item for item in study.items() if item.question_set == "pairwise"}
    return [
        Judgment(items[prompt].key, f"annotator {number}", {"preference": vote}, seconds=number)
        for prompt, prompt_votes in votes.items()
        for number, vote in enumerate(prompt_votes, start=1)
    ]


@pytest.fixture(scope="session")
def model(model_parts: ModelComponents) -> Model:
    """Return the tiny model."""
    return Model(model_parts)
