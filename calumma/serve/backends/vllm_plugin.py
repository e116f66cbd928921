"""Our grammar inside vLLM: an image, once begun, is whole, whoever does the generating.

    calumma convert MODEL qwen3 --to qwen3
    vllm serve qwen3 --logits-processors calumma.serve.backends.vllm_plugin:GrammarProcessor

Written against `vllm.v1.sample.logits_processor.LogitsProcessor` as its documentation of versions
0.10 to 0.31 has it; from 0.32 on that interface belongs to the older of two model runners
(VLLM_USE_V2_MODEL_RUNNER=0). vLLM itself is not imported where it is not installed.

Shapes: R requests of a batch, V rows of the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from calumma.checkpoints.model_folder import open_model_folder
from calumma.errors import GenerationError
from calumma.generate.grammar import Grammar, TokenKind, allowed_ids
from calumma.generate.params import Request
from calumma.generate.request import RequestState
from calumma.vocabulary import Vocabulary

if TYPE_CHECKING:
    _Base = object
else:
    try:
        from vllm.v1.sample.logits_processor import LogitsProcessor as _Base
    except ImportError:
        _Base = object

_ENDLESS = 2**31
"""Ids that a request may have where it does not say."""


@dataclass
class RequestGrammar:
    """One request: what has come, and what may come."""

    grammar: Grammar | None
    """None where nothing can be answered: then only the end may come."""

    output: Sequence[int]
    """The engine's own list, which grows."""

    num_read: int = 0

    def expected(self, vocabulary: Vocabulary) -> TokenKind:
        """The kind of id that comes next, after what has come since the last time."""
        if self.grammar is None:
            return TokenKind.EOS
        for id_ in self.output[self.num_read :]:
            if id_ == vocabulary.eos or not self.grammar.allows(id_):
                # Told to go on behind an end, or by another grammar: nothing sensible can follow.
                self.grammar = None
                return TokenKind.EOS
            self.grammar.consume(id_)
        self.num_read = len(self.output)
        return self.grammar.next_kind


class GrammarLogitsProcessor(_Base):
    """Masks, row by row, what may not come next.

    A request says what it may hold in its `vllm_xargs`: `calumma_modality` ("any", "text",
    "image") and `calumma_max_images`.
    """

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        """Read the vocabulary of the model folder that the engine serves."""
        model = open_model_folder(Path(vllm_config.model_config.model))
        self.vocabulary = model.text_tokenizer.vocabulary
        self.codes_per_image = model.vq_config.codes_per_image
        self.device = device
        self.grammars: dict[int, RequestGrammar] = {}

    def is_argmax_invariant(self) -> bool:
        """It may mask the likeliest id."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Follow the batch: requests leave, come, and change their places, in that order."""
        if batch_update is None:
            return
        for index in batch_update.removed:
            self.grammars.pop(index, None)
        for index, params, prompt, output in batch_update.added:
            self.grammars[index] = RequestGrammar(self._grammar(params, prompt or ()), output)
        for source, target, direction in batch_update.moved:
            moved, other = self.grammars.pop(source, None), self.grammars.pop(target, None)
            if moved is not None:
                self.grammars[target] = moved
            if other is not None and direction.name == "SWAP":
                self.grammars[source] = other

    def _grammar(self, params: Any, prompt: Sequence[int]) -> Grammar | None:
        wanted = getattr(params, "extra_args", None) or {}
        try:
            request = Request(
                prompt_token_ids=tuple(prompt),
                max_new_tokens=params.max_tokens or _ENDLESS,
                modality=wanted.get("calumma_modality", "any"),
                max_images=int(wanted.get("calumma_max_images", Request.max_images)),
            )
            longest = len(prompt) + request.max_new_tokens + 1
            return RequestState.from_request(
                request, self.vocabulary, self.codes_per_image, longest
            ).grammar
        except GenerationError:
            # The engine knows no way to refuse here; an error would end it for all.
            return None

    def apply(self, logits: Tensor) -> Tensor:
        """[R, V] logits, those of what may not come next set to -inf in place."""
        if not self.grammars:
            return logits
        rows = sorted(self.grammars)
        kinds = [self.grammars[row].expected(self.vocabulary) for row in rows]
        allowed = torch.zeros(len(rows), logits.shape[1], dtype=torch.bool)
        for place, kind in enumerate(kinds):
            for ids in allowed_ids(kind, self.vocabulary):
                allowed[place, ids.start : ids.stop] = True
        index = torch.tensor(rows, device=logits.device)
        kept = logits[index].masked_fill(~allowed.to(logits.device), -torch.inf)
        logits[index] = kept
        return logits


def without_guidance(request: Request) -> Request:
    """The same request without guidance, which engines of others do not have."""
    return replace(request, image=replace(request.image, text_guidance=1.0, image_guidance=1.0))
