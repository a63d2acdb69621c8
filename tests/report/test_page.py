"""The page: complete, safe whatever a run holds, and without any request."""

import html.parser
import json
import math
import re

import matplotlib.figure
import numpy as np
import pytest

from gemma3_jax.cli import report
from gemma3_jax.report import formatting, metric_curves, page, summary
from gemma3_jax.train import final
from tests.report import run_directories

SECTIONS = ["summary", "training", "optimization", "speed", "teacher", "context", "rounding", "memory"]
SECTIONS += ["evaluations", "samples", "config", "provenance"]
HOSTILE = "</pre></style><script>alert('x')</script><img src=x onerror=y>\"&amp;"


class ParsedPage(html.parser.HTMLParser):
    """Every element of a page, and its text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text.append(data)

    def values(self, name):
        return [attributes[name] for _, attributes in self.elements if name in attributes]


def test_every_section_is_there_and_the_list_on_top_leads_to_it(render_page):
    parsed = ParsedPage(render_page())
    assert [attributes["id"] for tag, attributes in parsed.elements if tag == "section"] == SECTIONS
    links = [attributes["href"] for tag, attributes in parsed.elements if tag == "a"]
    assert links == [f"#{name}" for name in SECTIONS]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A page with drawings of two runs, one of which holds text that would break out of any element or attribute."""
    directory = run_directories.write(tmp_path_factory.mktemp("a") / "run")
    other = run_directories.write(directory.parent / "<b>other")
    stages = run_directories.config()["stages"] | {HOSTILE: {"seq_len": 7}}
    config = run_directories.config(stages=stages, data="https://example.com/a.css", teacher=HOSTILE)
    (directory / "config.json").write_text(json.dumps(config))
    start = run_directories.start(command=["train", HOSTILE], commit=HOSTILE, versions={HOSTILE: HOSTILE})
    run_directories.write_lines(directory / "starts.jsonl", [start] * 2)
    rows = [row | {"stage": row["stage"].replace("qat", HOSTILE)} for row in run_directories.rows(20)]
    run_directories.write_lines(directory / "metrics.jsonl", rows)
    evaluations = [
        row | {"stage": row["stage"].replace("qat", HOSTILE)}
        for row in run_directories.evaluations(run_directories.rows(20))
    ]
    evaluations[-1] |= {f"{HOSTILE}/score": 1.0, "samples": [{"prompt": HOSTILE, "text": HOSTILE}]}
    run_directories.write_lines(directory / "evaluations.jsonl", evaluations)
    runs = page.read(directory, [other])
    return page.render(runs, page.sections(runs)).decode()


def test_ids_are_unique_and_what_is_referred_to_is_there(hostile):
    parsed = ParsedPage(hostile)
    ids = parsed.values("id")
    assert len(ids) == len(set(ids)) > 100
    references = re.findall(r"url\(#([^)]+)\)", " ".join(str(attributes) for _, attributes in parsed.elements))
    references += [value[1:] for value in parsed.values("xlink:href") + parsed.values("href")]
    assert references and set(references) <= set(ids)


def test_nothing_is_loaded_from_anywhere(hostile):
    parsed = ParsedPage(hostile)
    tags = {tag for tag, _ in parsed.elements}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "base", "image", "foreignobject"}
    for name in ("src", "href", "xlink:href", "srcset", "action", "poster", "data"):
        assert all(value.startswith("#") for value in parsed.values(name))
    assert all(target.startswith("#") for target in re.findall(r"url\(\s*['\"]?([^)]*)\)", hostile))
    assert "@import" not in hostile and page.CONTENT_SECURITY_POLICY in parsed.values("content")


def test_everything_from_a_run_is_text(hostile):
    parsed = ParsedPage(hostile)
    assert not {tag for tag, _ in parsed.elements} & {"script", "img", "b"}
    assert not any(name.startswith("on") for _, attributes in parsed.elements for name in attributes)
    # In stages, legends, tables, samples, config, command, commit and versions.
    assert "".join(parsed.text).count("<script>") > 20 and [tag for tag, _ in parsed.elements].count("style") == 1


