"""HTML that is escaped by construction: text becomes markup in one place alone."""

import html
from collections.abc import Iterable, Sequence

VOID = ("meta", "br")


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def element(tag: str, /, *children: object, **attributes: str) -> Markup:
    """`<tag attribute="...">children</tag>`: whatever is not Markup is escaped. `_` in an attribute stands for `-`.

    A trailing `_` is dropped: `class_`. None as a child is nothing.
    """
    told = "".join(f' {key.rstrip("_").replace("_", "-")}="{html.escape(value)}"' for key, value in attributes.items())
    return Markup(f"<{tag}{told}>" if tag in VOID else f"<{tag}{told}>{join(children)}</{tag}>")


def join(children: Iterable[object], between: str = "") -> Markup:
    return Markup(between.join(_escaped(child) for child in children if child is not None))


def _escaped(child: object) -> str:
    return child if isinstance(child, Markup) else html.escape(str(child).replace("\0", "\N{REPLACEMENT CHARACTER}"))


def table(head: Sequence[object], rows: Iterable[Sequence[object]], *, caption: str = "") -> Markup:
    """A table whose first column names the row; columns that hold numbers stand to the right.

    None in a row is an empty cell.
    """
    rows = [list(row) for row in rows]
    assert all(len(row) == len(head) for row in rows), "a row has as many cells as the head"
    to_right = [any(is_number(row[at]) for row in rows) for at in range(len(head))]

    def cells(kind: str, row: Sequence[object]) -> list[Markup]:
        found = []
        for at, cell in enumerate(row):
            name = "th" if kind == "th" or at == 0 else "td"
            scope = {"scope": "col" if kind == "th" else "row"} if name == "th" else {}
            found.append(element(name, cell, **scope, **({"class_": "number"} if to_right[at] and at else {})))
        return found

    return element(
        "div",
        element(
            "table",
            element("caption", caption) if caption else None,
            element("thead", element("tr", *cells("th", head))),
            element("tbody", *(element("tr", *cells("td", row)) for row in rows)),
        ),
        class_="scroll",
        tabindex="0",
    )


def is_number(cell: object) -> bool:
    """Whether a cell reads as a quantity: it begins with a digit, or is a dash for none."""
    return isinstance(cell, str) and (cell.lstrip("-−+")[:1].isdigit() or cell == "–")


def details(summary: object, *children: object) -> Markup:
    return element("details", element("summary", summary), *children)
