"""How a long task reports to whoever runs it: lines of text, rows of metrics, progress bars."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping

# (label, total, unit=...) -> a context manager whose value has update(amount), as a tqdm bar has
Bar = Callable[..., contextlib.AbstractContextManager]


def ignore(*_, **__) -> None:
    """Reports nothing."""


def never() -> bool:
    """Nobody interrupts."""
    return False


class _SilentProgress:
    update = staticmethod(ignore)
    set_postfix_str = staticmethod(ignore)


def silent_bar(*_, **__) -> contextlib.AbstractContextManager:
    """Returns a progress bar that shows nothing."""
    return contextlib.nullcontext(_SilentProgress())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Console:
    """Where a task reports."""

    say: Callable[..., None] = ignore  # lines of text
    # (stage and which it is, its number of steps, a row of metrics, seconds that later stages take)
    show: Callable[[str, int, Mapping, float], None] = ignore
    bar: Bar = silent_bar


SILENT = Console()  # of every process but the first