def test_text_that_utf_8_has_not_does_not_stop_the_page(render_page, directory):
    evaluations = run_directories.evaluations(run_directories.rows(20))
    evaluations[-1]["samples"] = [{"prompt": "half \ud83d", "text": "nul \0 and 訓練"}]
    run_directories.write_lines(directory / "evaluations.jsonl", evaluations)
    assert "half ?" in render_page() and "nul � and 訓練" in render_page()


def test_what_is_missing_is_named_and_sections_without_content_are_left_out(render_page, directory):
    assert set(SECTIONS) <= set(ParsedPage(render_page()).values("id"))
    for name in ("config.json", "goodput.jsonl", "starts.jsonl", "evaluations.jsonl", "skipped.jsonl"):
        (directory / name).unlink()
    run_directories.write_lines(directory / "metrics.jsonl", run_directories.rows(20, distilled=False))
    text = render_page()
    left_out = {"teacher", "context", "rounding", "evaluations", "samples"}
    assert set(SECTIONS) - set(ParsedPage(text).values("id")) == left_out
    assert not any(f'href="#{name}"' in text for name in left_out)
    for expected in (
        "config.json is missing: the configuration is unknown.",
        "goodput.jsonl is missing: how the time was spent is unknown.",
        "starts.jsonl is missing: how the run was started is unknown.",
        "The cache of the run&#39;s model is not shown",
        "not recorded",
    ):
        assert expected in text


def test_a_run_of_one_row_has_a_page(render_page, directory):
    [row, *_] = run_directories.rows(20)
    run_directories.write_lines(directory / "metrics.jsonl", [{**row, "loss": None}])
    assert "Final loss" in render_page()
    run_directories.write_lines(directory / "metrics.jsonl", [row])
    assert "Final loss" in render_page()


def test_a_loss_that_was_never_finite_leaves_the_rest(render_page, directory):
    rows = [row | {"loss": None, "gradient_norm": None} for row in run_directories.rows(20)]
    run_directories.write_lines(directory / "metrics.jsonl", rows)
    assert 'id="learning-rate"' in render_page() and 'id="loss"' not in render_page()


def test_mfu_is_shown_where_rows_have_it(render_page, directory):
    assert 'id="mfu"' in render_page()
    rows = run_directories.rows(20)
    for row in rows:
        del row["mfu"]
    run_directories.write_lines(directory / "metrics.jsonl", rows)
    assert 'id="mfu"' not in render_page() and "MFU is not shown" in render_page()


def test_a_run_that_begins_with_a_later_stage_has_that_stage_s_tokens_alone(render_page, directory):
    rows = [row for row in run_directories.rows(20) if row["stage"] == "qat"]
    run_directories.write_lines(directory / "metrics.jsonl", rows)
    # 20 steps of 4 rows of 512; the run had seen 450,560 before.
    cells = re.findall(
        r"<t[hd][^>]*>([^<]*)</t[hd]>", render_page().partition("<h3>Stages</h3>")[2].partition("</table>")[0]
    )
    assert cells[9:13] == ["qat", "20", "512", "41K"]


def test_compared_runs_have_a_color_a_legend_entry_and_a_column_each(render_page, tmp_path):
    others = [run_directories.write(tmp_path / "narrow", better=0.2)]
    others.append(run_directories.write(tmp_path / "plain", distilled=False, num_steps=7))
    (others[0] / "config.json").write_text(json.dumps(run_directories.config(data="runs/other/data")))
    text = render_page(*others)
    legend = text[text.index('id="loss"') :].partition("</ul>")[0]
    assert [name for name in ("wide", "narrow", "plain") if f"<span>{name}</span>" in legend] == [
        "wide",
        "narrow",
        "plain",
    ]
    assert all(f"var(--series{number})" in legend for number in range(3))
    assert '<th scope="col" class="number">narrow</th>' in text
    assert (
        "<h3>Differences</h3>" in text
        and "<span>narrow: after qat</span>" in text
        and "&#34;runs/other/data&#34;" in text
        and "narrow: after qat" in text
    )


