"""What charts say: numbers by hand, and drawings that belong to the page."""

import dataclasses
import math
import re

import pytest

from gemma3_jax.evals import weight_bytes
from gemma3_jax.report import bars, curves, drawing, page, plots
from tests.report import run_directories


@pytest.fixture
def runs(directory):
    return page.read(directory)


def rows_of(table: str) -> list[list[str]]:
    """The cells of a table's body."""
    found = re.findall(r"<tr>(.*?)</tr>", table.partition("<tbody>")[2])
    return [re.findall(r"<t[hd][^>]*>(?:<code>)?(.*?)(?:</code>)?</t[hd]>", row) for row in found]


def test_the_cache_of_figure_6_is_what_the_report_draws():
    """1,745 MB for 32K tokens if all layers keep them, 315 with windows: 26 layers of 4 heads of 256, 8 bits."""
    sizes = [round(weight_bytes.cached(curves.FIGURE_6, 32_768, layout) / 1e6) for layout in ("full", "window")]
    assert sizes == [1_745, 315]
    rows = {row[0]: row[1:] for row in rows_of(curves.cache_of_figure_6().numbers)}
    assert rows["32K"] == ["315 MB", "1.74 GB"] and rows["128K"] == ["1.12 GB", "6.98 GB"] and len(rows) == 8


def test_the_cache_of_a_run_is_that_of_its_model(runs):
    chart = curves.cache_of_runs(runs)
    rows = {row[0]: row[1:] for row in rows_of(chart.numbers)}
    # 2 bytes, keys and values, one head of 32: 5 layers of 64 tokens and one of 1,024; six of 1,024.
    assert rows["1K"] == [f"{2 * 2 * 32 * (5 * 64 + 1_024) / 1e3:.3g} kB", f"{2 * 2 * 32 * 6 * 1_024 / 1e3:.3g} kB"]
    assert "6 layers, 1 key head of 32, windows of 64" in chart.caption


def test_a_model_that_this_version_does_not_know_has_no_cache(runs):
    run = dataclasses.replace(runs[0].run, config={"model": {"num_layers": 3, "num_experts": 8}})
    assert curves.cache_of_runs([dataclasses.replace(runs[0], run=run)]) is None


def test_runs_of_one_model_share_their_lines(runs, tmp_path):
    other = run_directories.write(tmp_path / "other")
    both = page.read(runs[0].run.path, [other])
    assert len(curves.cache_of_runs(both).keys) == 2
    model = run_directories.MODEL | {"sliding_window": 16}
    (other / "config.json").write_text(str(run_directories.config(model=model)).replace("'", '"'))
    both = page.read(runs[0].run.path, [other])
    assert [key.label.partition(":")[0] for key in curves.cache_of_runs(both).keys] == [
        "wide",
        "wide",
        "other",
        "other",
    ]


def test_context_is_drawn_for_the_last_evaluation_of_each_stage(directory):
    place = {"stage": "pretrain", "step": 60, "global_step": 60, "time": 0.0}
    last = {f"context/by_length/{n}/nats": 5 - n / 1e3 for n in (512, 64)}
    position = {f"context/by_position/{n}-{2 * n - 1}": 4.0 for n in (1, 256)}
    run_directories.write_lines(
        directory / "evaluations.jsonl",
        [place | {"global_step": 30} | {name: 9.0 for name in last}, place | last | position | {"nats": 3.0}],
    )
    runs = page.read(directory)
    assert rows_of(curves.last_tokens(runs).numbers) == [["64", "4.9360"], ["512", "4.4880"]]
    assert [row[0] for row in rows_of(curves.positions(runs).numbers)] == ["1", "256"]
    assert [key.label for key in curves.last_tokens(runs).keys] == ["after pretrain"]
    drawn = drawing.figure(curves.last_tokens(runs))
    assert drawn.count("trained at 512") == 2  # on a wide page and on a phone


def test_perplexities_of_rounding_are_those_of_its_nats(runs):
    [found] = bars.find_rounded(runs)
    assert found.perplexities == pytest.approx([math.exp(4.6816), math.exp(4.7144), math.exp(4.6855)])
    assert found.labels() == ["bf16", "PTQ q4_0", "QAT q4_0"]
    drawn = drawing.figure(bars.rounding(runs))
    assert "+3.33 %" in drawn and "+0.391 %" in drawn


def test_shares_of_time_come_to_all_of_it(runs):
    rows = rows_of(bars.time_spent(runs).numbers)
    shares = [float(row[2].removesuffix(" %")) for row in rows]
    assert rows[-1][0] == "in all" and shares[-1] == 100 and sum(shares[:-1]) == pytest.approx(100, abs=0.3)
    assert ["training steps", "4 min 00 s", "41.0 %"] in rows and rows[-2][0] == "lost, done again"


def test_a_curve_that_no_row_has_is_not_drawn(tmp_path):
    plain = page.read(run_directories.write(tmp_path / "plain", distilled=False))
    assert plots.over_tokens(plain, plots.KEPT) is None and plots.over_tokens(plain, plots.LOSS) is not None


def test_many_rows_are_thinned_and_the_caption_says_so(tmp_path):
    runs = page.read(run_directories.write(tmp_path / "long", num_steps=1_000))
    chart = plots.over_tokens(runs, plots.LOSS)
    assert "Each point of a line is the mean of up to 9 rows" in chart.caption
    assert len(drawing.figure(chart)) < 120_000
    assert (
        "mean of up to" not in plots.over_tokens(page.read(run_directories.write(tmp_path / "b")), plots.LOSS).caption
    )


def test_a_skipped_step_is_marked_and_does_not_stretch_the_axis(runs):
    chart = plots.over_tokens(runs, plots.LOSS)
    assert "step skipped" in [key.label for key in chart.keys]
    drawn = drawing.svg(chart, "wide", 600, 300)
    assert "var(--bad)" in drawn
    ticks = [float(tick) for tick in re.findall(r">([0-9.]+)</text>", drawn)]
    assert 4 <= max(ticks) <= 10 and all(float(cell) < 10 for cell in rows_of(chart.numbers)[0][1:])


def test_a_drawing_has_text_as_text_and_no_colour_of_its_own(runs):
    drawn = drawing.svg(plots.over_tokens(runs, plots.LOSS), "wide", 600, 300)
    assert ">tokens seen</text>" in drawn and ">long_context</text>" in drawn
    assert not re.search(r"#[0-9a-fA-F]{6}\b", drawn) and "var(--series0)" in drawn


def test_names_that_matplotlib_would_read_as_something_else_are_drawn_as_they_are(tmp_path):
    directory = run_directories.write(tmp_path / "run")
    rows = run_directories.rows(5)
    for row in rows:
        row["stage"] = row["stage"].replace("pretrain", "_$x_{ <b>\n\0訓練")
    run_directories.write_lines(directory / "metrics.jsonl", rows)
    drawn = drawing.figure(plots.over_tokens(page.read(directory), plots.LOSS))
    assert "_$x_{ &lt;b&gt;��訓練" in drawn


def test_the_first_24_lines_are_told_apart():
    styles = [(style["color"], str(style["linestyle"])) for style in map(drawing.series, range(24))]
    assert len(set(styles)) == 24
