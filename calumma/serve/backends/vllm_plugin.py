"""Logits processor for vLLM: the image grammar, which keeps generated images complete.

    calumma convert MODEL qwen3 --to qwen3
    vllm serve qwen3 \\
        --logits-processors calumma.serve.backends.vllm_plugin:GrammarLogitsProcessor

Written against `vllm.v1.sample.logits_processor.LogitsProcessor` as its documentation of versions
0.10 to 0.31 has it; from 0.32 on that interface belongs to the older of two model runners
(VLLM_USE_V2_MODEL_RUNNER=0). vLLM itself is not imported where it is not installed.

Shapes: R requests of a batch, V vocabulary size of the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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

_UNLIMITED = 2**31
"""Output length of a request without max_tokens."""


@dataclass
class RequestGrammar:
    """Grammar state of one request."""

    grammar: Grammar | None
    """None if the request is invalid: then only end-of-sequence is allowed."""

    output: Sequence[int]
    """vLLM's own list of output tokens, which grows."""

    num_consumed: int = 0

    def next_kind(self, vocabulary: Vocabulary) -> TokenKind:
        """Consume the new output tokens, and return the kind of the next one."""
        if self.grammar is None:
            return TokenKind.EOS
        for id_ in self.output[self.num_consumed :]:
            if id_ == vocabulary.eos or not self.grammar.allows(id_):
                # Continued after its end, or generated without this grammar: stop.
                self.grammar = None
                return TokenKind.EOS
            self.grammar.consume(id_)
        self.num_consumed = len(self.output)
        return self.grammar.next_kind


class GrammarLogitsProcessor(_Base):
    """Masks the logits of disallowed tokens, request by request.

    A request gives its modality in `vllm_xargs`: `calumma_modality` ("any", "text", "image") and
    `calumma_max_images`.
    """

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        """Read the vocabulary from the model folder that vLLM serves."""
        model = open_model_folder(Path(vllm_config.model_config.model))
        self.vocabulary = model.text_tokenizer.vocabulary
        self.codes_per_image = model.vq_config.codes_per_image
        self.device = device
        self.grammars: dict[int, RequestGrammar] = {}

    def is_argmax_invariant(self) -> bool:
        """Return False: the most likely token may be masked."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Follow the batch: requests are removed, added and moved, in this order."""
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
        extra_args = getattr(params, "extra_args", None) or {}
        try:
            request = Request(
                prompt_token_ids=tuple(prompt),
                max_new_tokens=params.max_tokens or _UNLIMITED,
                modality=extra_args.get("calumma_modality", "any"),
                max_images=int(extra_args.get("calumma_max_images", Request.max_images)),
            )
            max_model_len = len(prompt) + request.max_new_tokens + 1
            return RequestState.from_request(
                request, self.vocabulary, self.codes_per_image, max_model_len
            ).grammar
        except GenerationError:
            # A processor cannot reject a request, and an exception would end the engine.
            return None

    def apply(self, logits: Tensor) -> Tensor:
        """Set the logits of disallowed tokens to -inf, in place.

        Args:
            logits: [R, V].
        """
        if not self.grammars:
            return logits
        indices = sorted(self.grammars)
        kinds = [self.grammars[index].next_kind(self.vocabulary) for index in indices]
        allowed = torch.zeros(len(indices), logits.shape[1], dtype=torch.bool)
        for row, kind in enumerate(kinds):
            for ids in allowed_ids(kind, self.vocabulary):
                allowed[row, ids.start : ids.stop] = True
        index = torch.tensor(indices, device=logits.device)
        masked = logits[index].masked_fill(~allowed.to(logits.device), -torch.inf)
        logits[index] = masked
        return logits
