"""The columns of the head that a step needs: text never costs the codes', nor codes the text's.

Shapes: N places, M model_dim, C text columns, R rows.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from calumma.generate.grammar import Next, ids_of
from calumma.model.decoder import Decoder
from calumma.vocabulary import Vocabulary

CHOICES = (Next.TEXT, Next.TEXT_OR_IMAGE, Next.IMAGE_OR_STOP)
"""The kinds that are chosen among the text columns, each the number of its row in a table."""


class Columns:
    """Logits of what may come next and of nothing else."""

    def __init__(self, decoder: Decoder, vocabulary: Vocabulary) -> None:
        self._head = decoder.head
        self._text, self._codes = vocabulary.text, vocabulary.codes
        device = decoder.embedding.weight.device
        controls = [vocabulary.eos, vocabulary.begin_image]
        self.controls = torch.tensor(controls, device=device)
        """[2] int64: end of sequence and begin-of-image, behind which no text is drawn."""

        self.ids = torch.tensor([*controls, *vocabulary.text], device=device)
        """[C] int64, the id of each text column: the controls, then the text."""

        self.column = torch.full((vocabulary.size,), len(self.ids), device=device)
        """[V] int64, the text column of each id; C where it has none."""

        self.column[self.ids] = torch.arange(len(self.ids), device=device)
        allowed = torch.zeros(len(CHOICES), vocabulary.size, dtype=torch.bool, device=device)
        for kind in CHOICES:
            for ids in ids_of(kind, vocabulary):
                allowed[kind, ids.start : ids.stop] = True
        self.forbidden = ~allowed[:, self.ids]
        """[3, C] bool, for each of `CHOICES`: True where the grammar does not allow the column."""

    def of_text(self, hidden: Tensor) -> Tensor:
        """[N, M] to [N, C] float32 logits of end-of-sequence, begin-of-image and text."""
        controls = self._head(hidden, lambda x, weight: F.linear(x, weight[self.controls]))
        return torch.cat([controls, self._of(hidden, self._text)], dim=-1).float()

    def of_codes(self, hidden: Tensor) -> Tensor:
        """[N, M] to [N, codes] float32 logits of the image codes, code 0 first."""
        return self._of(hidden, self._codes).float()

    def _of(self, hidden: Tensor, ids: range) -> Tensor:
        logits: Tensor = self._head(
            hidden, lambda x, weight: F.linear(x, weight[ids.start : ids.stop])
        )
        return logits
