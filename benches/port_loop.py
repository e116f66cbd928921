"""Peer: `generate` of transformers with images, as its users have to build it.

Text is one call, an image another: a batch of three left-padded rows with classifier-free guidance
in a logits processor. The processor samples the code itself: all rows must continue with the same.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benches.generation_requests import BenchRequest, OutputState
from calumma.vocabulary import Vocabulary


class PortLoop:
    """Runs requests one after another through `generate`."""

    def __init__(self, port: Any, vocabulary: Vocabulary, codes_per_image: int) -> None:
        self.port, self.vocabulary = port, vocabulary
        self.codes_per_image = codes_per_image
        self.device = port.lm_head.weight.device

    def generate(self, request: BenchRequest, on_token: Callable[[], None]) -> list[int]:
        """Generate the tokens of one request; `on_token` is called for each sampled one."""
        output = OutputState(request, self.vocabulary, self.codes_per_image)
        output.start()
        while output.num_remaining > 0:
            if output.num_codes_remaining:
                new = self._image([*request.prompt_token_ids, *output.token_ids], on_token)
            else:
                new = self._text(output, on_token)
            for id_ in new:
                output.append(id_)
        return output.token_ids

    def _text(self, output: OutputState, on_token: Callable[[], None]) -> list[int]:
        from transformers import LogitsProcessorList

        context = [*output.request.prompt_token_ids, *output.token_ids]
        history = torch.tensor([context], device=self.device)
        vocabulary = self.vocabulary
        allowed = torch.zeros(self.port.config.vocab_size, dtype=torch.bool, device=self.device)
        allowed[vocabulary.text.start : vocabulary.text.stop] = True
        allowed[vocabulary.begin_image] = output.may_begin_image
        # An image may begin only while it fits: that is where this call ends.
        max_new_tokens = output.num_remaining - (self.codes_per_image + 1 if output.may_begin_image else 0)
        generated = self.port.generate(
            history,
            attention_mask=torch.ones_like(history),
            max_new_tokens=max_new_tokens,
            do_sample=True,
            temperature=0.7,
            top_p=0.9,
            top_k=0,
            repetition_penalty=1.2,
            eos_token_id=[vocabulary.eos, vocabulary.begin_image],
            logits_processor=LogitsProcessorList([AllowedTokens(allowed)]),
            streamer=TokenCounter(on_token),
        )
        new: list[int] = generated[0, history.shape[1] :].tolist()
        return new

    def _image(self, history: list[int], on_token: Callable[[], None]) -> list[int]:
        from transformers import LogitsProcessorList

        vocabulary = self.vocabulary
        images = [i for i in history if i == vocabulary.bos or vocabulary.is_image_token(i)]
        rows = [history, images, [vocabulary.bos, vocabulary.begin_image]]
        ids = torch.full((3, len(history)), vocabulary.pad)
        for row, context in enumerate(rows):
            ids[row, len(history) - len(context) :] = torch.tensor(context)
        ids = ids.to(self.device)
        mask = torch.stack([torch.arange(len(history)) >= len(history) - len(context) for context in rows])
        generated = self.port.generate(
            ids,
            attention_mask=mask.long().to(self.device),
            max_new_tokens=self.codes_per_image,
            do_sample=False,
            eos_token_id=vocabulary.eos,
            logits_processor=LogitsProcessorList([GuidedImageSampler(vocabulary.codes)]),
            streamer=TokenCounter(on_token),
        )
        new: list[int] = generated[0, len(history) :].tolist()
        return new


class AllowedTokens:
    """Logits processor that masks all but some tokens."""

    def __init__(self, allowed: Tensor) -> None:
        self.disallowed = ~allowed

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Mask logits: [R, V] to [R, V]."""
        return scores.masked_fill(self.disallowed, -math.inf)


class GuidedImageSampler:
    """Logits processor that samples one code for three rows and masks all others."""

    def __init__(self, codes: range) -> None:
        self.codes = codes

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Apply guidance and sample: [3, V] to [3, V]."""
        cond, image_cond, uncond = scores[:, self.codes.start : self.codes.stop].float()
        guided = uncond + 1.2 * (image_cond - uncond) + 3.0 * (cond - image_cond)
        probs, order = (guided / 0.7).softmax(dim=-1).sort(dim=-1, descending=True)
        probs = probs.masked_fill(probs.cumsum(dim=-1) - probs > 0.9, 0.0)
        code = order[torch.multinomial(probs, 1)]
        forced = torch.full_like(scores, -math.inf)
        forced[:, self.codes.start + code] = 0.0
        return forced


class TokenCounter:
    """Streamer that calls back for each token after the prompt."""

    def __init__(self, on_token: Callable[[], None]) -> None:
        self.on_token, self.has_prompt = on_token, False

    def put(self, value: Tensor) -> None:
        """Receive the prompt, then each token."""
        if self.has_prompt:
            self.on_token()
        self.has_prompt = True

    def end(self) -> None:
        """Do nothing: no token is buffered."""
