"""Time and memory of every estimator to draw targets from teacher logits, against jax.lax.top_k alone.

    python experiments/benchmarks/estimators.py [--tokens=64] [--vocab_size=262144] [--num_samples=256] [--repeats=7]

Prints one JSON line for jax.lax.top_k and one per estimator, all measured in this run on this machine: the median and
the fastest of the rounds, and the ratio of the fastest to that of top_k. An estimator's time is that of `targets.draw`:
ids and weights, and the entropy, captured mass, best id and label probability that all of them need. Time grows with
tokens x V; the part that sorts or ranks candidates (at most 64 x M a token), with M. On CPU jax.lax.top_k is a partial
sort; for TPU it compiles to a sort of all V. Temporary bytes do not grow with tokens, as targets are drawn in parts of
them (targets.LOGITS_PER_PART). Takes half a minute on two CPU cores.
"""

import argparse
import functools
import json
import platform
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from gemma3_jax.distill import noise, settings, targets
from gemma3_jax.losses import vocab_parallel


def logits(num_tokens: int, vocab_size: int) -> jax.Array:
    """A heavy tail in random order, with noise: entropy 7.4 nats, 60 % of the mass on 256 of 262,144 ids."""
    random = np.random.default_rng(0)
    scores = random.permutation(-1.1 * np.log(np.arange(1, vocab_size + 1)))
    return jnp.asarray(scores + random.normal(size=(1, num_tokens, vocab_size)), jnp.float32)


def seconds_of(compiled: Callable, arrays: tuple) -> float:
    started = time.perf_counter()
    jax.block_until_ready(compiled(*arrays))
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--vocab_size", type=int, default=262144)
    parser.add_argument("--num_samples", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=7)
    flags = parser.parse_args()
    scores = logits(flags.tokens, flags.vocab_size)
    positions = jnp.arange(flags.tokens, dtype=jnp.int32)[None]
    zeros = jnp.zeros_like(positions)
    programs = {"jax.lax.top_k": lambda scores, *_: jax.lax.top_k(scores, flags.num_samples)}
    for name in settings.ESTIMATORS:
        samples = settings.Samples(estimator=name, num_samples=flags.num_samples)
        shard = vocab_parallel.Shard(flags.vocab_size)
        programs[name] = functools.partial(targets.draw, shard, samples=samples)
    arrays = (scores, zeros, noise.token_words(0, zeros, positions))
    compiled = {name: jax.jit(program).lower(*arrays).compile() for name, program in programs.items()}
    # In rounds, so that other load on the machine affects all programs equally; the first round is not counted.
    rounds = [
        {name: seconds_of(program, arrays) for name, program in compiled.items()} for _ in range(flags.repeats + 1)
    ][1:]
    for name, program in compiled.items():
        seconds = sorted(each[name] for each in rounds)
        line = {
            "benchmark": "estimators",
            "path": name,
            "microseconds_per_token": round(1e6 * seconds[flags.repeats // 2] / flags.tokens, 1),
            "fastest": round(1e6 * seconds[0] / flags.tokens, 1),
            "times_top_k": round(seconds[0] / min(each["jax.lax.top_k"] for each in rounds), 2),
            "peak_temporary_bytes": program.memory_analysis().temp_size_in_bytes,
            "device": jax.devices()[0].device_kind,
            "machine": platform.machine(),
            "jax": jax.__version__,
        }
        print(json.dumps(line))


if __name__ == "__main__":
    main()
