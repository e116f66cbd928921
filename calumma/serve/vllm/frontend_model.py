"""The part of a model that stays in front of vLLM: its tokenizers, and the shape of its decoder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch

from calumma.checkpoints.model_folder import ModelComponents, load_image_tokenizer, open_model_folder
from calumma.errors import GenerationError
from calumma.generate.loglikelihood import SequenceLogprobs
from calumma.generate.model import Model
from calumma.generate.params import Request
from calumma.generate.request import RequestState
from calumma.model.decoder import Decoder
from calumma.tokens.folder import Tokenizers


class _WeightlessDecoder(Decoder):
    """The shape of a decoder: its parameters are on the meta device."""

    def to(self, *args: Any, **options: Any) -> Self:
        """Return the decoder, which has nothing to move."""
        return self


class FrontendModel(Model):
    """A model whose decoder vLLM runs, so that only its tokenizers are loaded here."""

    def __init__(self, folder: Path, *, device: str = "cpu") -> None:
        """Load the tokenizers of a model folder.

        Raises:
            CheckpointError: the folder holds no such model.
        """
        model = open_model_folder(folder)
        with torch.device("meta"):
            decoder = _WeightlessDecoder(model.decoder_config)
        tokenizers = Tokenizers(model.text_tokenizer, load_image_tokenizer(model))
        super().__init__(ModelComponents(decoder, tokenizers, model.sampling), device=device)

    def state_of(self, request: Request) -> RequestState:
        """Create the state of a request.

        Raises:
            GenerationError: vLLM can never process it.
        """
        if request.known_codes:
            raise GenerationError("vLLM draws whole images; expected an edit without a mask. Leave it out.")
        if request.image_grid is not None:
            raise GenerationError("vLLM draws images of the model's own size; expected that, or auto. Leave size out.")
        if self.vocabulary.image_sizes is not None and request.modality != "text" and request.max_images:
            raise GenerationError(
                "vLLM draws squares, and this model's images have any size; expected text only. Set max_images to 0."
            )
        codes = self.image.config.codes_per_image
        return RequestState.from_request(request, self.vocabulary, codes, self.decoder.config.max_seq_len)

    def prompt_logprobs(
        self, prompts: Sequence[Sequence[int]], num_top: int = 0, adapter: str = ""
    ) -> list[SequenceLogprobs]:
        """Raise `GenerationError`: vLLM computes the logits."""
        raise GenerationError(
            "log probabilities of prompts are not computed with vLLM; expected a server without it, or no echo."
        )
