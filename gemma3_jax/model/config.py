"""The shape of each Gemma 3 size: every number in which one model differs from another."""

import dataclasses
import math
import types

MAX_LAYERS = 10_000  # far above any model: names of parameters are listed layer by layer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The shape of a text transformer. No code compares a model's name: what differs is a field here.

    Source: Gemma 3 report, Table 1 and section 2; google-deepmind/gemma gm/nn/_gemma.py.
    """

    num_layers: int  # L, local and global ones together
    embed_dim: int  # D
    mlp_dim: int  # F, of each of the two branches
    num_heads: int  # N
    num_kv_heads: int  # K
    head_dim: int  # H
    sliding_window: int  # keys that a query of a local layer reads, its own included
    query_scale: float  # multiplies the query before the dot product
    rope_scale: float  # global layers only: angles are divided by it
    vocab_size: int = 262_144  # V
    vocab_padding: int = 0  # rows of a Hugging Face table beyond V: never looked up, never predicted
    num_local_per_global: int = 5  # the pattern: that many local layers, then a global one; cut at the last layer
    rope_base_local: float = 1e4  # of the angles of local layers
    rope_base_global: float = 1e6  # of the angles of global layers
    norm_epsilon: float = 1e-6  # added to the mean square in RMSNorm
    # Tokens that the checkpoint was trained for, 0: as a published model of this RoPE scale. No computation reads it,
    # so models that differ in it alone are equal.
    context_length: int = dataclasses.field(default=0, compare=False)

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name in ("vocab_padding", "num_local_per_global", "context_length") else 1
            most = MAX_LAYERS if field.name == "num_layers" else 2**31 - 1
            if field.type is int and (type(value) is not int or not least <= value <= most):
                raise ValueError(f"model.{field.name} is {value!r}; it must be a whole number >= {least} and <= {most}")
            if field.type is float and (type(value) not in (int, float) or not 0 < value < math.inf):
                raise ValueError(f"model.{field.name} is {value!r}; it must be a finite number > 0")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"model.num_heads is {self.num_heads}, model.num_kv_heads {self.num_kv_heads}; "
                "the first must be a multiple of the second"
            )
        if self.head_dim % 2:
            raise ValueError(f"model.head_dim is {self.head_dim}; it must be even, as RoPE rotates halves")

    @property
    def period(self) -> int:
        """Layers in one period of the pattern."""
        return self.num_local_per_global + 1

    @property
    def num_periods(self) -> int:
        """Complete periods of the pattern."""
        return self.num_layers // self.period

    @property
    def num_remaining(self) -> int:
        """Local layers after the last complete period."""
        return self.num_layers % self.period

    def is_global(self, layer: int) -> bool:
        """Whether layer `layer`, counted from 0, attends to the whole document."""
        return layer % self.period == self.num_local_per_global


def _gemma3(**fields) -> Config:
    fields.setdefault("query_scale", fields["head_dim"] ** -0.5)
    return Config(**fields)


# 27B scales queries by (embed_dim / num_heads) ** -0.5, all others by head_dim ** -0.5.
SIZES = types.MappingProxyType(
    {
        "270m": _gemma3(
            num_layers=18, embed_dim=640, mlp_dim=2048, num_heads=4, num_kv_heads=1, head_dim=256,
            sliding_window=512, rope_scale=1.0,
        ),
        "1b": _gemma3(
            num_layers=26, embed_dim=1152, mlp_dim=6912, num_heads=4, num_kv_heads=1, head_dim=256,
            sliding_window=512, rope_scale=1.0,
        ),
        "4b": _gemma3(
            num_layers=34, embed_dim=2560, mlp_dim=10240, num_heads=8, num_kv_heads=4, head_dim=256,
            sliding_window=1024, rope_scale=8.0, vocab_padding=64,
        ),
        "12b": _gemma3(
            num_layers=48, embed_dim=3840, mlp_dim=15360, num_heads=16, num_kv_heads=8, head_dim=256,
            sliding_window=1024, rope_scale=8.0, vocab_padding=64,
        ),
        "27b": _gemma3(
            num_layers=62, embed_dim=5376, mlp_dim=21504, num_heads=32, num_kv_heads=16, head_dim=128,
            sliding_window=1024, rope_scale=8.0, vocab_padding=64, query_scale=168**-0.5,
        ),
    }
)  # fmt: skip
