"""Held-out documents in the form that tasks measure: pictures encoded once, pairs picked out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from calumma.documents.document import Document, Image, Text
from calumma.errors import EvaluationError
from calumma.evaluate.image_grid import ImageGrid
from calumma.evaluate.logged_samples import Shown
from calumma.generate.model import Model
from calumma.generate.params import ImageSampling
from calumma.tokens.image import ImageTokenizer
from calumma.tokens.sequence import encode_codes, encode_document

_Item = TypeVar("Item")
SafetyLabel = Literal["safe", "unsure", "unsafe"]
OnProgress = Callable[[int, int], None]
"""Told how many pieces of a task are done, of how many."""

BATCH_SIZE = 32
"""Pictures opened, prompts drawn or answered at a time."""


MAX_NEIGHBOR_DOCUMENTS = 2000
"""Training documents that the nearest one is looked for among."""


def _no_progress(done: int, total: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """What a measurement may be told; everything has a default."""

    seed: int = 0
    """Decides what is drawn by chance: partners, candidates, pictures, resamples."""

    training_documents: Sequence[Document] = ()
    """Training documents, for the baseline of the nearest picture."""

    training_counts: NDArray[np.int64] | None = None
    """How often each id occurs in training, by id, for the unigram baseline."""

    chat_template: bool = False
    """Whether prompts are asked as turns, as after fine-tuning, or just continued."""

    format_prompt: Callable[[str], Sequence[str]] | None = None
    """From a caption to the texts of the prompt that asks for its picture; by default the caption
    itself, behind "draw " where `turns` holds."""

    caption_question: str = ""
    """Text behind a picture in the prompt that asks for its caption."""

    image: ImageSampling = field(default_factory=ImageSampling)
    """How the drawn pictures' codes are chosen, guidance included."""

    reconstruction_details: bool = False
    """Whether reconstruction also tells of likeness beyond its noise, and shows sheets."""

    feature_network: str = ""
    """The network whose features tell likeness: "efficientnet-lite0", the path of a TorchScript
    file, or nothing."""

    max_prompts: int = 200
    """Pictures drawn, and captions written, at most; chosen by seed."""

    benchmarks_folder: Path | None = None
    """The folder of benchmarks' own files, a folder for each."""

    limit: int | None = None
    """Questions of a benchmark, at most; chosen by seed."""

    num_fewshot: int | None = None
    """Examples before a benchmark's question; None for as many as the paper shows."""

    majority_votes: int = 1
    """Answers drawn for a majority vote; 1 is none."""

    log_samples: int = 0
    """Questions of each task that are kept to be shown."""

    safety_classifier: Callable[[Sequence[str | PIL.Image.Image]], SafetyLabel] | None = None
    """Says of an answer's parts whether they are safe; without one nobody does."""

    on_progress: OnProgress = _no_progress

    @property
    def neighbor_documents(self) -> list[Document]:
        """What baselines know that look for the nearest training document."""
        return subsample(
            captioned_documents(self.training_documents), MAX_NEIGHBOR_DOCUMENTS, self.seed
        )

    def first_to_log(self, *columns: Iterable[Any]) -> list[tuple[Any, ...]]:
        """The first `show` questions with what belongs to each; columns are of one length."""
        return list(zip(*columns, strict=True))[: self.log_samples]

    def benchmark_folder(self, task: str) -> Path:
        """Where a benchmark's files lie.

        Raises:
            EvaluationError: no folder is given, or it has none of that name.
        """
        if self.benchmarks_folder is None or not (self.benchmarks_folder / task).is_dir():
            found = "no folder of benchmarks is given"
            if self.benchmarks_folder is not None:
                found = f"{self.benchmarks_folder / task} is not there"
            raise EvaluationError(
                f"{task}: {found}; expected its files in a folder {task!r} of --data DIR. "
                "`calumma evaluate --list` names them."
            )
        return self.benchmarks_folder / task


@dataclass(frozen=True)
class TextImagePair:
    """A plain document of one text and one picture."""

    document: Document
    text: str
    text_ids: tuple[int, ...]
    codes: tuple[int, ...]
    image: Image

    @property
    def pixels_image(self) -> PIL.Image.Image:
        """The picture itself."""
        return self.image.open()


