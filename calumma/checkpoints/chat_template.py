"""Chat template of model folders: transformers and vLLM lay out conversations as we do.

The ids are those of `Model.encode_chat`, except that transformers tokenizes texts side by side as
one (system and user), and reads control tokens in a user's text, unless it is asked to sanitize
them. A prompt is closed by end-of-turn, with `add_generation_prompt` or without; an answer by
end-of-sequence, and `continue_final_message` leaves the last one open.

`ChameleonProcessor`, in transformers and in vLLM, reads no template, and appends end-of-turn to
every prompt: give it this one with `end_of_turn=False`.
"""

from calumma.vocabulary import BOS_NAME, END_TURN_NAME, EOS_NAME, IMAGE_PLACEHOLDER_NAME

CHAT_TEMPLATE_FILE = "chat_template.jinja"

CHAT_TEMPLATE = f"""\
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
{{%- if last.role != 'assistant' and (end_of_turn is not defined or end_of_turn) -%}}
  {{{{- '{END_TURN_NAME}' -}}}}
{{%- endif -%}}
"""
