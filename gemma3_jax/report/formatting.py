"""Formats numbers for people: counts, token lengths, percentages, bytes and durations."""

import math

THOUSANDS = ("", "K", "M", "B", "T")


def count(value: int | float) -> str:
    """A count, as 1,234; 65.5K; 1.31M: from 10,000 on three digits and a suffix for the power of a thousand."""
    if not math.isfinite(value):
        return "–"
    if abs(value) < 10_000:
        return f"{value:,.0f}"
    return scaled(value)


def scaled(value: int | float) -> str:
    """Three digits and a suffix, as 65.5K; 1.31M; 12: short enough for an axis."""
    power = 0
    while abs(value) >= 999.5 and power < len(THOUSANDS) - 1:
        value, power = value / 1_000, power + 1
    return f"{value:.3g}{THOUSANDS[power]}"


def tokens(value: int | float) -> str:
    """A context length, as 512; 4K; 128K: its K is 1,024."""
    return f"{value / 1024:.4g}K" if value >= 1024 else f"{value:.4g}"


def number(value: object) -> str:
    """A number with four significant digits, an integer with all of them; text as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "–" if value is None else str(value)
    if not math.isfinite(value):
        return "–"
    if isinstance(value, int) or (value == int(value) and abs(value) < 1e15):
        return f"{int(value):,}"
    return f"{value:.4g}" if abs(value) < 10_000 else count(value)


def decimals(value: int | float, digits: int) -> str:
    """A number with so many digits after the point."""
    return f"{value:.{digits}f}" if math.isfinite(value) else "–"


def percent(fraction: int | float) -> str:
    """A fraction of 1, as 41.0 %."""
    return f"{fraction:.1%}".replace("%", " %") if math.isfinite(fraction) else "–"


def difference(value: float, first: float, digits: int) -> str:
    """What a value is more than the first, as +0.013, with so many digits; under 0 digits as +1.3 %."""
    if digits >= 0:
        return f"{value - first:+.{digits}f}".replace("-", "\N{MINUS SIGN}")
    if not first:
        return "–"
    return f"{value / first - 1:+.1%}".replace("-", "\N{MINUS SIGN}").replace("%", " %")


def size(num_bytes: int | float) -> str:
    """Bytes, as 1.5 GB; 12.6 MB; 196 kB: units are powers of a thousand."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.3g} {unit}" if num_bytes < 1e12 else f"{num_bytes / scale:,.0f} {unit}"
    return f"{num_bytes:.0f} B"


def duration(seconds: int | float) -> str:
    """Seconds, as 8.2 s; 4 min 10 s; 3 h 05 min; 2 d 4 h."""
    if not math.isfinite(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02} min"
    return f"{hours // 24} d {hours % 24} h"
