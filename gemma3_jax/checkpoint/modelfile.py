"""The Modelfile that Ollama reads beside a GGUF file: the chat template, where an answer ends, and the sampling.

Source: ollama/ollama docs/modelfile.md; the sampling of Gemma 3's generation_config.json.
"""

import pathlib

from gemma3_jax.tokenizer import templates, vocabulary

TEMPERATURE, TOP_K, TOP_P = 1.0, 64, 0.95


def path_of(gguf: pathlib.Path) -> pathlib.Path:
    return gguf.with_suffix(".Modelfile")


def content(gguf: pathlib.Path, tokenizer: vocabulary.Tokenizer) -> str:
    """Returns the text for `gguf` in the same directory. Without turns in the tokenizer, the template is the prompt."""
    template, stop = "{{ .Prompt }}", ""
    if tokenizer.has_turns():
        template, stop = templates.GO, f'PARAMETER stop "{vocabulary.END_OF_TURN}"\n'
    return (
        f'FROM ./{gguf.name}\nTEMPLATE """{template}"""\n{stop}'
        f"PARAMETER temperature {TEMPERATURE}\nPARAMETER top_k {TOP_K}\nPARAMETER top_p {TOP_P}\n"
    )
