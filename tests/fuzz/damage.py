"""Damaged copies of files: seeded, and of the kinds that disks, editors, other writers and ill will make."""

import json
import random

# Values that stand where others were: of another type, out of range, hostile, or too many.
VALUES = (
    None, True, -1, 0, 1, 2**31, 2**63, 10**30, -(10**400), 0.5, -1.5, float("nan"), float("inf"), "", "x", "../x",
    "/etc", "~/x", "\x1b[31m", "\ud800", "é" * 50, [], {}, [None], {"a": 1}, [[[]]], "x" * 5_000,
)  # fmt: skip
DEEP = b"[" * 20_000 + b"]" * 20_000


def of_bytes(draw: random.Random, content: bytes, *, head: int | None = None) -> bytes:
    """Damages bytes, most often among the first `head`, where a format says what follows."""
    size = min(len(content), head) if head and draw.random() < 0.7 else len(content)
    start = draw.randrange(size) if size else 0
    length = min(draw.choice((1, 1, 2, 4, 8, 64, 4_096)), len(content) - start)
    end = start + length
    noise = draw.randbytes(length)
    return draw.choice(
        (
            lambda: content[:start],  # cut short
            lambda: content[:start] + noise + content[end:],  # overwritten
            lambda: content[:start] + bytes(length) + content[end:],
            lambda: content[:start] + b"\xff" * length + content[end:],
            lambda: content[:start] + noise + content[start:],  # inserted
            lambda: content[:start] + content[end:],  # left out
            lambda: content + noise,
            lambda: content[end:] + content[:end],
            lambda: b"",
            lambda: (
                content[:start] + bytes([content[start] ^ 1 << draw.randrange(8)]) + content[start + 1 :]
                if content
                else b"\0"
            ),
        )
    )()


def of_text(draw: random.Random, content: bytes) -> bytes:
    """Damages text: lines, encodings, controls."""
    lines = content.splitlines(keepends=True) or [b""]
    at = draw.randrange(len(lines))
    return draw.choice(
        (
            lambda: of_bytes(draw, content),
            lambda: b"\xef\xbb\xbf" + content,
            lambda: content.decode(errors="replace").encode("utf-16"),
            lambda: b"".join(lines[:at] + [b"\xff\xfe\x00\n"] + lines[at:]),
            lambda: b"".join(lines[:at] + [b"\x1b]0;x\x07\x1b[2J\n"] + lines[at:]),
            lambda: b"".join(lines[:at] + [b"\n\n   \n"] + lines[at:]),
            lambda: b"".join(lines[:at] + [DEEP, b"\n"] + lines[at:]),
            lambda: b"".join(lines[:at] + lines[at + 1 :]),
            lambda: b"".join(lines[:at] + [lines[at]] * 3 + lines[at:]),
            lambda: content.replace(b"\n", b"\r"),
            lambda: content.replace(b'"', b"'"),
        )
    )()


def of_json(draw: random.Random, content: bytes) -> bytes:
    """Damages a JSON document: most often one value or key of it, else its text."""
    if draw.random() < 0.2:
        return of_text(draw, content)
    document = of_value(draw, json.loads(content))
    return json.dumps(document).encode("utf-8", "surrogatepass")


def of_json_lines(draw: random.Random, content: bytes) -> bytes:
    """Damages one row of JSON lines, or their text."""
    lines = content.splitlines(keepends=True)
    if not lines or draw.random() < 0.2:
        return of_text(draw, content)
    at = draw.randrange(len(lines))
    return b"".join(lines[:at] + [of_json(draw, lines[at]).replace(b"\n", b" ") + b"\n"] + lines[at + 1 :])


def of_value(draw: random.Random, value: object) -> object:
    """Returns a copy of nested dicts and lists with one value replaced, or one key or entry too few or too many."""
    inner = sorted(value, key=str) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    if not inner or draw.random() < 0.1:
        return draw.choice((lambda: draw.choice(VALUES), lambda: [value], lambda: {"x": value}))()
    key, copy = draw.choice(inner), value.copy()
    action = draw.random()
    if action < 0.15:
        del copy[key]
    elif action < 0.25 and isinstance(value, dict):
        copy[draw.choice(("", "x", "../x", f"{key}x", "\x1b[31m"))] = copy.pop(key)
    elif action < 0.35:
        copy = {**value, "unknown": draw.choice(VALUES)} if isinstance(value, dict) else [*value, draw.choice(VALUES)]
    else:
        copy[key] = of_value(draw, value[key])
    return copy
