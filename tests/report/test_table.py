"""Tables as data, and as HTML."""

import pytest

from gemma3_jax.report import table, template


def render(data: table.Table) -> str:
    return str(template.ENVIRONMENT.get_template("macros.html.jinja").module.table(data))


def test_a_table_names_its_rows_and_aligns_numbers():
    data = table.Table(head=["stage", "loss", "note"], rows=[["1b", "3.2", "x"], ["qat", None, "–"]], caption="Losses")
    assert [data.is_numeric(column) for column in range(3)] == [False, True, True]
    html = render(data)
    assert '<th scope="col">stage</th><th scope="col" class="number">loss</th>' in html
    assert '<tr><th scope="row">1b</th><td class="number">3.2</td>' in html
    assert '<tr><th scope="row">qat</th><td class="number"></td>' in html and "<caption>Losses</caption>" in html


def test_cells_are_escaped_and_columns_of_code_are_not_numeric():
    data = table.Table(head=["<b>", "digest"], rows=[["<script>", "12<34"]], caption="a & b", code_columns=(1,))
    html = render(data)
    assert '<th scope="row">&lt;script&gt;</th><td><code>12&lt;34</code></td>' in html
    assert '<th scope="col">&lt;b&gt;</th>' in html and "<caption>a &amp; b</caption>" in html


def test_rows_have_as_many_cells_as_the_header():
    with pytest.raises(AssertionError, match="as many cells as the header"):
        table.Table(head=["a", "b"], rows=[["1"]])
