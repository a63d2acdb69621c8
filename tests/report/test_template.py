"""Templates escape every value."""

import pathlib
import re

import jinja2
import pytest

from gemma3_jax.report import template

TEMPLATES = pathlib.Path(template.__file__).parent / "templates"


def test_values_are_escaped_in_text_and_in_attributes():
    source = '<p title="{{ value }}">{{ value }}</p>'
    html = template.ENVIRONMENT.from_string(source).render(value='"><script>')
    assert html == '<p title="&#34;&gt;&lt;script&gt;">&#34;&gt;&lt;script&gt;</p>'


def test_drawings_are_the_only_values_that_are_not_escaped():
    sources = {path.name: path.read_text() for path in TEMPLATES.glob("*.jinja")}
    unescaped = [(name, match) for name, source in sources.items() for match in re.findall(r"[^{]*\|\s*safe", source)]
    assert [(name, match.strip()) for name, match in unescaped] == [("macros.html.jinja", "drawing.svg | safe")]
    assert not any("autoescape" in source for source in sources.values())


def test_attributes_are_quoted():
    for path in TEMPLATES.glob("*.html.jinja"):
        assert not re.search(r"=\s*\{\{", path.read_text()), path.name


def test_nul_is_replaced_and_none_is_empty():
    assert template.ENVIRONMENT.from_string("{{ a }}|{{ b }}|{{ c }}").render(a="x\0", b=None, c=0) == "x�||0"


def test_a_value_that_is_missing_is_an_error():
    with pytest.raises(jinja2.UndefinedError):
        template.render("charts.html", content={})
