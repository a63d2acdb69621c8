"""The settings of quantization: every field with its default."""

import dataclasses

MATRICES = ("int4", "q4_0", "sfp8", "q8_0")  # formats of matrices, see quant/formats.py
TABLES = ("float32", "bfloat16", "float16", "q8_0")  # formats of the embedding table


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quant:
    """The formats that weights are rounded to, in training and in exported files."""

    format: str = ""  # of the matrices of attention and MLP; "": no weight is rounded
    embedding: str = "float16"  # as in llama.cpp's files of Gemma; "float32" leaves it unrounded

    def __post_init__(self):
        if self.format not in ("", *MATRICES):
            raise ValueError(f"format is {self.format!r}; it must be '' or one of {', '.join(MATRICES)}")
        if self.embedding not in TABLES:
            raise ValueError(f"embedding is {self.embedding!r}; it must be one of {', '.join(TABLES)}")
        if not self.format and self.embedding != "float16":
            raise ValueError(f"embedding is {self.embedding!r}, but format is ''; name the format of the matrices, too")

    @property
    def name(self) -> str:
        """Both formats, as text."""
        return f"{self.format}, embedding {self.embedding}" if self.format else "none"
