"""The chat format of `chat`, in the template languages of other programs.

The text of a system turn goes before that of the first user turn with an empty line between, and turns alternate.
Source: Gemma 3 report, section 3; the chat template of google/gemma-3-1b-it.
"""

# For Transformers and llama.cpp. Like Gemma 3's template, and unlike `chat`, it strips the text of a turn.
JINJA = """\
{{- bos_token -}}
{%- if messages[0]['role'] == 'system' -%}
    {%- set content = messages[0]['content'] -%}
    {%- set before = (content if content is string else content[0]['text']) + '\\n\\n' -%}
    {%- set turns = messages[1:] -%}
{%- else -%}
    {%- set before = '' -%}
    {%- set turns = messages -%}
{%- endif -%}
{%- for turn in turns -%}
    {%- if (turn['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{- raise_exception('Turns must alternate user/assistant/user/assistant/...') -}}
    {%- endif -%}
    {{- '<start_of_turn>' + ('model' if turn['role'] == 'assistant' else turn['role']) + '\\n' -}}
    {%- if loop.first -%}
        {{- before -}}
    {%- endif -%}
    {%- if turn['content'] is string -%}
        {{- turn['content'] | trim -}}
    {%- elif turn['content'] is iterable -%}
        {%- for part in turn['content'] -%}
            {%- if part['type'] == 'image' -%}
                {{- '<start_of_image>' -}}
            {%- elif part['type'] == 'text' -%}
                {{- part['text'] | trim -}}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{- raise_exception('The content of a turn must be text or a list of parts') -}}
    {%- endif -%}
    {{- '<end_of_turn>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<start_of_turn>model\\n' -}}
{%- endif -%}
"""

# For Ollama, which adds BOS, gathers all system turns in .System, and generates after the last turn.
GO = """\
{{- $system := .System }}
{{- range $number, $turn := .Messages }}
{{- $is_last := eq (len (slice $.Messages $number)) 1 }}
{{- if eq .Role "user" }}<start_of_turn>user
{{ if $system }}{{ $system }}

{{ $system = "" }}{{ end }}{{ .Content }}<end_of_turn>
{{ if $is_last }}<start_of_turn>model
{{ end }}
{{- else if eq .Role "assistant" }}<start_of_turn>model
{{ .Content }}{{ if not $is_last }}<end_of_turn>
{{ end }}
{{- end }}
{{- end }}"""
