"""The settings of low-rank adapters (LoRA): every field with its default. Imports nothing heavy.

Source: Hu et al., 2021, LoRA; Kalajdzievski, 2023, rsLoRA; Dettmers et al., 2023, QLoRA.
"""

import dataclasses
import math
import re

from gemma3_jax.quant import settings as quant_settings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lora:
    """Adapters: where a matrix is multiplied with, `alpha / rank` times the product of two factors is added to it.

    The factors alone train, in every stage of a run. The weights of config.init_from stay as they are.
    """

    rank: int = 0  # of the product of the factors; 0: no adapters, all parameters train
    alpha: float = 32.0  # the product is multiplied by alpha / rank
    # Regular expressions, searched in the path a/b/c of each matrix of attention and MLP: mlp/gate, global_layer/, ...
    targets: tuple[str, ...] = ("attention/", "mlp/")
    rslora: bool = False  # multiply by alpha / sqrt(rank) instead
    init_from: str = ""  # a directory of PEFT, or a run with adapters, to begin with; empty: fresh factors
    base_format: str = ""  # that the frozen matrices are packed in (QLoRA): int4, q4_0, sfp8, q8_0; "": not packed

    def __post_init__(self):
        if self.rank < 0:
            raise ValueError(f"rank is {self.rank}; it must be at least 1, or 0 for no adapters")
        if not 0 < self.alpha < math.inf:
            raise ValueError(f"alpha is {self.alpha}; it must be a finite number over 0")
        if self.base_format not in ("", *quant_settings.MATRICES):
            allowed = ", ".join(quant_settings.MATRICES)
            raise ValueError(f"base_format is {self.base_format!r}; it must be '' or one of {allowed}")
        for name in ("base_format", "init_from"):
            if not self.rank and getattr(self, name):
                raise ValueError(f"{name} is {getattr(self, name)!r}, but rank is 0, which is no adapters; set it, too")
        if not self.targets:
            raise ValueError("targets is empty; name the matrices that get adapters, as ('attention/', 'mlp/')")
        for pattern in self.targets:
            try:
                re.compile(pattern)
            except (re.error, RecursionError, OverflowError) as error:
                raise ValueError(f"targets has {pattern!r}, which is not a regular expression: {error}") from error

    @property
    def scale(self) -> float:
        """What the product of the factors is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    @property
    def name(self) -> str:
        """What the factors mean, as text; how they began is not in it."""
        if not self.rank:
            return "none"
        text = f"rank {self.rank}, alpha {self.alpha:g}{', rslora' * self.rslora}, {' '.join(self.targets)}"
        return f"{text}, base in {self.base_format}" if self.base_format else text
