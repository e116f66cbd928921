"""One request on its way: its rows, what it has chosen, what may come next."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from calumma.errors import GenerationError
from calumma.generate.config import Request
from calumma.generate.grammar import Grammar
from calumma.generate.sample import FinishReason
from calumma.vocabulary import Vocabulary


@dataclass(eq=False)
class Row:
    """A context that is read as it grows: ids in the cache, and ids still to be read."""

    pending: list[int]
    """Ids not yet in the cache."""

    length: int = 0
    """Ids in the cache."""


@dataclass(eq=False)
class Work:
    """One request on its way."""

    request: Request
    grammar: Grammar

    full: Row
    """The whole context."""

    branches: list[Row] = field(default_factory=list)
    """Guidance rows of the open image: its images alone (where there are any), and nothing."""

    ids: list[int] = field(default_factory=list)
    """The new ids."""

    logprobs: list[float] = field(default_factory=list)
    """One for each new id; 0 where it was the only one allowed."""

    done: bool = False
    cancelled: bool = False

    submitted: float = field(default_factory=time.perf_counter)
    first_token: float = 0.0
    """Seconds from `submitted` to the first new id; 0 where there is none."""

    total: float = 0.0
    """Seconds from `submitted` to the end."""

    @property
    def rows(self) -> list[Row]:
        """All rows of the request, the whole context first."""
        return [self.full, *self.branches]

    def take(self, id_: int, logprob: float) -> None:
        """Take in an id that was chosen, and end where nothing may follow."""
        self.grammar.advance(id_)
        if not self.ids:
            self.first_token = time.perf_counter() - self.submitted
        self.ids.append(id_)
        self.logprobs.append(logprob)
        vocabulary = self.grammar.vocabulary
        if id_ == vocabulary.end_image:
            self.branches = []
        for row in self.rows:
            row.pending.append(id_)
        if id_ == vocabulary.begin_image:
            self.branches = self.guidance()
        if id_ == vocabulary.eos or self.grammar.room <= 0:
            self.end()

    def end(self, *, cancelled: bool = False) -> None:
        """Nothing more will come."""
        self.done, self.cancelled, self.branches = True, cancelled, []
        self.total = time.perf_counter() - self.submitted

    @property
    def finish_reason(self) -> FinishReason:
        """Why it ended."""
        if self.cancelled:
            return "cancelled"
        stopped = bool(self.ids) and self.ids[-1] == self.grammar.vocabulary.eos
        return "stop" if stopped else "length"

    def guidance(self) -> list[Row]:
        """The guidance rows of the image that is open, unread."""
        rule = self.request.image
        if rule.text_guidance == 1.0 and rule.image_guidance == 1.0:
            return []
        vocabulary = self.grammar.vocabulary
        context = [*self.request.ids, *self.ids]
        kept = {vocabulary.bos, vocabulary.begin_image, vocabulary.end_image}
        images = [id_ for id_ in context if id_ in kept or id_ in vocabulary.codes]
        begun = len(images) - 1 - images[::-1].index(vocabulary.begin_image)
        none = [vocabulary.bos, *images[begun:]]
        if vocabulary.end_image not in images:
            return [Row(none)]
        return [Row(images), Row(none)]


def work_of(request: Request, vocabulary: Vocabulary, codes_per_image: int, longest: int) -> Work:
    """The work that a request is, with its prompt read by the grammar.

    Args:
        request: what is asked.
        vocabulary: of the model.
        codes_per_image: of the image tokenizer.
        longest: ids that the model reads at most.

    Raises:
        GenerationError: the prompt is empty, too long, or its last image is broken.
    """
    if not request.ids or len(request.ids) >= longest:
        raise GenerationError(
            f"the prompt has {len(request.ids)} ids; wanted between 1 and {longest - 1}, the "
            "most this model reads. Shorten it, or leave an image out."
        )
    room = min(request.max_new_tokens, longest - len(request.ids))
    images = 0 if request.modality == "text" else request.max_images
    grammar = Grammar(
        vocabulary,
        codes_per_image,
        room=room + len(request.ids),
        max_images=images + request.ids.count(vocabulary.begin_image),
    )
    for id_ in request.ids:
        grammar.read(id_)
    grammar.images_only = request.modality == "image"
    grammar.image_first = request.image_first or grammar.images_only
    _require_whole_image(grammar)
    work = Work(request=request, grammar=grammar, full=Row(list(request.ids)))
    if grammar.codes_owed is not None:
        grammar.image_first = False
        work.branches = work.guidance()
    if grammar.room <= 0:
        work.end()
    return work


def _require_whole_image(grammar: Grammar) -> None:
    owed = grammar.codes_owed
    if owed is None:
        if grammar.images_only and grammar.room < grammar.codes_per_image + 2:
            raise GenerationError(
                f"an image needs {grammar.codes_per_image + 2} ids, but there is room for "
                f"{max(grammar.room, 0)}; wanted room for the whole image. Raise max_new_tokens, "
                "or shorten the prompt."
            )
        return
    if owed < 0:
        raise GenerationError(
            f"the prompt's last image is open with {grammar.codes_per_image - owed} codes; wanted "
            f"at most {grammar.codes_per_image}, as this model draws them. Leave codes out."
        )
    if grammar.room <= owed:
        raise GenerationError(
            f"an open image still needs {owed + 1} ids, but max_new_tokens leaves {grammar.room}; "
            "wanted room for the whole image. Raise max_new_tokens."
        )
