"""The columns of the head that a step needs: text never costs the codes', nor codes the text's.

Shapes: N places, M model_dim, C text columns, R rows.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from calumma.generate.grammar import TokenKind, allowed_ids
from calumma.model.decoder import Decoder
from calumma.vocabulary import Vocabulary

SAMPLED_TEXT_KINDS = (TokenKind.TEXT, TokenKind.TEXT_OR_IMAGE, TokenKind.IMAGE_OR_EOS)
"""The kinds that are chosen among the text columns, each the number of its row in a table."""


class VocabSlices:
    """Logits of what may come next and of nothing else."""

    def __init__(self, decoder: Decoder, vocabulary: Vocabulary) -> None:
        self._head = decoder.head
        self._text, self._codes = vocabulary.text, vocabulary.codes
        device = decoder.embedding.weight.device
        controls = [vocabulary.eos, vocabulary.begin_image]
        self.special_token_ids = torch.tensor(controls, device=device)
        """[2] int64: end of sequence and begin-of-image, behind which no text is drawn."""

        self.text_token_ids = torch.tensor([*controls, *vocabulary.text], device=device)
        """[C] int64, the id of each text column: the controls, then the text."""

        self.token_to_column = torch.full(
            (vocabulary.size,), len(self.text_token_ids), device=device
        )
        """[V] int64, the text column of each id; C where it has none."""

        self.token_to_column[self.text_token_ids] = torch.arange(
            len(self.text_token_ids), device=device
        )
        allowed = torch.zeros(
            len(SAMPLED_TEXT_KINDS), vocabulary.size, dtype=torch.bool, device=device
        )
        for kind in SAMPLED_TEXT_KINDS:
            for ids in allowed_ids(kind, vocabulary):
                allowed[kind, ids.start : ids.stop] = True
        self.disallowed = ~allowed[:, self.text_token_ids]
        """[3, C] bool, for each of `CHOICES`: True where the grammar does not allow the column."""

    def text_logits(self, hidden: Tensor) -> Tensor:
        """[N, M] to [N, C] float32 logits of end-of-sequence, begin-of-image and text."""
        controls = self._head(hidden, lambda x, weight: F.linear(x, weight[self.special_token_ids]))
        return torch.cat([controls, self._of(hidden, self._text)], dim=-1).float()

    def image_logits(self, hidden: Tensor) -> Tensor:
        """[N, M] to [N, codes] float32 logits of the image codes, code 0 first."""
        return self._of(hidden, self._codes).float()

    def _of(self, hidden: Tensor, ids: range) -> Tensor:
        logits: Tensor = self._head(
            hidden, lambda x, weight: F.linear(x, weight[ids.start : ids.stop])
        )
        return logits
