"""The `interleaved` task: images in answers where requested, as many, in order, and on topic.

Documents are conversations; the last answer of each is the reference, everything before it is the
prompt. What the prompt requests is read off the reference: its images, their number and order.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import PIL.Image

from calumma.documents.document import Document, Image, Part, Turn
from calumma.errors import EvaluationError
from calumma.evaluate.context import EvalConfig, EvalContext, subsample
from calumma.evaluate.logged_samples import LoggedSample
from calumma.evaluate.metric import Metric, proportion_metric
from calumma.evaluate.retrieval import NUM_CANDIDATES, sample_candidates, top1_accuracy
from calumma.evaluate.text_image_scorer import TextImageScorer
from calumma.evaluate.text_to_image import RETRIEVAL_CHANCE, fit_scorer
from calumma.generate.events import Sample
from calumma.generate.model import Model
from calumma.generate.params import Request
from calumma.text_format import pluralize

_EXTRA_TOKENS = 32
"""Tokens that an answer may have more than the longest reference."""


@dataclass(frozen=True)
class InterleavedPrompt:
    """A conversation, split into the prompt and the reference answer."""

    turns: tuple[Turn, ...]
    """Everything before the last answer."""

    reference: tuple[Part, ...]
    """The last answer."""

    @property
    def prompt(self) -> list[Part]:
        """The parts of all turns, in reading order."""
        return [part for turn in self.turns for part in turn.parts]

    @property
    def text(self) -> str:
        """The prompt's text."""
        return " ".join(part.text for part in self.prompt if not isinstance(part, Image))


ModalitySequence = tuple[str, ...]
"""Text and images in order, adjacent texts as one."""


def modality_sequence(parts: Sequence[object]) -> ModalitySequence:
    """Return the modalities of parts in order; blank texts do not count.

    >>> modality_sequence(["a ", "b", Image(data=b""), "  "])
    ('text', 'image')
    """
    modalities: list[str] = []
    for part in parts:
        text = part if isinstance(part, str) else getattr(part, "text", None)
        if text is not None and not text.strip():
            continue
        modality = "image" if text is None else "text"
        if modality == "image" or modalities[-1:] != [modality]:
            modalities.append(modality)
    return tuple(modalities)


def interleaved(context: EvalContext, config: EvalConfig) -> list[Metric]:
    """Answer conversations and compare the layout of the answers with the references'.

    Raises:
        EvaluationError: no conversation ends in an answer.
    """
    exchanges, fitting = fitting_exchanges(context)
    if len(fitting) < len(exchanges):
        context.skipped.append(
            f"interleaved: {len(exchanges) - len(fitting)} of {len(exchanges)} conversations, "
            "which are longer than the model's max_seq_len."
        )
    prompts = subsample(fitting, config.max_prompts, config.seed)
    samples = generate_interleaved(context.model, prompts, config)
    for prompt, sample in config.first_to_log(prompts, samples):
        context.logged_samples.append(
            LoggedSample(task="interleaved", prompt=_open_images(prompt.prompt),
                         answer=sample.parts, target=_open_images(prompt.reference))
        )  # fmt: skip
    metrics = layout_metrics(prompts, samples)
    images = [
        (prompt.text, part)
        for prompt, sample in zip(prompts, samples, strict=True)
        for part in sample.parts
        if isinstance(part, PIL.Image.Image) and "image" in modality_sequence(prompt.reference)
    ]
    if len({text for text, _ in images}) >= NUM_CANDIDATES and (scorer := fit_scorer(context, config)):
        metrics.append(image_prompt_match(images, scorer))
    return metrics


def fitting_exchanges(context: EvalContext) -> tuple[list[InterleavedPrompt], list[InterleavedPrompt]]:
    """Return the last exchanges of all conversations, and those that fit the context.

    Raises:
        EvaluationError: no conversation ends in an answer and fits.
    """
    exchanges = [each for document in context.documents if (each := last_exchange(document))]
    fitting = [each for each in exchanges if fits_context(context.model, each)]
    if not fitting:
        raise EvaluationError(
            "interleaved: found no conversation with an answer among "
            f"{pluralize(len(context.documents), 'document')}; expected documents with turns. Give such documents "
            "(--documents), or leave this task out."
        )
    return exchanges, fitting


