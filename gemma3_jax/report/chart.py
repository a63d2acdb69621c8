"""Charts: a function that draws, a legend, a caption, the numbers behind it; and the palette and layout of all of them.

matplotlib draws with placeholder colors that stand for roles; `svg` turns each into a CSS variable, so that one
drawing reads well in light and in dark.
"""

import dataclasses
from collections.abc import Callable, Sequence

import matplotlib.axes
import matplotlib.figure
import matplotlib.ticker

from gemma3_jax.report import table

NUM_SERIES = 6
DASHES = ("solid", (0, (6, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
ROLES = ("ink", "muted", "rule", "surface", "bad", *(f"series{number}" for number in range(NUM_SERIES)))
# Colors that no palette has, so that each is recognized in the drawing.
COLORS = {role: f"#fe{number:02x}ef" for number, role in enumerate(ROLES, start=1)}
WIDTHS = {"half": 536, "full": 1096, "narrow": 346}  # pixels
LETTER_PIXELS = 7.4  # width of a letter of a label, at most


@dataclasses.dataclass(frozen=True, kw_only=True)
class LegendEntry:
    """One entry of a legend: the role of its color, and how it is drawn."""

    label: str
    role: str  # one of ROLES
    dash: object = "solid"
    mark: str = "line"  # or: area, point, cross

    @property
    def dash_array(self) -> str:
        """The dashes as SVG's stroke-dasharray."""
        return "none" if self.dash == "solid" else " ".join(map(str, self.dash[1]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chart:
    """One figure, with a caption that says what to look for."""

    name: str  # unique on the page
    title: str
    caption: str
    draw: Callable[[matplotlib.figure.Figure, bool], None]  # (figure, whether it is narrow)
    legend: Sequence[LegendEntry] = ()
    height: int = 260  # pixels
    narrow_height: int = 0  # 0: as `height`
    is_full: bool = False  # as wide as the page
    numbers: table.Table | None = None


def set_margins(
    figure: matplotlib.figure.Figure,
    *,
    left: int = 62,
    right: int = 14,
    top: int = 12,
    bottom: int = 44,
    between: int = 0,
) -> None:
    """Sets pixels around and between the axes: the same in every chart, so that axes align in a column of charts."""
    width, height = 72 * figure.get_size_inches()
    num_axes = max(len(figure.axes), 1)
    figure.subplots_adjust(
        left=left / width,
        right=1 - right / width,
        top=1 - top / height,
        bottom=bottom / height,
        wspace=between / ((width - left - right - between) / num_axes),
        hspace=between / ((height - top - bottom - between) / num_axes),
    )
    for axes in figure.axes:
        axes.yaxis.set_label_coords((8 - left) / (width - left - right), 0.5)


def round_ticks(max_intervals: int) -> matplotlib.ticker.Locator:
    """A locator of ticks at round numbers."""
    return matplotlib.ticker.MaxNLocator(max_intervals, steps=[1, 2, 2.5, 5, 10])


def label_bars(axes: matplotlib.axes.Axes, labels: Sequence[str], is_narrow: bool) -> int:
    """Labels horizontal bars, the first on top; long labels lose their beginning. Returns their width in pixels."""
    max_letters = int((120 if is_narrow else 260) / LETTER_PIXELS)
    labels = [printable(label) for label in labels]
    labels = [label if len(label) <= max_letters else f"…{label[1 - max_letters :]}" for label in labels]
    axes.set_yticks(range(len(labels)), labels, color=COLORS["ink"])
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(visible=False)
    return 8 + int(LETTER_PIXELS * max(map(len, labels)))


def line_style(number: int) -> dict:
    """Color and dashes of a run or stage by its number: the first 24 are all different."""
    return {"color": COLORS[series_role(number)], "linestyle": series_dash(number)}


def legend_line(label: str, number: int) -> LegendEntry:
    """The legend entry of a line in the `line_style` of this number."""
    return LegendEntry(label=label, role=series_role(number), dash=series_dash(number))


def series_role(number: int) -> str:
    return f"series{number % NUM_SERIES}"


def series_dash(number: int) -> object:
    return DASHES[(number + number // NUM_SERIES) % len(DASHES)]


def printable(text: str) -> str:
    """The text on one line, without characters that XML cannot hold."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
