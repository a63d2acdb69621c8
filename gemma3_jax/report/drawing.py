"""Charts of matplotlib as SVG that belongs to the page: its text is text, its colours are the page's.

matplotlib draws with colours that stand for roles; each becomes a variable of CSS, so the same drawing reads well in
light and in dark. A chart is drawn twice, for a wide page and for a phone: text keeps its size.
"""

import dataclasses
import io
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence

import matplotlib
import matplotlib.backends.backend_svg
import matplotlib.figure
import matplotlib.ticker

from gemma3_jax.report import markup

NUM_SERIES = 6
DASHES = ("solid", (0, (6, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
ROLES = ("ink", "muted", "rule", "surface", "bad", *(f"series{number}" for number in range(NUM_SERIES)))
# Colours that no palette has, so that each can be found again in what was drawn.
STANDS_FOR = {f"#fe{number:02x}ef": role for number, role in enumerate(ROLES, start=1)}
COLOUR = {role: colour for colour, role in STANDS_FOR.items()}
WIDTHS = {"half": 536, "full": 1096, "narrow": 346}  # pixels
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "gemma3_jax",
    "text.parse_math": False,  # a directory may be called $x_{
    "axes.unicode_minus": False,
    "font.family": "DejaVu Sans",  # it measures; the page names what draws, which is narrower
    "font.size": 12,
    "xtick.labelsize": 12,
    "ytick.labelsize": 12,
    "text.color": COLOUR["ink"],
    "axes.edgecolor": COLOUR["rule"],
    "axes.labelcolor": COLOUR["muted"],
    "axes.labelsize": 12,
    "axes.linewidth": 1,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": COLOUR["rule"],
    "grid.linewidth": 1,
    "xtick.color": COLOUR["rule"],
    "ytick.color": COLOUR["rule"],
    "xtick.labelcolor": COLOUR["muted"],
    "ytick.labelcolor": COLOUR["muted"],
    "ytick.major.size": 0,
    "ytick.major.pad": 6,
    "xtick.major.size": 4,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "figure.facecolor": "none",
    "figure.dpi": 72,
    "savefig.facecolor": "none",
}
SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Key:
    """One entry of a legend: a role of ROLES, and how it is drawn."""

    label: str
    role: str
    dash: object = "solid"
    mark: str = "line"  # or: area, point, cross


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chart:
    """One picture, with the sentence that says what to see in it and the numbers behind it."""

    name: str  # unique on the page
    title: str
    caption: str
    draw: Callable[[matplotlib.figure.Figure, bool], None]  # (figure, whether it is narrow)
    keys: Sequence[Key] = ()
    height: int = 260  # pixels
    narrow_height: int = 0  # 0: as `height`
    is_full: bool = False
    numbers: markup.Markup | None = None


def place(
    figure: matplotlib.figure.Figure,
    *,
    left: int = 62,
    right: int = 14,
    top: int = 12,
    bottom: int = 44,
    between: int = 0,
) -> None:
    """Pixels about the axes, and between them: the same in every chart, so that the axes of a column are in line."""
    width, height = 72 * figure.get_size_inches()
    num = max(len(figure.axes), 1)
    figure.subplots_adjust(
        left=left / width,
        right=1 - right / width,
        top=1 - top / height,
        bottom=bottom / height,
        wspace=between / ((width - left - right - between) / num),
        hspace=between / ((height - top - bottom - between) / num),
    )
    for axes in figure.axes:
        axes.yaxis.set_label_coords((8 - left) / (width - left - right), 0.5)


def ticks(most: int) -> matplotlib.ticker.Locator:
    """At most so many ticks and one, at numbers that are round."""
    return matplotlib.ticker.MaxNLocator(most, steps=[1, 2, 2.5, 5, 10])


def series(number: int) -> dict:
    """Colour and line of the so-many-th run or stage: no two of the first 24 are the same."""
    return {"color": COLOUR[role_of(number)], "linestyle": dash_of(number)}


def role_of(number: int) -> str:
    return f"series{number % NUM_SERIES}"


def dash_of(number: int) -> object:
    return DASHES[(number + number // NUM_SERIES) % len(DASHES)]


def figure(chart: Chart) -> markup.Markup:
    """The chart as a `figure` of HTML, with its legend, its caption, and its numbers folded away."""
    wide = WIDTHS["full" if chart.is_full else "half"]
    heights = {"wide": (wide, chart.height), "narrow": (WIDTHS["narrow"], chart.narrow_height or chart.height)}
    drawings = [
        markup.element("div", svg(chart, name, width, height), class_=f"drawing {name}")
        for name, (width, height) in heights.items()
    ]
    return markup.element(
        "figure",
        markup.element("h3", chart.title),
        markup.element("ul", *legend(chart.keys), class_="keys") if chart.keys else None,
        *drawings,
        markup.element("figcaption", chart.caption),
        markup.details("Numbers", chart.numbers) if chart.numbers else None,
        id=chart.name,
        class_="full" if chart.is_full else "half",
    )


def svg(chart: Chart, variant: str, width: int, height: int) -> markup.Markup:
    """A chart of so many pixels, as an element that a page can hold beside others."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        # The browser has the letters that matplotlib's font lacks: a directory may be called anything.
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        drawn = matplotlib.figure.Figure(figsize=(width / 72, height / 72))
        matplotlib.backends.backend_svg.FigureCanvasSVG(drawn)
        chart.draw(drawn, variant == "narrow")
        out = io.StringIO()
        drawn.savefig(out, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return _adopt(out.getvalue(), f"{chart.name}-{variant}", f"{chart.title}. {chart.caption}")


def _adopt(text: str, prefix: str, label: str) -> markup.Markup:
    """The drawing without what only a file of its own needs, and with ids that begin with `prefix`."""
    root = ET.fromstring(text)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style"):  # a style would be of the whole page
                parent.remove(child)
    _, _, width, _ = root.attrib["viewBox"].split()
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib.update({"role": "img", "aria-label": label, "style": f"max-width:{float(width) * 1.25:.0f}px"})
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', text))
    for node in root.iter():
        if (own := node.attrib.pop("id", None)) in used:
            node.attrib["id"] = f"{prefix}-{own}"
        for name, value in node.attrib.items():
            if name == "d":  # to a tenth of a pixel
                node.attrib[name] = re.sub(r"-?\d+\.\d{2,}", lambda found: f"{float(found[0]):.1f}", value)
            elif name == f"{{{XLINK}}}href":
                node.attrib[name] = value.replace("#", f"#{prefix}-")
            elif name != "aria-label":
                node.attrib[name] = _coloured(value.replace("url(#", f"url(#{prefix}-"))
    ET.register_namespace("", SVG)
    ET.register_namespace("xlink", XLINK)
    return markup.Markup(ET.tostring(root, encoding="unicode"))


def _coloured(value: str) -> str:
    return re.sub("#fe[0-9a-f]{2}ef", lambda found: f"var(--{STANDS_FOR[found[0]]})", value)


def legend(keys: Sequence[Key]) -> list[markup.Markup]:
    """The entries of a list."""
    return [_key(key) for key in keys]


def printable(text: str) -> str:
    """The text in one line, without what XML cannot hold."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def _key(key: Key) -> markup.Markup:
    dashes = "" if key.dash == "solid" else " ".join(map(str, key.dash[1]))
    colour = f"var(--{key.role})"
    marks = {
        "line": (
            "path",
            {"d": "M0 6H22", "style": f"stroke:{colour};stroke-width:2;stroke-dasharray:{dashes or 'none'}"},
        ),
        "area": ("path", {"d": "M4 0H16V12H4Z", "style": f"fill:{colour}"}),
        "point": ("circle", {"cx": "11", "cy": "6", "r": "4", "style": f"fill:{colour}"}),
        "cross": ("path", {"d": "M7 2L15 10M15 2L7 10", "style": f"stroke:{colour};stroke-width:2"}),
    }
    shape, attributes = marks[key.mark]
    drawn = markup.element(
        "svg", markup.element(shape, **attributes), viewBox="0 0 22 12", width="22", height="12", aria_hidden="true"
    )
    return markup.element("li", drawn, markup.element("span", key.label))
