"""Renders charts with matplotlib as SVG that becomes part of the page: text stays text, colors are the page's.

Each chart is drawn twice, for a wide page and for a phone, so that text keeps its size.
"""

import dataclasses
import io
import re
import warnings
import xml.etree.ElementTree as ET

import matplotlib
import matplotlib.backends.backend_svg
import matplotlib.figure

from gemma3_jax.report import chart

ROLE_OF = {color: role for role, color in chart.COLORS.items()}
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "gemma3_jax",
    "text.parse_math": False,  # a directory may be named $x_{
    "axes.unicode_minus": False,
    "font.family": "DejaVu Sans",  # for measuring; the page draws with its own, narrower font
    "font.size": 12,
    "xtick.labelsize": 12,
    "ytick.labelsize": 12,
    "text.color": chart.COLORS["ink"],
    "axes.edgecolor": chart.COLORS["rule"],
    "axes.labelcolor": chart.COLORS["muted"],
    "axes.labelsize": 12,
    "axes.linewidth": 1,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": chart.COLORS["rule"],
    "grid.linewidth": 1,
    "xtick.color": chart.COLORS["rule"],
    "ytick.color": chart.COLORS["rule"],
    "xtick.labelcolor": chart.COLORS["muted"],
    "ytick.labelcolor": chart.COLORS["muted"],
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


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A chart as SVG, for one width of the page."""

    variant: str  # wide or narrow
    svg: str


def drawings(subject: chart.Chart) -> list[Drawing]:
    """Both variants of a chart; the style sheet shows the one that fits the screen."""
    wide = chart.WIDTHS["full" if subject.is_full else "half"]
    sizes = {
        "wide": (wide, subject.height),
        "narrow": (chart.WIDTHS["narrow"], subject.narrow_height or subject.height),
    }
    return [Drawing(variant, render(subject, variant, *size)) for variant, size in sizes.items()]


def render(subject: chart.Chart, variant: str, width: int, height: int) -> str:
    """A chart of this many pixels, as an element that shares a page with others."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        # The browser has letters that matplotlib's font lacks: a directory may have any name.
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure = matplotlib.figure.Figure(figsize=(width / 72, height / 72))
        matplotlib.backends.backend_svg.FigureCanvasSVG(figure)
        subject.draw(figure, variant == "narrow")
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return _embeddable(out.getvalue(), f"{subject.name}-{variant}", f"{subject.title}. {subject.caption}")


def _embeddable(text: str, prefix: str, label: str) -> str:
    """Removes what only a separate file needs, labels the drawing, and puts `prefix` before its ids."""
    root = ET.fromstring(text)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style"):  # a style would apply to the whole page
                parent.remove(child)
    _, _, width, _ = root.attrib["viewBox"].split()
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib.update({"role": "img", "aria-label": label, "style": f"max-width:{float(width) * 1.25:.0f}px"})
    referenced = set(re.findall(r'(?:url\(|href=")#([^)"]+)', text))
    for node in root.iter():
        if (id := node.attrib.pop("id", None)) in referenced:
            node.attrib["id"] = f"{prefix}-{id}"
        for name, value in node.attrib.items():
            if name == "d":  # to a tenth of a pixel
                node.attrib[name] = re.sub(r"-?\d+\.\d{2,}", lambda match: f"{float(match[0]):.1f}", value)
            elif name == f"{{{XLINK}}}href":
                node.attrib[name] = value.replace("#", f"#{prefix}-")
            elif name != "aria-label":
                node.attrib[name] = _with_css_colors(value.replace("url(#", f"url(#{prefix}-"))
    ET.register_namespace("", SVG)
    ET.register_namespace("xlink", XLINK)
    return ET.tostring(root, encoding="unicode")


def _with_css_colors(value: str) -> str:
    return re.sub("#fe[0-9a-f]{2}ef", lambda match: f"var(--{ROLE_OF[match[0]]})", value)
