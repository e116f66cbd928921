"""Chat templates of model folders: transformers and vLLM lay out conversations as we do.

The ids are those of `Model.encode_chat`, except that transformers tokenizes texts side by side as
one (system and user), and reads control tokens in a user's text, unless it is asked to sanitize
them. Answers are closed by end-of-sequence; `continue_final_message` leaves the last one open.
"""

from __future__ import annotations

from calumma.vocabulary import BOS_NAME, END_TURN_NAME, EOS_NAME, IMAGE_PLACEHOLDER_NAME

PROCESSOR_TEMPLATE_FILE = "chat_template.json"
"""Template of the processor alone: `chat_template.jinja` would be the tokenizer's as well."""

_TEMPLATE = f"""\
{{%- set last = namespace(role='') -%}}
{BOS_NAME}
{{%- for message in messages -%}}
  {{%- if message['role'] not in ['system', 'developer', 'user', 'assistant'] -%}}
    {{{{- raise_exception('the role ' ~ message['role'] ~ ' is unknown; expected system, user or '
      ~ 'assistant.') -}}}}
  {{%- endif -%}}
  {{%- if message['role'] == 'assistant' -%}}
    {{%- if last.role in ['', 'assistant'] -%}}
      {{{{- raise_exception('an answer has no prompt; expected a user turn before it.') -}}}}
    {{%- endif -%}}
    {{{{- '{END_TURN_NAME}' -}}}}
  {{%- endif -%}}
  {{%- if message['content'] is string -%}}
    {{{{- message['content'] -}}}}
  {{%- else -%}}
    {{%- for part in message['content'] or [] -%}}
      {{%- if part is string -%}}
        {{{{- part -}}}}
      {{%- elif part['type'] in ['text', 'special_token'] -%}}
        {{{{- part['text'] -}}}}
      {{%- elif part['type'] in ['image', 'image_url'] -%}}
        {{{{- '{IMAGE_PLACEHOLDER_NAME}' -}}}}
      {{%- else -%}}
        {{{{- raise_exception('a part of type ' ~ part['type'] ~ '; expected text or image.') -}}}}
      {{%- endif -%}}
    {{%- endfor -%}}
  {{%- endif -%}}
  {{%- if message['role'] == 'assistant' -%}}
    {{{{- '{EOS_NAME}' -}}}}
  {{%- endif -%}}
  {{%- set last.role = message['role'] -%}}
{{%- endfor -%}}
"""

TOKENIZER_TEMPLATE = _TEMPLATE + (
    f"{{%- if last.role != 'assistant' -%}}{{{{- '{END_TURN_NAME}' -}}}}{{%- endif -%}}"
)
"""A prompt is always closed by end-of-turn, with `add_generation_prompt` or without."""

PROCESSOR_TEMPLATE = _TEMPLATE
"""`ChameleonProcessor` itself appends end-of-turn."""
