"""Fields of other servers' APIs that would change a response and are not supported.

They are rejected: a request that sets one would otherwise get another response than it expects.
"""

from collections.abc import Iterator, Mapping
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
    "best_of": "only /v1/completions has it",
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
    **dict.fromkeys(("use_beam_search", "length_penalty", "early_stopping"), _BEAMS),
    **dict.fromkeys(("guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs"), _GUIDED),
    **dict.fromkeys(("json_schema", "regex", "ebnf", "grammar"), _GUIDED),
    **dict.fromkeys(("typical_p", "tfs_z", "mirostat", "top_a", "dry_multiplier"), _SAMPLER),
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
    "typical_p": (1,),
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
