"""One page of all ablations that are finished: what was asked, a plot, one sentence on the sign, every number.

    python experiments/ablations/page.py [--output=runs/ablations]

Writes OUTPUT/ablations.html from OUTPUT/*/result.json and plot.png. Nothing is fetched when it is opened.
"""

import argparse
import base64
import html
import json
import pathlib

import finding
import trials

ORDER = ("local_global", "window", "rope_scale", "teacher_size", "estimator", "qat_format")
PAGE = "ablations.html"
STYLE = """
:root { color-scheme: light dark; --line: light-dark(#d0d0d0, #484848); --quiet: light-dark(#595959, #a8a8a8); }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
section { border-top: 1px solid var(--line); margin-top: 2.5rem; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; margin: 0.8rem 0; }
th, td { border-bottom: 1px solid var(--line); padding: 0.25rem 0.8rem 0.25rem 0; text-align: left; }
td.number, th.number { text-align: right; }
img { max-width: 100%; background: #fff; border: 1px solid var(--line); border-radius: 4px; }
.wide { overflow-x: auto; }
.quiet { color: var(--quiet); font-size: 0.9rem; }
.word { border-radius: 4px; padding: 0.1rem 0.5rem; font-size: 0.9rem; white-space: nowrap; }
.agrees { background: light-dark(#d7f0d9, #1d4a24); }
.disagrees { background: light-dark(#fbd9d6, #6b211b); }
.cannot-be-told { background: light-dark(#ececec, #404040); }
"""


def word(verdict: str) -> str:
    return f'<span class="word {verdict.replace(" ", "-")}">{html.escape(verdict)}</span>'


def table(head: list[str], lines: list[list[str]], num_words: int) -> str:
    """Cells are HTML; the first `num_words` columns are words, the others numbers."""

    def row(cells: list[str], tag: str) -> str:
        kinds = ("" if number < num_words else ' class="number"' for number in range(len(cells)))
        return (
            "<tr>" + "".join(f"<{tag}{kind}>{cell}</{tag}>" for kind, cell in zip(kinds, cells, strict=True)) + "</tr>"
        )

    body = "".join(row(line, "td") for line in lines)
    return f'<div class="wide"><table><thead>{row(head, "th")}</thead><tbody>{body}</tbody></table></div>'


def shown(of: dict) -> str:
    return finding.shown(finding.Interval(of["mean"], of["half_width"])).removeprefix("+")


def section(result: dict, plot: bytes) -> str:
    """A finished ablation, as HTML."""
    text = {
        field: html.escape(result[field]) for field in ("title", "question", "finding", "toy", "sentence", "command")
    }
    measures = list(result["measures"])
    means = [[html.escape(name), *(shown(of[measure]) for measure in measures)] for name, of in result["means"].items()]
    seeds = [
        [html.escape(row["setting"]), str(row["seed"]), *(f"{row['measures'][measure]:.4f}" for measure in measures)]
        for row in sorted(result["rows"], key=lambda row: (list(result["means"]).index(row["setting"]), row["seed"]))
    ]
    claims = [
        [
            html.escape(claim["text"]),
            html.escape(claim["source"]),
            word(claim["verdict"]),
            finding.shown(finding.Interval(claim["mean"], claim["half_width"])),
        ]
        for claim in result["claims"]
    ]
    what = "; ".join(f"<b>{html.escape(name)}</b>: {html.escape(words)}" for name, words in result["measures"].items())
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return f"""<section id="{result["name"]}">
<h2>{text["title"]}</h2>
<p>{text["question"]}</p>
<p><b>The report:</b> {text["finding"]} <b>Here:</b> {text["toy"]}</p>
<p>{word(result["verdict"])} {text["sentence"]}</p>
<img alt="{text["title"]}: plot" src="data:image/png;base64,{base64.b64encode(plot).decode()}">
{table(["claim", "by", "verdict", "difference, mean and 95 %"], claims, 3)}
{table(["setting", *measures], means, 1)}
<p class="quiet">Means over {result["num_seeds"]} seeds, and 95 % by Student's t. {what}.</p>
<details><summary>by seed</summary>{table(["setting", "seed", *measures], seeds, 1)}</details>
<p class="quiet"><code>{text["command"]}</code><br>{result["minutes"]:.1f} minutes, {result["num_cpus"]} CPUs;
commit {html.escape(result["commit"])}, Python {result["python"]}, {versions}</p>
</section>"""


def agreeing(result: dict) -> str:
    claims = [claim for claim in result["claims"] if not claim["is_control"]]
    return f"{sum(claim['verdict'] == finding.AGREES for claim in claims)} of {len(claims)}"


def page(found: list[tuple[dict, bytes]]) -> str:
    """All of them, as one file."""
    rows = [
        [f'<a href="#{result["name"]}">{html.escape(result["title"])}</a>', word(result["verdict"]), agreeing(result)]
        for result, _ in found
    ]
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>The report's ablations in miniature</title><style>{STYLE}</style></head><body>
<h1>The report's ablations in miniature</h1>
<p>Toys on the text of the Python standard library, several seeds each. Settings are compared seed by seed: on the same
rows, in the same order, scored on the same others. A claim <i>agrees</i> if all of the 95 % interval of its difference
is where it is claimed to be, <i>disagrees</i> if none of it is, and otherwise <i>cannot be told</i> from the noise of
so few seeds. What holds for toys need not hold for models.</p>
{table(["ablation", "sign", "comparisons that agree"], rows, 2)}
{"".join(section(*one) for one in found)}
</body></html>
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="runs/ablations", help="directory that the ablations wrote to")
    output = pathlib.Path(parser.parse_args().output)
    names = {path.parent.name for path in output.glob(f"*/{finding.RESULT}")}
    if not names:
        raise ValueError(f"{output} has no finished ablation; run one: python experiments/ablations/window.py")
    names = [*(name for name in ORDER if name in names), *sorted(names - set(ORDER))]
    found = [
        (json.loads((output / name / finding.RESULT).read_text()), (output / name / finding.PLOT).read_bytes())
        for name in names
    ]
    (output / PAGE).write_text(page(found), encoding="utf-8")
    print(output / PAGE)


if __name__ == "__main__":
    trials.until_stopped(main)
