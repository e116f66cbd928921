"""Evaluation settings, and the documents under evaluation: images encoded once, pairs extracted."""

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
from calumma.evaluate.logged_samples import LoggedSample
from calumma.generate.model import Model
from calumma.generate.params import ImageSampling
from calumma.tokens.image import ImageTokenizer
from calumma.tokens.sequence import encode_document, encode_image_codes
from calumma.vocabulary import ImageSizeTokens

_Item = TypeVar("_Item")
SafetyLabel = Literal["safe", "unsure", "unsafe"]
OnProgress = Callable[[int, int], None]
"""Called with the number of items that are done, and of all."""

BATCH_SIZE = 32
"""Images encoded, or prompts generated from, at a time."""

MAX_NEIGHBOR_DOCUMENTS = 2000
"""Training documents among which nearest-neighbor baselines search, at most."""


def _no_progress(done: int, total: int) -> None:
    """Ignore progress."""


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Settings of an evaluation; every field has a default."""

    seed: int = 0
    """Seed of all random choices: derangements, candidates, images, resamples."""

    training_documents: Sequence[Document] = ()
    """Training documents, for nearest-neighbor baselines and the text-image scorer."""

    training_counts: NDArray[np.int64] | None = None
    """[V] count of each token id in training, for the unigram baseline."""

    chat_template: bool = False
    """Whether prompts are user turns, as of a fine-tuned model, or documents to be continued."""

    format_prompt: Callable[[str], Sequence[str]] | None = None
    """Maps a caption to the texts of the prompt for its image; by default the caption itself, with
    "draw " before it if `chat_template` is set."""

    caption_question: str = ""
    """Text after an image in the prompt for its caption."""

    image: ImageSampling | None = None
    """Sampling of generated images, classifier-free guidance included; None is the model's."""

    reconstruction_details: bool = False
    """Whether `reconstruction` also measures SSIM, feature distances, text and faces, and makes
    image grids."""

    feature_network: str = ""
    """Network for feature distances: "efficientnet-lite0", a TorchScript file, or none."""

    max_prompts: int = 200
    """Images and captions generated per task, at most; a random subsample."""

    benchmarks_folder: Path | None = None
    """Folder of the benchmarks' published files, one folder per benchmark."""

    limit: int | None = None
    """Questions of a benchmark, at most; a random subsample."""

    num_fewshot: int | None = None
    """Few-shot examples before a benchmark's question; None for the paper's number."""

    majority_votes: int = 1
    """Sampled answers per question for majority voting; 1 disables it."""

    log_samples: int = 0
    """Prompts and answers of each task that the report shows."""

    safety_classifier: Callable[[Sequence[str | PIL.Image.Image]], SafetyLabel] | None = None
    """Labels the parts of an answer; None for no labels."""

    on_progress: OnProgress = _no_progress

    @property
    def image_options(self) -> dict[str, ImageSampling]:
        """The `image` option of `Model.request`, if it is given."""
        return {} if self.image is None else {"image": self.image}

    @property
    def neighbor_documents(self) -> list[Document]:
        """Training pairs among which nearest-neighbor baselines search."""
        captioned = captioned_documents(self.training_documents)
        return subsample(captioned, MAX_NEIGHBOR_DOCUMENTS, self.seed)

    def first_to_log(self, *columns: Iterable[Any]) -> list[tuple[Any, ...]]:
        """Zip columns of equal length and return the first `log_samples` rows."""
        return list(zip(*columns, strict=True))[: self.log_samples]

    def benchmark_folder(self, task: str) -> Path:
        """Return the folder of a benchmark's files.

        Raises:
            EvaluationError: no folder of benchmarks is given, or it has none of that name.
        """
        if self.benchmarks_folder is None or not (self.benchmarks_folder / task).is_dir():
            found = "no folder of benchmarks is given"
            if self.benchmarks_folder is not None:
                found = f"{self.benchmarks_folder / task} does not exist"
            raise EvaluationError(
                f"{task}: {found}; expected its files in a folder {task!r} of --data DIR. "
                "`calumma evaluate --list` names them."
            )
        return self.benchmarks_folder / task


@dataclass(frozen=True)
class TextImagePair:
    """A plain document of one text and one image."""

    document: Document
    text: str
    text_ids: tuple[int, ...]
    codes: Sequence[int]
    """Row by row; a `CodeGrid` in a vocabulary with image sizes."""

    image: Image

    @property
    def pil_image(self) -> PIL.Image.Image:
        """The decoded image file."""
        return self.image.open()