def test_a_headline_says_what_came_of_the_run(render_page, directory):
    rows = [row for row in run_directories.rows(20) if row["stage"] == "qat"]
    loss = sum(row["loss"] for row in rows) / 20
    steps, text = rows[-1]["global_step"], render_page()
    assert f"Final loss {loss:.3f} nats per token in qat, after {steps:,} steps and " in text


def test_a_comparison_says_how_later_runs_differ_from_the_first(directory, tmp_path):
    narrow = run_directories.write(tmp_path / "narrow", better=0.2)
    runs = page.read(directory, [narrow])
    rows = {row[0]: row[1:] for row in summary.comparison(runs).rows}
    first, second = (final.mean(run.data.stages[-1].accepted("loss")) for run in runs)
    assert rows["Final loss"] == [f"{first:.3f}", f"{second:.3f} (\N{MINUS SIGN}{first - second:.3f})"]
    assert second < first and rows["Tokens seen"][0] == rows["Tokens seen"][1]
    assert summary.headline(runs).startswith("Final loss in nats per token: wide ")
    assert summary.headline(runs).endswith(f", narrow {rows['Final loss'][1]}.")


@pytest.mark.parametrize(
    ("value", "first", "digits", "text"),
    [
        (3.25, 3.0, 3, "+0.250"),
        (2.75, 3.0, 2, "\N{MINUS SIGN}0.25"),
        (150.0, 100.0, -1, "+50.0 %"),
        (0.0, 5.0, -1, "\N{MINUS SIGN}100.0 %"),
        (5.0, 0.0, -1, "–"),
    ],
)
def test_differences(value, first, digits, text):
    assert formatting.difference(value, first, digits) == text


def test_an_axis_does_not_make_noise_a_finding(directory):
    """A curve that moves by a thousandth of its value lies in the middle; one that moves by half fills the axis."""
    spans = {}
    for name, size in (("still", 0.001), ("moving", 0.5)):
        rows = run_directories.rows(20)
        for number, row in enumerate(rows):
            row["loss"] = 4.0 * (1 - size * (number % 2))
        run_directories.write_lines(directory / "metrics.jsonl", rows)
        figure = matplotlib.figure.Figure()
        metric_curves.over_tokens(page.read(directory), metric_curves.LOSS).draw(figure, False)
        spans[name] = np.array(figure.axes[0].get_ylim())
    assert np.ptp(spans["still"]) > 0.05 * 4 and spans["still"].mean() == pytest.approx(4 - 0.002)
    assert np.ptp(spans["moving"]) == pytest.approx(2 * 1.12)


def test_the_final_value_is_the_mean_of_the_last_finite_rows():
    column = [100.0, *range(1, 20), math.nan, 20.0, math.inf]
    assert final.values(column) == list(range(1, 21)) and final.mean(column) == 10.5
    assert math.isnan(final.mean([math.nan])) and math.isnan(final.of_rows([], "loss"))
    rows = [
        {"stage": "a", "loss": 9},
        {"stage": "b", "loss": 1},
        {"stage": "b", "loss": 7, "skipped": 1},
        {"stage": "b"},
    ]
    assert final.of_rows(rows, "loss") == 1


def test_provenance_has_command_commit_versions_and_digests(render_page):
    text = render_page()
    for expected in (
        "python -m gemma3_jax train --config=experiments/demo.py --workdir=runs/demo",
        "0123456789abcdef0123456789abcdef01234567+changes",
        "jax 0.10.2",
        "d1d1d1d1d1d1d1d1",
        "2 times, last at",
    ):
        assert expected in text


def command(*flags):
    report.run(report.parser().parse_all(list(flags)))


