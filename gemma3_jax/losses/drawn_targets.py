"""Targets that are drawn from a teacher's logits chunk by chunk, as the student's are scored against them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32

from gemma3_jax.losses import chunk_targets, vocab_parallel
from gemma3_jax.model import matmul


class DrawnTargets(NamedTuple):
    """What a chunk's weights are drawn from: the factors of the teacher's logits, and two random words of each token.

    No array of [B, T, V] is stored, nor one of samples.
    """

    hidden: Float[Array, "B T _"]
    table: Float[Array, "V _"] | None  # None for the part that has a dim of tokens
    words: tuple[UInt32[Array, "B T"], UInt32[Array, "B T"]]
    # draw(shard, logits, labels, words) -> soft_targets.DrawnWeights
    draw: jax.tree_util.Partial  # of a function alone: no leaf

    def of_chunk(
        self, table: Float[Array, "V _"], labels: Int[Array, "B T"], shard: vocab_parallel.Shard
    ) -> chunk_targets.ChunkTargets:
        """The targets of a chunk, from the shard's part of the table."""
        with jax.named_scope("teacher"):
            logits = matmul.einsum("BTD,VD->BTV", self.hidden, table, jnp.float32)
        drawn = self.draw(shard, logits, labels, self.words)
        return chunk_targets.of_drawn(drawn, labels, shard)
