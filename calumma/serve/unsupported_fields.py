"""Fields of other servers' APIs that would change a response and are not supported, and mistyped names.

They are rejected: a request that sets one would otherwise get another response than it expects.
"""

import difflib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

_GUIDED = "outputs are constrained by the image grammar alone"
_BEAMS = "outputs are sampled, not searched"
_SAMPLER = "use temperature, top_k, top_p and min_p"
_TEMPLATE = "turns are encoded as in training"
_IMAGE = "images are PNG files of the model's own size and style"
_UNSUPPORTED_FIELDS = {
    "tools": "this model calls no tools",
    "functions": "this model calls no functions",
    "function_call": "this model calls no functions",
    "tool_choice": "this model calls no tools",
    "audio": "this model generates no audio",
    "web_search_options": "this model searches nothing",
    "reasoning_effort": "this model does not reason before it answers",
    "verbosity": "use max_tokens instead",
    "logit_bias": "tokens cannot be biased one by one",
    "suffix": "text cannot be inserted before a suffix",
    "echo": "only /v1/completions has it",
    "frequency_penalty": "use repetition_penalty instead",
    "presence_penalty": "use repetition_penalty instead",
    "prediction": "predicted outputs are not used",
    "top_logprobs": "/v1/completions has the number in logprobs",
    "max_completion_tokens": "use max_tokens instead",
    "bad_words": "words cannot be excluded",
    "allowed_token_ids": "tokens cannot be selected one by one",
    "prompt_logprobs": "/v1/completions has them with echo and logprobs",
    "logits_processors": "a request cannot bring code",
    "truncate_prompt_tokens": "prompts are never truncated; shorten it",
    "include_stop_str_in_output": "stop strings are left out of the text",
    "skip_special_tokens": "text has no special tokens; use return_token_ids",
    "spaces_between_special_tokens": "text has no special tokens; use return_token_ids",
    "return_tokens_as_token_ids": "use return_token_ids instead",
    "add_special_tokens": "send the prompt as token ids instead",
    "prompt_embeds": "send text, images or token ids",
    "extra_body": "put its fields into the body itself",
    "detokenize": "outputs are always decoded; use return_token_ids",
    "do_sample": "use temperature 0 instead",
    "min_new_tokens": "use min_tokens instead",
    **dict.fromkeys(("max_new_tokens", "n_predict", "num_predict"), "use max_tokens instead"),
    "repeat_penalty": "use repetition_penalty instead",
    "no_repeat_ngram_size": "use repetition_penalty instead",
    "repetition_detection": "use repetition_penalty instead",
    "stop_regex": "use stop instead",
    "no_stop_trim": "stop strings are left out of the text",
    "lora_path": "name the adapter in model",
    "cfg_scale": "use guidance_scale instead",
    "negative_prompt": "guidance is by the prompt alone",
    **dict.fromkeys(("width", "height", "aspect_ratio"), "use size instead"),
    **dict.fromkeys(("image", "mask", "init_image"), "images and masks are files of /v1/images/edits"),
    **dict.fromkeys(("steps", "num_inference_steps", "strength"), "image tokens are sampled, not denoised"),
    **dict.fromkeys(("custom_logit_processor", "custom_params", "vllm_xargs"), "a request cannot bring code"),
    **dict.fromkeys(("mm_processor_kwargs", "media_io_kwargs"), "images are prepared as in training"),
    **dict.fromkeys(("use_beam_search", "length_penalty", "early_stopping", "num_beams"), _BEAMS),
    **dict.fromkeys(("guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs"), _GUIDED),
    **dict.fromkeys(("json_schema", "regex", "ebnf", "grammar", "structural_tag"), _GUIDED),
    **dict.fromkeys(("typical_p", "tfs_z", "tfs", "mirostat", "top_a", "dry_multiplier", "penalty_alpha"), _SAMPLER),
    **dict.fromkeys(("xtc_probability", "dynatemp_range"), _SAMPLER),
    **dict.fromkeys(("chat_template", "chat_template_kwargs", "documents"), _TEMPLATE),
    **dict.fromkeys(("add_generation_prompt", "continue_final_message"), _TEMPLATE),
    **dict.fromkeys(("background", "quality", "style", "output_compression"), _IMAGE),
}
"""Fields of OpenAI's API and of vLLM's that would change a response and are not supported."""

_NEUTRAL_VALUES: dict[str, tuple[Any, ...]] = {
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "prompt_logprobs": (),
    "length_penalty": (1,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "add_special_tokens": (True,),
    "add_generation_prompt": (True,),
    "detokenize": (True,),
    "do_sample": (True,),
    "num_beams": (1,),
    "repeat_penalty": (1,),
    "typical_p": (1,),
    "tfs": (1,),
    "tfs_z": (1,),
    "background": ("auto", "opaque"),
    "quality": ("auto", "standard"),
    "output_compression": (100,),
}
"""Values that change nothing, where they are not the empty ones."""


def unsupported_fields(body: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the unsupported fields of a body with the reason, unless their value changes nothing.

    >>> list(unsupported_fields({"tools": [], "tool_choice": "none", "echo": True}))
    [('echo', 'only /v1/completions has it')]
    """
    for name, reason in _UNSUPPORTED_FIELDS.items():
        value = body.get(name)
        is_neutral = not value
        if name in _NEUTRAL_VALUES:
            is_neutral = value is None or value in _NEUTRAL_VALUES[name]
        if not is_neutral:
            yield name, reason


_HARMLESS_FIELDS = {
    *("metadata", "moderation", "parallel_tool_calls", "priority", "request_id", "cache_salt", "response_format"),
    *("safety_identifier", "service_tier", "session_params", "store", "user", "id", "models", "provider"),
    *("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"),
}
"""Fields of other APIs that change no response; a name similar to one of our fields is not mistyped then."""

_UNSUPPORTED_MESSAGE_FIELDS = {
    "tool_calls": "this model calls no tools",
    "function_call": "this model calls no functions",
    "audio": "this model reads no audio",
    "refusal": "send the refusal as content",
}


def unsupported_message_fields(message: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the fields of a message that are not empty and not supported, with the reason."""
    for name, reason in _UNSUPPORTED_MESSAGE_FIELDS.items():
        if message.get(name):
            yield name, reason
    if message.get("images") and not message.get("content_parts"):
        yield "images", "send each image as an image_url part of content"


def mistyped_fields(body: Mapping[str, Any], known: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield the unknown fields of a body that are close to a known one, with its name.

    >>> list(mistyped_fields({"temprature": 0, "user": "me"}, ["temperature"]))
    [('temprature', 'temperature')]
    """
    ignored = {*known, *_UNSUPPORTED_FIELDS, *_HARMLESS_FIELDS}
    for name in body:
        close = [] if name in ignored else difflib.get_close_matches(name, known, n=1, cutoff=0.8)
        if close:
            yield name, close[0]
