"""The page of a profile: complete, safe whatever a profile holds, and areas that are in proportion."""

import html.parser
import re

import pytest

from gemma3_jax.report import cycle_charts, profile_page, svg, treemap
from tests.planning import profiles

HOSTILE = "</style><script>alert('x')</script><img src=x onerror=y>"


class Tags(html.parser.HTMLParser):
    """The tags of a page, and the ids of its sections."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.sections = set(), []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag == "section":
            self.sections.append(dict(attributes)["id"])


def render(*several):
    return profile_page.render(*several).decode()


def test_a_profile_has_its_estimate_its_dearest_and_what_has_none(without_drawings):
    text = render(profiles.BEFORE)
    assert Tags(text).sections == ["summary", "cycles", "dearest", "waiting", "unestimated"]
    for expected in (
        "25.0 %",
        "estimates of the compiler",
        "gemma3_jax/losses/a.py:7",
        "75.0 %",
        "scatter",
        "all-reduce",
    ):
        assert expected in text
    assert "too high by what has no estimate" in text and "add.3" not in text


def test_two_profiles_are_side_by_side(without_drawings):
    text = render(profiles.AFTER, profiles.BEFORE)
    assert Tags(text).sections == ["summary", "cycles", "comparison", "dearest", "waiting", "unestimated"]
    assert "the job after" in text and "compared with: this job" in text and ">0.88</td>" in text


def test_a_profile_without_gaps_says_so(without_drawings):
    text = render(profiles.make(profiles.cost("a", 5)))
    assert "Every instruction has an estimate." in text and "waiting is not estimated" in text


def test_waiting_is_in_its_seconds_and_has_a_table(without_drawings):
    text = render(profiles.WAITING)
    assert "of waiting" in text and "20.0 %" in text
    assert all(f">{cell}</t" in text for cell in ("reduce-scatter", "data+seq", "local layers, backward", "16.0 %"))


def test_everything_from_a_profile_is_text():
    one = profiles.make(profiles.cost(HOSTILE, 5, source=HOSTILE), profiles.cost(HOSTILE, None), title=HOSTILE)
    text = render(one, one)
    assert not Tags(text).tags & {"script", "img"} and text.count("&lt;script&gt;") > 5


def test_a_treemap_names_places_and_colors_kinds():
    drawn = svg.render(cycle_charts.by_place(profiles.BEFORE), "wide", 1096, 440)
    labels = re.findall(r">([^<>]+)</text>", drawn)
    assert labels == ["local layers, forward 75.0 %", "product 75.0 %", "loss, forward 25.0 %", "elementwise 25.0 %"]
    assert "var(--series0)" in drawn and "var(--series2)" in drawn


def test_two_bars_stand_for_each_place():
    drawn = svg.render(cycle_charts.beside(profiles.AFTER, profiles.BEFORE), "wide", 1096, 150)
    assert "local layers, forward" in drawn and "estimated ms of a chip in a step" in drawn
    roles = [f"var(--series{number})" for number in (0, 2, 4)]  # product, elementwise before, reduction after
    assert all(role in drawn for role in roles)


@pytest.mark.parametrize("area", [treemap.Rectangle(0, 0, 600, 300), treemap.Rectangle(5, 9, 30, 400)])
@pytest.mark.parametrize("quantities", [[1.0], [6, 6, 4, 3, 2, 2, 1], [1e9, 1, 1]])
def test_areas_of_a_treemap_are_in_proportion_and_inside(quantities, area):
    rectangles = treemap.layout(quantities, area)
    scale = area.width * area.height / sum(quantities)
    assert [one.width * one.height for one in rectangles] == pytest.approx([one * scale for one in quantities])
    for one in rectangles:
        assert one.left >= area.left - 1e-6 and one.left + one.width <= area.left + area.width + 1e-6
        assert one.top >= area.top - 1e-6 and one.top + one.height <= area.top + area.height + 1e-6
    for number, a in enumerate(rectangles):
        for b in rectangles[number + 1 :]:
            across = min(a.left + a.width, b.left + b.width) - max(a.left, b.left)
            down = min(a.top + a.height, b.top + b.height) - max(a.top, b.top)
            assert across < 1e-6 or down < 1e-6


def test_a_treemap_of_the_paper_is_laid_out_as_in_it():
    """Bruls et al., figure 4: 6, 6, 4, 3, 2, 2, 1 in 6 x 4; the first two are a column of 3 x 2 each."""
    first, second, third, *_ = treemap.layout([6, 6, 4, 3, 2, 2, 1], treemap.Rectangle(0, 0, 6, 4))
    assert first == pytest.approx((0, 0, 3, 2)) and second == pytest.approx((0, 2, 3, 2))
    assert third.left == pytest.approx(3) and third.height == pytest.approx(7 / 3, abs=0.01)
