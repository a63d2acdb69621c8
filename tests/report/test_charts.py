"""Charts: their numbers, computed by hand, and drawings that belong to the page."""

import dataclasses
import math
import re

import pytest

from gemma3_jax.evals import weight_bytes
from gemma3_jax.report import (
    cache_memory,
    chart,
    context_curves,
    metric_curves,
    page,
    quantization_cost,
    svg,
    time_breakdown,
)
from tests.report import run_directories


@pytest.fixture
def runs(directory):
    return page.read(directory)


def drawings(subject: chart.Chart) -> str:
    """A chart as it is drawn for a wide page and for a phone."""
    return "".join(drawing.svg for drawing in svg.drawings(subject))


def test_the_cache_of_figure_6_is_what_the_report_draws():
    """1,745 MB for 32K tokens if all layers keep them, 315 with windows: 26 layers of 4 heads of 256, 8 bits."""
    sizes = [
        round(weight_bytes.cached(cache_memory.FIGURE_6, 32_768, layout) / 1e6)
        for layout in reversed(weight_bytes.LAYOUTS)
    ]
    assert sizes == [1_745, 315]
    rows = {row[0]: row[1:] for row in cache_memory.of_figure_6().numbers.rows}
    assert rows["32K"] == ["315 MB", "1.74 GB"] and rows["128K"] == ["1.12 GB", "6.98 GB"] and len(rows) == 8


def test_the_cache_of_a_run_is_that_of_its_model(runs):
    subject = cache_memory.of_runs(runs)
    rows = {row[0]: row[1:] for row in subject.numbers.rows}
    # 2 bytes, keys and values, one head of 32: 5 layers of 64 tokens and one of 1,024; six of 1,024.
    assert rows["1K"] == [f"{2 * 2 * 32 * (5 * 64 + 1_024) / 1e3:.3g} kB", f"{2 * 2 * 32 * 6 * 1_024 / 1e3:.3g} kB"]
    assert "6 layers, 1 KV head of dimension 32, sliding windows of 64 tokens" in subject.caption


def test_a_model_that_this_version_does_not_know_has_no_cache(runs):
    data = dataclasses.replace(runs[0].data, config={"model": {"num_layers": 3, "num_experts": 8}})
    assert cache_memory.of_runs([dataclasses.replace(runs[0], data=data)]) is None


def test_runs_of_one_model_share_their_lines(runs, tmp_path):
    other = run_directories.write(tmp_path / "other")
    both = page.read(runs[0].data.path, [other])
    assert len(cache_memory.of_runs(both).legend) == 2
    model = run_directories.MODEL | {"sliding_window": 16}
    (other / "config.json").write_text(str(run_directories.config(model=model)).replace("'", '"'))
    both = page.read(runs[0].data.path, [other])
    assert [entry.label.partition(":")[0] for entry in cache_memory.of_runs(both).legend] == [
        "wide",
        "wide",
        "other",
        "other",
    ]


def test_context_is_drawn_for_the_last_evaluation_of_each_stage(directory):
    row_keys = {"stage": "pretrain", "step": 60, "global_step": 60, "time": 0.0}
    last = {f"context/by_length/{n}/nats": 5 - n / 1e3 for n in (512, 64)}
    position = {f"context/by_position/{n}-{2 * n - 1}": 4.0 for n in (1, 256)}
    run_directories.write_lines(
        directory / "evaluations.jsonl",
        [row_keys | {"global_step": 30} | {name: 9.0 for name in last}, row_keys | last | position | {"nats": 3.0}],
    )
    runs = page.read(directory)
    assert context_curves.last_tokens(runs).numbers.rows == [["64", "4.9360"], ["512", "4.4880"]]
    assert [row[0] for row in context_curves.positions(runs).numbers.rows] == ["1", "256"]
    assert [entry.label for entry in context_curves.last_tokens(runs).legend] == ["after pretrain"]
    assert drawings(context_curves.last_tokens(runs)).count("trained at 512") == 2  # on a wide page and on a phone


def test_perplexities_are_those_of_the_nats(runs):
    [evaluation] = quantization_cost.evaluations(runs)
    assert evaluation.perplexities == pytest.approx([math.exp(4.6816), math.exp(4.7144), math.exp(4.6855)])
    assert evaluation.labels() == ["bf16", "PTQ q4_0", "QAT q4_0"]
    drawn = drawings(quantization_cost.bars(runs))
    assert "+3.33 %" in drawn and "+0.391 %" in drawn


def test_fractions_of_time_sum_to_all_of_it(runs):
    rows = time_breakdown.bars(runs).numbers.rows
    percentages = [float(row[2].removesuffix(" %")) for row in rows]
    assert rows[-1][0] == "total" and percentages[-1] == 100 and sum(percentages[:-1]) == pytest.approx(100, abs=0.3)
    assert ["training steps", "4 min 00 s", "41.0 %"] in rows and rows[-2][0] == "lost and repeated"


def test_a_curve_that_no_row_has_is_not_drawn(tmp_path):
    plain = page.read(run_directories.write(tmp_path / "plain", distilled=False))
    assert (
        metric_curves.over_tokens(plain, metric_curves.CAPTURED_MASS) is None
        and metric_curves.over_tokens(plain, metric_curves.LOSS) is not None
    )


def test_many_rows_are_downsampled_and_the_caption_says_so(tmp_path):
    runs = page.read(run_directories.write(tmp_path / "long", num_steps=1_000))
    subject = metric_curves.over_tokens(runs, metric_curves.LOSS)
    assert "Each point of a line is the mean of up to 9 rows" in subject.caption
    assert len(drawings(subject)) < 120_000
    assert (
        "mean of up to"
        not in metric_curves.over_tokens(page.read(run_directories.write(tmp_path / "b")), metric_curves.LOSS).caption
    )


def test_a_skipped_step_is_marked_and_does_not_stretch_the_axis(runs):
    subject = metric_curves.over_tokens(runs, metric_curves.LOSS)
    assert "step skipped" in [entry.label for entry in subject.legend]
    drawn = svg.render(subject, "wide", 600, 300)
    assert "var(--bad)" in drawn
    ticks = [float(tick) for tick in re.findall(r">([0-9.]+)</text>", drawn)]
    assert 4 <= max(ticks) <= 10 and all(float(cell) < 10 for cell in subject.numbers.rows[0][1:])


def test_a_drawing_has_text_as_text_and_no_color_of_its_own(runs):
    drawn = svg.render(metric_curves.over_tokens(runs, metric_curves.LOSS), "wide", 600, 300)
    assert ">tokens seen</text>" in drawn and ">long_context</text>" in drawn
    assert not re.search(r"#[0-9a-fA-F]{6}\b", drawn) and "var(--series0)" in drawn


def test_names_that_matplotlib_would_read_as_something_else_are_drawn_as_they_are(tmp_path):
    directory = run_directories.write(tmp_path / "run")
    rows = run_directories.rows(5)
    for row in rows:
        row["stage"] = row["stage"].replace("pretrain", "_$x_{ <b>\n\0訓練")
    run_directories.write_lines(directory / "metrics.jsonl", rows)
    drawn = drawings(metric_curves.over_tokens(page.read(directory), metric_curves.LOSS))
    assert "_$x_{ &lt;b&gt;��訓練" in drawn


def test_the_first_24_line_styles_are_all_different():
    styles = [(style["color"], str(style["linestyle"])) for style in map(chart.line_style, range(24))]
    assert len(set(styles)) == 24
