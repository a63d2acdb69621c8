"""The log-probability of each token after the first, to compare models and programs by."""

import collections
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gemma3_jax import console
from gemma3_jax.losses import cross_entropy, vocab_parallel
from gemma3_jax.model import config, execution, masks, parameters

MAX_BATCH_TOKENS = 8192


def check(token_lists: object, vocab_size: int, file: str) -> None:
    """Raises: ValueError naming `file` and the list, unless it is a list of non-empty lists of ids below V."""
    if not isinstance(token_lists, list) or not all(isinstance(tokens, list) for tokens in token_lists):
        raise ValueError(f"{file} must have a JSON list of lists of token ids, as [[2, 9259], [2, 106]]")
    for number, tokens in enumerate(token_lists):
        if not tokens:
            raise ValueError(f"{file}: list {number} is empty; it must have at least one token id")
        for token in tokens:
            if type(token) is not int or not 0 <= token < vocab_size:
                raise ValueError(
                    f"{file}: list {number} has token id {token!r:.40}; it must be an integer below {vocab_size}"
                )


def next_token_logprobs(
    model: config.Config, execute: execution.Execution, params: dict, tokens: Int[Array, "B T"]
) -> Float[Array, "B T"]:
    """Log-probability (nats) of tokens[:, t + 1] after tokens[:, :t + 1]. The last column is meaningless."""
    transformer = parameters.bind(model, params)
    # Sequences are padded at their ends, where no earlier token attends, so each is one document.
    hidden = transformer(tokens, masks.whole_rows(tokens), execute=execute)
    return cross_entropy.label_log_probs(hidden, params["embedder"]["table"], jnp.roll(tokens, -1, axis=1))


def score(
    model: config.Config,
    params: dict,
    token_lists: Sequence[Sequence[int]],
    *,
    mesh: jax.sharding.Mesh,
    execute: execution.Execution,
    progress: Callable[[int], None] = console.ignore,
) -> list[list[float]]:
    """For every list, the log-probability (nats) of each token after its first, in order.

    Lists of similar length share a batch, padded to a power of two, so that few shapes are compiled.
    """
    compiled = _compiled(model, execute, mesh)
    by_length = collections.defaultdict(list)
    for number, tokens in enumerate(token_lists):
        by_length[_padded_length(len(tokens), mesh.shape["seq"])].append(number)
    results: list[list[float]] = [[]] * len(token_lists)
    batch_multiple = mesh.shape["replica"] * mesh.shape["data"]
    for num_tokens, numbers in sorted(by_length.items()):
        # A chunk has at least one token of every sequence.
        limit = min(
            MAX_BATCH_TOKENS // num_tokens, vocab_parallel.LOGITS_PER_CHUNK // model.vocab_size * batch_multiple
        )
        num_rows = max(1, min(len(numbers), limit))
        batch_size = -(-(1 << (num_rows.bit_length() - 1)) // batch_multiple) * batch_multiple
        for start in range(0, len(numbers), batch_size):
            batch = numbers[start : start + batch_size]
            tokens = np.zeros((batch_size, num_tokens), np.int32)
            for row, number in enumerate(batch):
                tokens[row, : len(token_lists[number])] = token_lists[number]
            with jax.set_mesh(mesh):
                logprobs = np.asarray(compiled(params, tokens))
            for row, number in enumerate(batch):
                results[number] = logprobs[row, : len(token_lists[number]) - 1].tolist()
                progress(len(token_lists[number]))
    return results


@functools.cache  # `score` is called many times
def _compiled(model: config.Config, execute: execution.Execution, mesh: jax.sharding.Mesh) -> Callable:
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())  # every host reads them
    return jax.jit(functools.partial(next_token_logprobs, model, execute), out_shardings=replicated)


def _padded_length(num_tokens: int, multiple: int) -> int:
    """The next power of two, at least 16, rounded up to a multiple of the `seq` axis."""
    length = max(16, 1 << (num_tokens - 1).bit_length())
    return -(-length // multiple) * multiple
