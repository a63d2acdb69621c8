"""What can be told of quantisation: every field with its default."""

import dataclasses

MATRICES = ("int4", "q4_0", "sfp8", "q8_0")  # what matrices can be stored as, by quant/formats.py
TABLES = ("float32", "bfloat16", "float16", "q8_0")  # what the embedding can be


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quant:
    """How weights are rounded, in training and in the files they are exported to."""

    format: str = ""  # of the matrices of attention and MLP; "": nothing is rounded, the embedding neither
    embedding: str = "float16"  # as llama.cpp's files of Gemma have it; "float32" leaves it alone

    def __post_init__(self):
        if self.format not in ("", *MATRICES):
            raise ValueError(f"format is {self.format!r}; it must be '' or one of {', '.join(MATRICES)}")
        if self.embedding not in TABLES:
            raise ValueError(f"embedding is {self.embedding!r}; it must be one of {', '.join(TABLES)}")
        if not self.format and self.embedding != "float16":
            raise ValueError(f"embedding is {self.embedding!r}, but format is ''; name the format of the matrices, too")

    @property
    def name(self) -> str:
        """Of both, for people."""
        return f"{self.format}, embedding {self.embedding}" if self.format else "none"