def test_the_page_lies_in_the_run_directory(directory, without_drawings, capsys):
    command(f"--workdir={directory}", "--json")
    result = json.loads(capsys.readouterr().out)
    written = directory / "report.html"
    assert result == {"output": str(written), "bytes": written.stat().st_size, "sections": SECTIONS}
    command(f"--workdir={directory}")  # again, over it
    assert "report.html: " in capsys.readouterr().out
    assert not [path for path in directory.iterdir() if "partial" in path.name]


def test_compare_takes_several_and_may_be_repeated(directory, without_drawings, tmp_path):
    others = [run_directories.write(tmp_path / name, num_steps=4) for name in "abc"]
    output = tmp_path / "all.html"
    command(
        f"--workdir={directory}", f"--compare={others[0]},{others[1]}", f"--compare={others[2]}", f"--output={output}"
    )
    assert all(f"<span>{name}</span>" in output.read_text() for name in ("wide", "a", "b", "c"))


def test_flags_that_are_refused(directory, tmp_path):
    for output, error in (
        (directory / "metrics.jsonl", r"--output is .*metrics\.jsonl; it must end in \.html"),
        (tmp_path / "gone" / "a.html", r"gone is not a directory; create it first"),
    ):
        with pytest.raises(ValueError, match=error):
            command(f"--workdir={directory}", f"--output={output}")
    (tmp_path / "a.html").mkdir()
    with pytest.raises(ValueError, match=r"a\.html is a directory; name a file in it"):
        command(f"--workdir={directory}", f"--output={tmp_path / 'a.html'}")
    with pytest.raises(ValueError, match="is not a run"):
        command(f"--workdir={tmp_path}")
    with pytest.raises(ValueError, match="is listed twice"):
        command(f"--workdir={directory}", f"--compare={directory}")


def test_a_page_that_cannot_be_written_leaves_the_old_one(directory, without_drawings, monkeypatch):
    output = directory / "report.html"
    output.write_text("old")
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(OSError, match="no space left"):
        command(f"--workdir={directory}")
    assert output.read_text() == "old" and not list(directory.glob(".*partial*"))


@pytest.mark.slow
def test_100_000_rows_take_seconds(tmp_path):
    import time

    directory = run_directories.write(tmp_path / "long", num_steps=20_000)
    began = time.perf_counter()
    runs = page.read(directory)
    content = page.render(runs, page.sections(runs))
    assert time.perf_counter() - began < 30 and len(content) < 2e6  # 8 s alone on two cores


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("evaluations.jsonl", {"context/by_length/" + "9" * 400 + "/nats": 4.5, "context/by_position/" + "9" * 99: 1}),
        ("evaluations.jsonl", {"context/by_length/512/nats": 10**400, "unquantized_nats": [1], "samples": 3}),
        ("evaluations.jsonl", {"samples": [3, {"prompt": 4}, {"prompt": "a", "text": None}], "time": "now"}),
        ("metrics.jsonl", {"step": 7, "time": None, "learning_rate": 1e308}),
        ("metrics.jsonl", {"tokens_seen": 3, "loss": None, "mfu": "fast"}),
        ("starts.jsonl", {"time": 1e30, "command": 3, "versions": [], "data": {"pretrain": 3}, "commit": {}}),
    ],
)
def test_a_page_of_rows_of_another_form_is_a_page(directory, render_page, name, changes):
    file = directory / name
    rows = [json.loads(line) | changes for line in file.read_text().splitlines()]
    run_directories.write_lines(file, rows)
    assert "</html>" in render_page()


@pytest.mark.parametrize("changes", [{"model": 3}, {"model": {"num_layers": -6}}, {"stages": []}, {"data": [10**400]}])
def test_a_page_of_a_config_of_another_form_is_a_page(directory, render_page, changes):
    (directory / "config.json").write_text(json.dumps(run_directories.config(**changes)))
    assert "</html>" in render_page()
