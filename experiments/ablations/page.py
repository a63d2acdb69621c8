"""One page of all finished ablations: the question, a plot, one sentence on the sign, and every number of each.

    python experiments/ablations/page.py [--output=runs/ablations]

Writes OUTPUT/ablations.html from OUTPUT/*/result.json and plot.png. The page fetches nothing when it is opened.
"""

import argparse
import base64
import html
import json
import pathlib

import results
import trials

ORDER = ("local_global", "window", "rope_scale", "teacher_size", "estimator", "qat_format")
PAGE = "ablations.html"
STYLE = """
:root { color-scheme: light dark; --line: light-dark(#d0d0d0, #484848); --muted: light-dark(#595959, #a8a8a8); }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
section { border-top: 1px solid var(--line); margin-top: 2.5rem; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; margin: 0.8rem 0; }
th, td { border-bottom: 1px solid var(--line); padding: 0.25rem 0.8rem 0.25rem 0; text-align: left; }
td.number, th.number { text-align: right; }
img { max-width: 100%; background: #fff; border: 1px solid var(--line); border-radius: 4px; }
.wide { overflow-x: auto; }
.muted { color: var(--muted); font-size: 0.9rem; }
.badge { border-radius: 4px; padding: 0.1rem 0.5rem; font-size: 0.9rem; white-space: nowrap; }
.agrees { background: light-dark(#d7f0d9, #1d4a24); }
.disagrees { background: light-dark(#fbd9d6, #6b211b); }
.unclear { background: light-dark(#ececec, #404040); }
"""


def badge(verdict: str) -> str:
    return f'<span class="badge {verdict}">{html.escape(verdict)}</span>'


def table(head: list[str], rows: list[list[str]], num_text_columns: int) -> str:
    """Cells are HTML. The first `num_text_columns` columns hold text, the others numbers."""

    def row_html(cells: list[str], tag: str) -> str:
        attributes = ("" if column < num_text_columns else ' class="number"' for column in range(len(cells)))
        pairs = zip(attributes, cells, strict=True)
        return "<tr>" + "".join(f"<{tag}{attribute}>{cell}</{tag}>" for attribute, cell in pairs) + "</tr>"

    body = "".join(row_html(row, "td") for row in rows)
    return f'<div class="wide"><table><thead>{row_html(head, "th")}</thead><tbody>{body}</tbody></table></div>'


def format_difference(interval: dict) -> str:
    return results.format_interval(results.Interval(interval["mean"], interval["half_width"]))


def format_mean(interval: dict) -> str:
    return format_difference(interval).removeprefix("+")


def section(result: dict, plot: bytes) -> str:
    """One finished ablation as HTML."""
    text = {
        field: html.escape(result[field]) for field in ("title", "question", "finding", "toy", "sentence", "command")
    }
    measures = list(result["measures"])
    means = [
        [html.escape(setting), *(format_mean(intervals[measure]) for measure in measures)]
        for setting, intervals in result["means"].items()
    ]
    seeds = [
        [html.escape(row["setting"]), str(row["seed"]), *(f"{row['measures'][measure]:.4f}" for measure in measures)]
        for row in sorted(result["rows"], key=lambda row: (list(result["means"]).index(row["setting"]), row["seed"]))
    ]
    claims = [
        [
            html.escape(claim["text"]),
            html.escape(claim["source"]),
            badge(claim["verdict"]),
            format_difference(claim),
        ]
        for claim in result["claims"]
    ]
    legend = "; ".join(
        f"<b>{html.escape(name)}</b>: {html.escape(description)}" for name, description in result["measures"].items()
    )
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return f"""<section id="{result["name"]}">
<h2>{text["title"]}</h2>
<p>{text["question"]}</p>
<p><b>The report:</b> {text["finding"]} <b>Here:</b> {text["toy"]}</p>
<p>{badge(result["verdict"])} {text["sentence"]}</p>
<img alt="{text["title"]}: plot" src="data:image/png;base64,{base64.b64encode(plot).decode()}">
{table(["claim", "source", "verdict", "difference, mean and 95 % interval"], claims, 3)}
{table(["setting", *measures], means, 1)}
<p class="muted">Means over {result["num_seeds"]} seeds with 95 % intervals by Student's t. {legend}.</p>
<details><summary>by seed</summary>{table(["setting", "seed", *measures], seeds, 1)}</details>
<p class="muted"><code>{text["command"]}</code><br>{result["minutes"]:.1f} minutes, {result["num_cpus"]} CPUs;
commit {html.escape(result["commit"])}, Python {result["python"]}, {versions}</p>
</section>"""


def agreement(result: dict) -> str:
    claims = [claim for claim in result["claims"] if not claim["is_control"]]
    return f"{sum(claim['verdict'] == results.AGREES for claim in claims)} of {len(claims)}"


def page(finished: list[tuple[dict, bytes]]) -> str:
    """The whole page, from the result and the plot of each ablation."""
    rows = [
        [f'<a href="#{result["name"]}">{html.escape(result["title"])}</a>', badge(result["verdict"]), agreement(result)]
        for result, _ in finished
    ]
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>The report's ablations in miniature</title><style>{STYLE}</style></head><body>
<h1>The report's ablations in miniature</h1>
<p>Toy models on the text of the Python standard library, several seeds each. Differences are paired by seed: students
with the same seed train on the same sequences in the same order and are scored on the same held-out sequences. A claim
<i>agrees</i> if the whole 95 % interval of its difference is within the claim's limits, <i>disagrees</i> if none of it
is, and is <i>unclear</i> otherwise. What holds for toys need not hold for larger models.</p>
{table(["ablation", "sign", "comparisons that agree"], rows, 2)}
{"".join(section(result, plot) for result, plot in finished)}
</body></html>
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="runs/ablations", help="the --output of the ablations")
    output = pathlib.Path(parser.parse_args().output)
    names = {path.parent.name for path in output.glob(f"*/{results.RESULT}")}
    if not names:
        raise ValueError(f"{output} has no finished ablation; run one: python experiments/ablations/window.py")
    names = [*(name for name in ORDER if name in names), *sorted(names - set(ORDER))]
    finished = [
        (json.loads((output / name / results.RESULT).read_text()), (output / name / results.PLOT).read_bytes())
        for name in names
    ]
    (output / PAGE).write_text(page(finished), encoding="utf-8")
    print(output / PAGE)


if __name__ == "__main__":
    trials.run_main(main)
