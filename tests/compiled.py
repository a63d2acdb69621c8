"""What JAX traces, lowers and compiles meanwhile: nothing, where an earlier program serves again."""

import contextlib
from collections.abc import Iterator

import jax

PREFIX = "/jax/core/compile/"  # of tracing, of lowering, and of compiling, also if the result is read from the cache


@contextlib.contextmanager
def counted() -> Iterator[list[str]]:
    """Yields the list of these events, which grows while the block runs."""
    events: list[str] = []

    def listen(event: str, seconds: float, **_) -> None:
        if event.startswith(PREFIX):
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield events
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
