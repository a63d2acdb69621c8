"""What can be told of quantisation: every field with its default."""

import dataclasses

from gemma3_jax.quant import formats


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quant:
    """How weights are rounded, in training and in the files they are exported to."""

    format: str = ""  # of the matrices of attention and MLP; "": nothing is rounded, the embedding neither
    embedding: str = "float16"  # as llama.cpp's files of Gemma have it; "float32" leaves it alone

    def __post_init__(self):
        if self.format not in ("", *formats.MATRICES):
            raise ValueError(f"format is {self.format!r}; it must be '' or one of {', '.join(formats.MATRICES)}")
        if self.embedding not in formats.TABLES:
            raise ValueError(f"embedding is {self.embedding!r}; it must be one of {', '.join(formats.TABLES)}")