@dataclass
class EvalContext:
    """Documents and a model; what tasks need of them is worked out once, when first asked for."""

    model: Model
    documents: Sequence[Document]
    on_progress: OnProgress = field(default=_no_progress, repr=False)

    image_grids: list[ImageGrid] = field(default_factory=list)
    """What tasks have to show beside their figures."""

    skipped: list[str] = field(default_factory=list)
    """What tasks could not measure, and why, a line each."""

    logged_samples: list[Shown] = field(default_factory=list)
    """Questions and answers, to the letter."""

    @cached_property
    def codes(self) -> list[list[list[int]]]:
        """The codes of every picture of every document."""
        owners = [(d, image) for d, doc in enumerate(self.documents) for image in doc.images]
        codes: list[list[list[int]]] = [[] for _ in self.documents]
        rows = encode_in_batches(self.model.image, [image for _, image in owners], self.on_progress)
        for (owner, _), row in zip(owners, rows, strict=True):
            codes[owner].append(row)
        return codes

    @cached_property
    def pairs(self) -> list[TextImagePair]:
        """The plain documents of one text and one picture, those the model can read whole."""
        pairs = []
        for document, codes in zip(self.documents, self.codes, strict=True):
            kinds = sorted(type(part).__name__ for part in document.content)
            if kinds != ["Image", "Text"]:
                continue
            text = next(part.text for part in document.content if isinstance(part, Text))
            ids = self.model.text.encode(text)
            fits = len(ids) + len(codes[0]) + 4 <= self.model.decoder.config.max_seq_len
            if ids and fits:
                image = document.images[0]
                pairs.append(TextImagePair(document, text, tuple(ids), tuple(codes[0]), image))
        return pairs

    def require_pairs(self, task: str, num_texts: int) -> list[TextImagePair]:
        """The pairs, if they have at least so many different texts.

        Raises:
            EvaluationError: there are fewer.
        """
        found = len({pair.text for pair in self.pairs})
        if found < num_texts:
            raise EvaluationError(
                f"{task}: found {found} different texts among {len(self.pairs)} documents of one "
                f"text and one picture; expected at least {num_texts}. Give more such documents "
                "(--documents, --limit), or leave this task out."
            )
        return self.pairs

    def token_counts(self) -> NDArray[np.int64]:
        """How often each id stands in the documents' sequences, by id: [V] int64."""
        ids = [
            id_
            for document, codes in zip(self.documents, self.codes, strict=True)
            for id_ in encode_document(document, self.model.text, codes).token_ids
        ]
        return np.bincount(ids, minlength=self.model.vocabulary.size)


def encode_in_batches(
    tokenizer: ImageTokenizer, images: Sequence[Image], tick: OnProgress = _no_progress
) -> list[list[int]]:
    """The codes of pictures.

    Raises:
        ImageError: one of them cannot be read.
    """
    codes: list[list[int]] = []
    for start in range(0, len(images), BATCH_SIZE):
        piece = images[start : start + BATCH_SIZE]
        codes += tokenizer.encode_images([image.open() for image in piece])
        tick(len(codes), len(images))
    return codes


def image_token_ids(model: Model, pair: TextImagePair) -> list[int]:
    """The ids of a pair's picture, begin and end of image included."""
    return encode_codes(pair.codes, model.vocabulary)


def captioned_documents(documents: Iterable[Document]) -> list[Document]:
    """The documents with both text and a picture."""
    return [document for document in documents if document.text and document.images]


def subsample(items: Sequence[_Item], at_most: int | None, seed: int) -> list[_Item]:
    """At most so many of the items, drawn by seed, in their own order."""
    if at_most is None or len(items) <= at_most:
        return list(items)
    places = np.random.default_rng(seed).choice(len(items), size=at_most, replace=False)
    return [items[place] for place in sorted(places.tolist())]


def derangement(items: Sequence[_Item], seed: int) -> list[_Item]:
    """For each item another one: each gets the one before it in a ring whose order is drawn by
    seed, for documents that follow one another are often alike."""
    ring = np.random.default_rng(seed).permutation(len(items)).tolist()
    found = list(items)
    for place, own in enumerate(ring):
        found[own] = items[ring[place - 1]]
    return found
