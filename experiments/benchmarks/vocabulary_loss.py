"""The distillation loss with 256 targets per token against optax with a dense target: time and temporary memory.

    python experiments/benchmarks/vocabulary_loss.py [--tokens=4096] [--embed_dim=1152] [--vocab_size=262144]

Measures the value and its gradients with respect to hidden states and table, from bfloat16 hidden states and a float32
table, on one device. Both losses multiply in bfloat16 and have float32 logits, as in training. The float32 target
[tokens, V] of optax.softmax_cross_entropy is made outside of the measurement. Rounds alternate, and the fastest counts.
Prints a JSON line for each loss and one with their ratios. Needs 18 GB of memory.
"""

import argparse
import json
import platform
import time

import jax
import jax.numpy as jnp
import optax

from gemma3_jax.losses import cross_entropy, soft_targets
from gemma3_jax.model import fsdp


def ours(hidden, table, labels, soft):
    return cross_entropy.cross_entropy_sum(hidden, table, labels, jnp.ones(labels.shape, bool), soft)[0]


def dense(hidden, table, target):
    logits = fsdp.project("BTD,VD->BTV", hidden, table, jnp.float32)
    return jnp.sum(optax.softmax_cross_entropy(logits, target))


def arguments(num_tokens: int, embed_dim: int, vocab_size: int, num_samples: int) -> tuple:
    """Hidden states, table, labels and targets."""
    keys = jax.random.split(jax.random.key(0), 5)
    hidden = jax.random.normal(keys[0], (1, num_tokens, embed_dim), jnp.bfloat16)
    table = jax.random.normal(keys[1], (vocab_size, embed_dim)) * embed_dim**-0.5
    labels = jax.random.randint(keys[2], (1, num_tokens), 0, vocab_size)
    ids = jax.random.randint(keys[3], (1, num_tokens, num_samples), 0, vocab_size)
    weights = jax.nn.softmax(jax.random.normal(keys[4], ids.shape), axis=-1)
    unknown = jnp.zeros(labels.shape)
    soft = soft_targets.SparseTargets(ids, weights, unknown, unknown, unknown, labels)
    return hidden, table, labels, soft


def dense_target(soft: soft_targets.SparseTargets, vocab_size: int) -> jax.Array:
    target = jnp.zeros((*soft.ids.shape[:2], vocab_size))
    row, column = (jax.lax.broadcasted_iota(jnp.int32, soft.ids.shape, dim) for dim in (0, 1))
    return target.at[row, column, soft.ids].add(soft.weights)


def compile_loss(loss, loss_arguments: tuple):
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*loss_arguments).compile()


def timed(program, loss_arguments: tuple) -> tuple[float, float]:
    """Seconds of one call, and its value."""
    started = time.perf_counter()
    value, _ = jax.block_until_ready(program(*loss_arguments))
    return time.perf_counter() - started, value.item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--embed_dim", type=int, default=1152)
    parser.add_argument("--vocab_size", type=int, default=262_144)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    flags = parser.parse_args()
    hidden, table, labels, soft = arguments(flags.tokens, flags.embed_dim, flags.vocab_size, flags.samples)
    target = jax.jit(dense_target, static_argnums=1)(soft, flags.vocab_size)
    inputs = {ours: (hidden, table, labels, soft), dense: (hidden, table, target)}
    programs = {loss: compile_loss(loss, inputs[loss]) for loss in inputs}
    rounds = [{loss: timed(programs[loss], inputs[loss]) for loss in inputs} for _ in range(1 + flags.rounds)]
    seconds = {loss: min(one[loss][0] for one in rounds[1:]) for loss in inputs}
    num_bytes = {loss: programs[loss].memory_analysis().temp_size_in_bytes for loss in inputs}
    for loss in inputs:
        line = {
            "benchmark": "vocabulary_loss",
            "loss": loss.__name__,
            **vars(flags),
            "seconds": round(seconds[loss], 3),
            "peak_temporary_bytes": num_bytes[loss],
            "device": jax.devices()[0].device_kind,
            "machine": platform.machine(),
            "jax": jax.__version__,
        }
        print(json.dumps(line))
    (_, value), (_, dense_value) = rounds[0].values()
    ratios = {
        "benchmark": "vocabulary_loss",
        "ours_is_faster_by": round(seconds[dense] / seconds[ours], 2),
        "ours_is_smaller_by": round(num_bytes[dense] / num_bytes[ours], 2),
        "relative_difference": abs(value - dense_value) / abs(dense_value),
    }
    print(json.dumps(ratios))


if __name__ == "__main__":
    main()
