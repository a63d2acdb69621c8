"""Which keys a query may attend to: the one place that defines it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


class TokenLayout(NamedTuple):
    """Where every token of a packed row belongs: all that attention reads of it.

    The tokens of a document are consecutive in the row, and its positions count up by one from 0; the tokens of an
    image are consecutive too. The banded path relies on this order, and `spans` on all of it.
    """

    segments: Int[Array, "B T"]  # the document's number in the row; 0 is padding
    positions: Int[Array, "B T"]  # within the document, from 0
    images: Int[Array, "B T"] | None = None  # the number in the row of a soft token's image; 0 is text


class Spans(NamedTuple):
    """The keys of every query of a row: indices in the row from `first` to `last`, both included."""

    first: Int[Array, "..."]
    last: Int[Array, "..."]


def whole_rows(tokens: Int[Array, "B T"]) -> TokenLayout:
    """The layout of rows that hold one document each and no padding."""
    return TokenLayout(
        segments=jnp.ones_like(tokens), positions=jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    )


def visible(query: TokenLayout, key: TokenLayout, sliding_window: int | None) -> Bool[Array, "... T S"]:
    """True where a query may attend to a key: same document, and either not ahead of it or in the same image.

    With a `sliding_window` of W, also fewer than W tokens away: the window holds W keys, the query's own token
    included. Padding is a document of its own, so every query has a key. Leading dims of `query` and `key` agree.
    Raises: ValueError if sliding_window < 1.
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


def spans(layout: TokenLayout, sliding_window: int | None) -> Spans:
    """`visible` within one row, as an interval for each query; padding attends to itself alone.

    One interval is enough: the visible tokens are those before the query in its document and, for a token of an image,
    the rest of that image.
    Raises: ValueError if sliding_window < 1.
    """
    _check(sliding_window)
    index = jnp.broadcast_to(jnp.arange(layout.segments.shape[1]), layout.segments.shape)
    first, last = jnp.maximum(index - layout.positions, 0), index
    if layout.images is not None:
        differs = [x[:, 1:] != x[:, :-1] for x in (layout.images, layout.segments)]
        is_end = jnp.pad(differs[0] | differs[1], ((0, 0), (0, 1)), constant_values=True)
        image_end = jax.lax.cummin(jnp.where(is_end, index, index.shape[1]), axis=1, reverse=True)
        last = jnp.where(layout.images > 0, image_end, index)
    if sliding_window is not None:
        first, last = jnp.maximum(first, index - sliding_window + 1), jnp.minimum(last, index + sliding_window - 1)
    return Spans(first, last)


def _check(sliding_window: int | None) -> None:
    if sliding_window is not None and sliding_window < 1:
        raise ValueError(f"sliding_window is {sliding_window} tokens; it must be >= 1 (config.model.sliding_window)")
