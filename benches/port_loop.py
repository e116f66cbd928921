"""transformers' `generate` with images, as its users have to build it, as a peer.

Text is one call, an image another: a batch of three rows, padded on the left, with guidance in a
logits processor. It draws the code itself, for the three rows must go on with the same one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benches.asked import Asked, Reply
from calumma.vocabulary import Vocabulary


class PortLoop:
    """Serves requests one after another through `generate`."""

    def __init__(self, port: Any, vocabulary: Vocabulary, codes_per_image: int) -> None:
        self.port, self.vocabulary = port, vocabulary
        self.codes_per_image = codes_per_image
        self.device = port.lm_head.weight.device

    def answer(self, asked: Asked, tell: Callable[[], None]) -> list[int]:
        """All new ids of one request; `tell` is called at each that was chosen."""
        reply = Reply(asked, self.vocabulary, self.codes_per_image)
        reply.begin()
        while reply.room > 0:
            history = [*asked.ids, *reply.ids]
            new = self._image(history, tell) if reply.codes_owed else self._text(reply, tell)
            for id_ in new:
                reply.add(id_)
        return reply.ids

    def _text(self, reply: Reply, tell: Callable[[], None]) -> list[int]:
        from transformers import LogitsProcessorList

        history = torch.tensor([[*reply.asked.ids, *reply.ids]], device=self.device)
        vocabulary = self.vocabulary
        allowed = torch.zeros(self.port.config.vocab_size, dtype=torch.bool, device=self.device)
        allowed[vocabulary.text.start : vocabulary.text.stop] = True
        allowed[vocabulary.begin_image] = reply.may_begin
        # An image may begin only while it fits: that is where this call ends.
        most = reply.room - (self.codes_per_image + 1 if reply.may_begin else 0)
        made = self.port.generate(
            history,
            attention_mask=torch.ones_like(history),
            max_new_tokens=most,
            do_sample=True,
            temperature=0.7,
            top_p=0.9,
            top_k=0,
            repetition_penalty=1.2,
            eos_token_id=[vocabulary.eos, vocabulary.begin_image],
            logits_processor=LogitsProcessorList([Only(allowed)]),
            streamer=Teller(tell),
        )
        new: list[int] = made[0, history.shape[1] :].tolist()
        return new

    def _image(self, history: list[int], tell: Callable[[], None]) -> list[int]:
        from transformers import LogitsProcessorList

        vocabulary = self.vocabulary
        kept = {vocabulary.bos, vocabulary.begin_image, vocabulary.end_image}
        images = [i for i in history if i in kept or i in vocabulary.codes]
        rows = [history, images, [vocabulary.bos, vocabulary.begin_image]]
        ids = torch.full((3, len(history)), vocabulary.pad)
        for row, context in enumerate(rows):
            ids[row, len(history) - len(context) :] = torch.tensor(context)
        ids = ids.to(self.device)
        mask = torch.stack(
            [torch.arange(len(history)) >= len(history) - len(context) for context in rows]
        )
        made = self.port.generate(
            ids,
            attention_mask=mask.long().to(self.device),
            max_new_tokens=self.codes_per_image,
            do_sample=False,
            eos_token_id=vocabulary.eos,
            logits_processor=LogitsProcessorList([Guided(vocabulary.codes)]),
            streamer=Teller(tell),
        )
        new: list[int] = made[0, len(history) :].tolist()
        return new


class Only:
    """A logits processor that leaves only some ids."""

    def __init__(self, allowed: Tensor) -> None:
        self.refused = ~allowed

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """[R, V] to [R, V]."""
        return scores.masked_fill(self.refused, -math.inf)


class Guided:
    """A logits processor that draws one code for three rows and leaves nothing else."""

    def __init__(self, codes: range) -> None:
        self.codes = codes

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """[3, V] to [3, V]."""
        full, image, none = scores[:, self.codes.start : self.codes.stop].float()
        mixed = none + 1.2 * (image - none) + 3.0 * (full - image)
        shares, order = (mixed / 0.7).softmax(dim=-1).sort(dim=-1, descending=True)
        shares = shares.masked_fill(shares.cumsum(dim=-1) - shares > 0.9, 0.0)
        code = order[torch.multinomial(shares, 1)]
        left = torch.full_like(scores, -math.inf)
        left[:, self.codes.start + code] = 0.0
        return left


class Teller:
    """A streamer that only counts: the prompt comes first, then each new id."""

    def __init__(self, tell: Callable[[], None]) -> None:
        self.tell, self.begun = tell, False

    def put(self, value: Tensor) -> None:
        """Take in what `generate` hands on."""
        if self.begun:
            self.tell()
        self.begun = True

    def end(self) -> None:
        """Nothing is kept back."""