def last_exchange(document: Document) -> InterleavedPrompt | None:
    """Return a conversation's last answer and everything before it; None if it has none."""
    turns = document.messages
    if [turn.role for turn in turns[-2:]] != ["user", "assistant"]:
        return None
    return InterleavedPrompt(turns[:-1], turns[-1].parts)


def fits_context(model: Model, prompt: InterleavedPrompt) -> bool:
    """Return whether prompt and answer, with a token around each turn, fit the context."""
    max_tokens = model.decoder.config.max_seq_len - len(prompt.turns) - _EXTRA_TOKENS
    return _num_tokens(model, [*prompt.prompt, *prompt.reference]) <= max_tokens


def _num_tokens(model: Model, parts: Sequence[Part]) -> int:
    image_tokens = model.vocabulary.max_image_tokens(model.image.config.codes_per_image)
    return sum(image_tokens if isinstance(part, Image) else len(model.encode([part])) - 1 for part in parts)


def _open_images(parts: Sequence[Part]) -> list[str | PIL.Image.Image]:
    return [part.open() if isinstance(part, Image) else part.text for part in parts]


def generate_interleaved(model: Model, prompts: Sequence[InterleavedPrompt], config: EvalConfig) -> list[Sample]:
    """Return the model's answers, each with its own seed."""
    longest = max(_num_tokens(model, prompt.reference) for prompt in prompts) + _EXTRA_TOKENS
    requests = [
        Request(
            prompt_token_ids=tuple(model.encode_chat(prompt.turns)),
            max_new_tokens=longest,
            seed=config.seed + number,
            text=model.default_text_sampling,
            image=config.image or model.default_image_sampling,
        )
        for number, prompt in enumerate(prompts)
    ]
    return model.generate_requests(requests, on_progress=config.on_progress)


def layout_metrics(prompts: Sequence[InterleavedPrompt], samples: Sequence[Sample]) -> list[Metric]:
    """Return accuracies of image presence, count and order, recall, specificity and the stop rate.

    The baseline of the accuracies always gives the most common reference.
    """
    references = [modality_sequence(prompt.reference) for prompt in prompts]
    answers = [modality_sequence(sample.parts) for sample in samples]
    metrics = []
    aspects: dict[str, tuple[Callable[[ModalitySequence], Hashable], str]] = {
        "image_presence": (lambda modalities: "image" in modalities, "an image where requested, and none elsewhere"),
        "image_count": (lambda modalities: modalities.count("image"), "as many images as requested"),
        "order": (lambda modalities: modalities, "texts and images in the requested order"),
    }
    for name, (read, note) in aspects.items():
        truth = [read(reference) for reference in references]
        hits = [read(answer) == true for answer, true in zip(answers, truth, strict=True)]
        most_common = Counter(truth).most_common(1)[0][1] / len(truth)
        metric = proportion_metric(f"interleaved_{name}_accuracy", hits, note)
        metrics.append(metric.with_baselines({"most common reference": most_common}))
    for name, requested, note in (
        ("recall", True, "an image, of the prompts that request one"),
        ("specificity", False, "no image, of the prompts that request none"),
    ):
        hits = [
            ("image" in answer) == requested
            for answer, reference in zip(answers, references, strict=True)
            if ("image" in reference) == requested
        ]
        if hits:
            metrics.append(proportion_metric(f"interleaved_image_{name}", hits, note))
    stopped = [sample.finish_reason == "stop" for sample in samples]
    metrics.append(proportion_metric("interleaved_stop_rate", stopped, "answers that end"))
    return metrics


def image_prompt_match(images: Sequence[tuple[str, PIL.Image.Image]], scorer: TextImageScorer) -> Metric:
    """Return how often a generated image matches its own prompt best of ten, by the scorer."""
    texts = [text for text, _ in images]
    rows = np.array(sample_candidates(texts, seed=0))
    scores = scorer.scores(scorer.image_features([image for _, image in images]), texts)
    hits = top1_accuracy(np.take_along_axis(scores, rows, axis=1))
    note = f"a generated image matches its own prompt best of {NUM_CANDIDATES}, by the scorer"
    metric = proportion_metric("interleaved_image_matches_prompt", hits, note)
    return metric.with_baselines({"chance": RETRIEVAL_CHANCE})
