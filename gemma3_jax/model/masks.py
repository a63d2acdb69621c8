"""Who may look at whom: the one place that says it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


class Places(NamedTuple):
    """Where every token of a packed row stands; all that attention may ask about it.

    A document's tokens are consecutive in the row, and its positions count up by one from 0; the tokens of an image are
    consecutive, too. The banded path relies on the order, and `spans` on all of it.
    """

    segments: Int[Array, "B T"]  # which document of the row; 0 is padding
    positions: Int[Array, "B T"]  # place within the document, from 0
    images: Int[Array, "B T"] | None = None  # which image of the row a soft token belongs to; 0 is text


class Spans(NamedTuple):
    """What every query of a row may read: the tokens from `first` to `last`, both included, counted along the row."""

    first: Int[Array, "..."]
    last: Int[Array, "..."]


def whole_rows(tokens: Int[Array, "B T"]) -> Places:
    """Places of rows that hold one document each and no padding."""
    return Places(segments=jnp.ones_like(tokens), positions=jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape))


def visible(query: Places, key: Places, sliding_window: int | None) -> Bool[Array, "... T S"]:
    """True where a query may read a key: same document, and either not ahead of it or in the same image.

    With a `window`, also fewer than `window` tokens away: the query's own token counts, so a window of W holds W keys.
    Padding is a document of its own, so no query is left without any key. Leading dims of `query` and `key` agree.
    Raises: ValueError if window < 1.
    Source: Gemma 3 report, section 2; window and image rule as in google-deepmind/gemma gm/nn/_modules.py.
    """
    _check(sliding_window)
    lag = query.positions[..., :, None] - key.positions[..., None, :]
    allowed = lag >= 0
    if query.images is not None:
        image = query.images[..., :, None]
        allowed |= (image > 0) & (image == key.images[..., None, :])
    if sliding_window is not None:
        allowed &= jnp.abs(lag) < sliding_window
    return allowed & (query.segments[..., :, None] == key.segments[..., None, :])


def spans(places: Places, sliding_window: int | None) -> Spans:
    """What `visible` says of whole rows, as an interval of the row for each query; padding reads itself alone.

    An interval is enough: what a query may read of its document is what came before it and, if it belongs to an image,
    the rest of that. Raises: ValueError if window < 1.
    """
    _check(sliding_window)
    index = jnp.broadcast_to(jnp.arange(places.segments.shape[1]), places.segments.shape)
    first, last = jnp.maximum(index - places.positions, 0), index
    if places.images is not None:
        differs = [x[:, 1:] != x[:, :-1] for x in (places.images, places.segments)]
        is_end = jnp.pad(differs[0] | differs[1], ((0, 0), (0, 1)), constant_values=True)
        image_end = jax.lax.cummin(jnp.where(is_end, index, index.shape[1]), axis=1, reverse=True)
        last = jnp.where(places.images > 0, image_end, index)
    if sliding_window is not None:
        first, last = jnp.maximum(first, index - sliding_window + 1), jnp.minimum(last, index + sliding_window - 1)
    return Spans(first, last)


def _check(sliding_window: int | None) -> None:
    if sliding_window is not None and sliding_window < 1:
        raise ValueError(f"window is {sliding_window} tokens; it must be >= 1 (config.model.sliding_window)")