@dataclass
class EvalContext:
    """A model and the documents under evaluation; encodings are computed once, on first use."""

    model: Model
    documents: Sequence[Document]
    on_progress: OnProgress = field(default=_no_progress, repr=False)

    image_grids: list[ImageGrid] = field(default_factory=list)
    """Image grids that tasks add to the report."""

    skipped: list[str] = field(default_factory=list)
    """Measurements that were skipped, with the reason, one line each."""

    logged_samples: list[LoggedSample] = field(default_factory=list)
    """Prompts and answers that tasks add to the report."""

    @cached_property
    def codes(self) -> list[list[Sequence[int]]]:
        """The codes of every image of every document."""
        images = [(d, image) for d, doc in enumerate(self.documents) for image in doc.images]
        codes: list[list[Sequence[int]]] = [[] for _ in self.documents]
        sizes = self.model.vocabulary.image_sizes
        rows = encode_in_batches(self.model.image, [image for _, image in images], self.on_progress, sizes=sizes)
        for (document, _), row in zip(images, rows, strict=True):
            codes[document].append(row)
        return codes

    @cached_property
    def pairs(self) -> list[TextImagePair]:
        """The plain documents of one text and one image that fit the model's context."""
        pairs = []
        for document, codes in zip(self.documents, self.codes, strict=True):
            types = sorted(type(part).__name__ for part in document.content)
            if types != ["Image", "Text"]:
                continue
            text = next(part.text for part in document.content if isinstance(part, Text))
            ids = self.model.text.encode(text)
            num_image_tokens = len(encode_image_codes(codes[0], self.model.vocabulary))
            fits = len(ids) + num_image_tokens + 2 <= self.model.decoder.config.max_seq_len
            if ids and fits:
                image = document.images[0]
                pairs.append(TextImagePair(document, text, tuple(ids), codes[0], image))
        return pairs

    def require_pairs(self, task: str, num_texts: int) -> list[TextImagePair]:
        """Return the pairs if they have at least `num_texts` different texts.

        Raises:
            EvaluationError: there are fewer.
        """
        found = len({pair.text for pair in self.pairs})
        if found < num_texts:
            raise EvaluationError(
                f"{task}: found {found} different texts among {len(self.pairs)} documents of one "
                f"text and one image; expected at least {num_texts}. Give more such documents "
                "(--documents, --limit), or leave this task out."
            )
        return self.pairs

    def token_counts(self) -> NDArray[np.int64]:
        """Count each token id in the documents' sequences: [V] int64."""
        ids = [
            id_
            for document, codes in zip(self.documents, self.codes, strict=True)
            for id_ in encode_document(document, self.model.text, codes).token_ids
        ]
        return np.bincount(ids, minlength=self.model.vocabulary.size)


def encode_in_batches(
    tokenizer: ImageTokenizer,
    images: Sequence[Image],
    on_progress: OnProgress = _no_progress,
    *,
    sizes: ImageSizeTokens | None = None,
) -> list[Sequence[int]]:
    """Encode images to codes, as squares unless there are sizes.

    Raises:
        ImageError: an image cannot be read.
    """
    codes: list[Sequence[int]] = []
    for start in range(0, len(images), BATCH_SIZE):
        batch = images[start : start + BATCH_SIZE]
        opened = [image.open() for image in batch]
        codes += tokenizer.encode_images(opened) if sizes is None else tokenizer.encode_grids(opened, sizes.grids)
        on_progress(len(codes), len(images))
    return codes


def image_token_ids(model: Model, pair: TextImagePair) -> list[int]:
    """Return the token ids of a pair's image, begin and end of image included."""
    return encode_image_codes(pair.codes, model.vocabulary)


def captioned_documents(documents: Iterable[Document]) -> list[Document]:
    """Return the documents that have both text and an image."""
    return [document for document in documents if document.text and document.images]


def subsample(items: Sequence[_Item], max_items: int | None, seed: int) -> list[_Item]:
    """Return at most `max_items` of the items, chosen at random, in their order."""
    if max_items is None or len(items) <= max_items:
        return list(items)
    indices = np.random.default_rng(seed).choice(len(items), size=max_items, replace=False)
    return [items[index] for index in sorted(indices.tolist())]


def derangement(items: Sequence[_Item], seed: int) -> list[_Item]:
    """Return for each item another one: its predecessor in a random cyclic order.

    The order is random because neighboring documents are often alike.
    """
    cycle = np.random.default_rng(seed).permutation(len(items)).tolist()
    deranged = list(items)
    for position, index in enumerate(cycle):
        deranged[index] = items[cycle[position - 1]]
    return deranged
