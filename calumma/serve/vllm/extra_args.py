"""Requests as vLLM's extra arguments (`vllm_xargs`), and back.

A request gives its grammar as `calumma_modality` ("any", "text", "image"), `calumma_max_images`,
`calumma_image_first` and `calumma_max_leading_text_tokens`, and its sampling parameters as JSON in `calumma_sampling`.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from calumma.errors import GenerationError
from calumma.generate.grammar import TokenKind
from calumma.generate.params import ImageSampling, Request, TextSampling
from calumma.generate.request import RequestState
from calumma.generate.sequence_state import SequenceState
from calumma.vocabulary import Vocabulary

_UNLIMITED = 2**31
"""Output length of a request without max_tokens."""

_SAMPLING_FIELDS = ("temperature", "top_k", "min_p", "top_p")
_UNGUIDED = {"guidance_scale": 1.0, "image_guidance_scale": 1.0}

GROUP_KEY, ROLE_KEY = "calumma_group", "calumma_role"
"""Extra arguments that `GuidanceScheduler` sets: the id of the request that is guided, in itself and
in the requests that compute its other sequences, and which of the sequences such a request is."""

GuidanceRole = Literal["image_cond", "uncond"]


def vllm_extra_args(request: Request) -> dict[str, Any]:
    """Build the `vllm_xargs` of a request: its grammar, and its sampling parameters as JSON."""
    sampling = {
        "seed": request.seed,
        "text": {name: getattr(request.text, name) for name in (*_SAMPLING_FIELDS, "repetition_penalty")},
        "image": {name: getattr(request.image, name) for name in (*_SAMPLING_FIELDS, *_UNGUIDED)},
        "stop_token_ids": request.stop_token_ids,
        "min_tokens": request.min_tokens,
        "ignore_eos": request.ignore_eos,
    }
    return {
        "calumma_modality": request.modality,
        "calumma_max_images": request.max_images,
        "calumma_image_first": int(request.image_first),
        "calumma_max_leading_text_tokens": request.max_leading_text_tokens,
        "calumma_sampling": json.dumps(sampling),
    }


def request_of(params: Any, prompt: Sequence[int]) -> tuple[Request, bool]:
    """Return the request of vLLM's sampling parameters, and whether it is sampled here.

    Raises:
        ValueError: `vllm_xargs` has an invalid value.
        GenerationError: the same.
    """
    extra_args: Mapping[str, Any] = getattr(params, "extra_args", None) or {}
    sampling = json.loads(extra_args.get("calumma_sampling", "{}"))
    if not isinstance(sampling, dict):
        raise ValueError("calumma_sampling is no JSON object; expected one. Fix it.")
    try:
        text = TextSampling(**sampling.get("text", {}))
        image = ImageSampling(**_UNGUIDED | sampling.get("image", {}))
        request = Request(
            prompt_token_ids=tuple(prompt),
            max_new_tokens=params.max_tokens or _UNLIMITED,
            seed=int(sampling.get("seed", 0)),
            text=text,
            image=image,
            modality=extra_args.get("calumma_modality", "any"),
            max_images=int(extra_args.get("calumma_max_images", Request.max_images)),
            image_first=bool(int(extra_args.get("calumma_image_first", 0))),
            max_leading_text_tokens=int(extra_args.get("calumma_max_leading_text_tokens", 0)),
            stop_token_ids=tuple(sampling.get("stop_token_ids", ())),
            min_tokens=int(sampling.get("min_tokens", 0)),
            ignore_eos=bool(sampling.get("ignore_eos", False)),
            num_logprobs=getattr(params, "logprobs", None) or 0,
        )
    except TypeError as error:
        raise ValueError(f"calumma_sampling is invalid ({error}); expected numbers.") from error
    return request, bool(sampling)


def request_state_of(
    params: Any, prompt: Sequence[int], vocabulary: Vocabulary, codes_per_image: int
) -> tuple[RequestState | None, bool]:
    """Return the state of a request of vLLM, None if it is invalid, and whether it is sampled here."""
    try:
        request, is_sampled = request_of(params, prompt)
        max_model_len = len(prompt) + request.max_new_tokens + 1
        return RequestState.from_request(request, vocabulary, codes_per_image, max_model_len), is_sampled
    except (GenerationError, ValueError):
        # Neither a processor nor a scheduler can reject a request by an exception: it would end the engine.
        return None, False


def decode_logprobs(values: Mapping[int, float], id_: int, num_logprobs: int) -> tuple[float, dict[int, float]]:
    """Return the log probability of a sampled token and those of the most likely ones.

    Args:
        values: of tokens, as `GrammarLogitsProcessor` leaves them and vLLM returns them with
            `--logprobs-mode processed_logits`.
        id_: the sampled token.
        num_logprobs: how many to return.
    """
    logprobs = {**values, id_: 0.0 - values[id_]}
    best = sorted(logprobs.items(), key=lambda item: -item[1])
    return logprobs[id_], dict(best[:num_logprobs])


def is_guided(request: Request) -> bool:
    """Return whether the images of a request have classifier-free guidance."""
    scales = request.image.guidance_scale, request.image.image_guidance_scale
    return request.modality != "text" and bool(request.max_images) and scales != (1.0, 1.0)


def guidance_sequences(state: RequestState) -> dict[GuidanceRole, SequenceState]:
    """Return the sequences besides the full context that the next image code takes."""
    guidance = state.guidance
    if guidance is None or state.next_kind is not TokenKind.IMAGE_CODE:
        return {}
    sequences: dict[GuidanceRole, SequenceState | None] = {
        "image_cond": guidance.image_cond,
        "uncond": guidance.uncond,
    }
    return {role: sequence for role, sequence in sequences.items() if sequence is not None}


def num_blocks_of(state: RequestState, block_size: int) -> int:
    """Return the number of KV-cache blocks that a request can come to need, guidance included."""
    return sum(-(-num_slots // block_size) for num_slots in state.reservation)
