"""Answer held-out prompts and count properties of the answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image

from calumma.corpora.instructions.safety_prompts import is_template_refusal
from calumma.documents.document import Document
from calumma.documents.readers import read_documents
from calumma.evaluate.metric import wilson_interval
from calumma.generate.events import Sample
from calumma.generate.model import Model
from calumma.generate.params import ImageSampling, TextSampling

TEXT = TextSampling(temperature=0.7, top_p=0.9, repetition_penalty=1.0)
IMAGE = ImageSampling(temperature=0.7, top_p=0.9, guidance_scale=1.0, image_guidance_scale=1.0)
"""No guidance: only whether an image is generated is measured, not its quality."""

BATCH_SIZE = 40


@dataclass(frozen=True)
class PromptAnswer:
    """A sample of a prompt, with the document of the prompt."""

    document: Document
    sample: Sample

    @property
    def has_image(self) -> bool:
        """Return whether the sample has an image."""
        return any(isinstance(part, PIL.Image.Image) for part in self.sample.parts)

    @property
    def text(self) -> str:
        """Return the text of the sample."""
        return " ".join(part for part in self.sample.parts if isinstance(part, str))

    @property
    def is_finished(self) -> bool:
        """Return whether the sample ended with an end token."""
        return self.sample.finish_reason == "stop"

    @property
    def is_refusal(self) -> bool:
        """Return whether the sample is a refusal without an image."""
        return not self.has_image and is_template_refusal(self.text)


def held_out_documents(out: Path, kind: str, limit: int) -> list[Document]:
    """Return evenly spaced held-out conversations of a kind."""
    found = [d for d in read_documents([out / "held-out.parquet"]) if d.attributes["kind"] == kind]
    return found[:: max(1, len(found) // limit)][:limit]


def answer_prompts(model: Model, documents: Sequence[Document], **options: Any) -> list[PromptAnswer]:
    """Answer the prompts of conversations, each with its own seed."""
    answers: list[PromptAnswer] = []
    settings = {"max_new_tokens": 220, "text": TEXT, "image": IMAGE, **options}
    for start in range(0, len(documents), BATCH_SIZE):
        some = documents[start : start + BATCH_SIZE]
        seeds = list(range(start, start + len(some)))
        prompts = [list(document.messages[0].parts) for document in some]
        samples = model.generate_batch(prompts, seeds=seeds, **settings)
        answers += [PromptAnswer(d, s) for d, s in zip(some, samples, strict=True)]
    return answers


def proportion(name: str, hits: Sequence[bool]) -> dict[str, Any]:
    """Return a proportion with its sample size and 95 % interval."""
    n = len(hits)
    if n == 0:
        return {"name": name, "value": None, "n": 0, "interval": None}
    low, high = wilson_interval(sum(hits), n)
    return {"name": name, "value": sum(hits) / n, "n": n, "interval": [low, high]}


def table_row(figure: dict[str, Any]) -> str:
    """Format a proportion as a row of a Markdown table."""
    if figure["value"] is None:
        return f"| {figure['name']} | - | - | 0 |"
    low, high = figure["interval"]
    return f"| {figure['name']} | {figure['value']:.1%} | {low:.1%} to {high:.1%} | {figure['n']} |"
