"""The results of an ablation: measures by setting and seed, claims about them, and one verdict.

Differences are paired: students with the same seed train on the same batches in the same order, and are scored on the
same held-out batches. What a seed does to all settings cancels in their difference.
"""

import dataclasses
import importlib.metadata
import json
import math
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Sequence

import scipy.special

AGREES, DISAGREES, UNCLEAR = "agrees", "disagrees", "unclear"
RESULT, PLOT = "result.json", "plot.png"


@dataclasses.dataclass(frozen=True)
class Interval:
    """The 95 % confidence interval of a mean over seeds: `mean` plus and minus `half_width`."""

    mean: float
    half_width: float

    @property
    def low(self) -> float:
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        return self.mean + self.half_width


def confidence_interval(values: Sequence[float]) -> Interval:
    """By Student's t, as seeds are few. Raises: ValueError if there are fewer than two values."""
    if len(values) < 2:
        raise ValueError(f"{len(values)} seeds have no deviation; an interval needs at least 2: --seeds=2")
    mean = math.fsum(values) / len(values)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return Interval(mean, float(scipy.special.stdtrit(len(values) - 1, 0.975)) * deviation / math.sqrt(len(values)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
    """That `value` minus `baseline`, both of the same seed, lies between `low` and `high`."""

    text: str
    source: str  # the report and its figure, or another paper
    value: tuple[str, str]  # (setting, measure)
    baseline: tuple[str, str]
    low: float = -math.inf
    high: float = math.inf
    is_control: bool = False  # an effect that the toy must show before its other claims count


@dataclasses.dataclass(frozen=True)
class JudgedClaim:
    """A claim, its difference for each seed, and the verdict on it."""

    claim: Claim
    differences: list[float]
    interval: Interval
    verdict: str


def judge(claim: Claim, rows: Sequence[dict]) -> JudgedClaim:
    """AGREES if the whole interval of the difference is within the claim's limits, DISAGREES if none of it is."""
    measures = {(row["setting"], row["seed"]): row["measures"] for row in rows}
    seeds = sorted({row["seed"] for row in rows})

    def value_of(setting_and_measure: tuple[str, str], seed: int) -> float:
        setting, measure = setting_and_measure
        return measures[setting, seed][measure]

    differences = [value_of(claim.value, seed) - value_of(claim.baseline, seed) for seed in seeds]
    interval = confidence_interval(differences)
    if claim.low <= interval.low and interval.high <= claim.high:
        return JudgedClaim(claim, differences, interval, AGREES)
    is_outside = interval.high < claim.low or claim.high < interval.low
    return JudgedClaim(claim, differences, interval, DISAGREES if is_outside else UNCLEAR)


def overall_verdict(judged: Sequence[JudgedClaim]) -> tuple[str, str]:
    """The verdict on all claims together, and one sentence that gives the reason."""

    def listed(some: Sequence[JudgedClaim]) -> str:
        return "; ".join(f"{one.claim.text} ({format_interval(one.interval)})" for one in some)

    failed_controls = [one for one in judged if one.claim.is_control and one.verdict != AGREES]
    claims = [one for one in judged if not one.claim.is_control]
    by_verdict = {
        verdict: [one for one in claims if one.verdict == verdict] for verdict in (AGREES, DISAGREES, UNCLEAR)
    }
    sources = " and ".join(dict.fromkeys(one.claim.source for one in claims))
    counts = {verdict: f"in {len(some)} of {len(claims)} comparisons" for verdict, some in by_verdict.items()}
    if by_verdict[DISAGREES]:
        verdict, start = DISAGREES, f"The sign disagrees with {sources} {counts[DISAGREES]}; expected: "
    elif failed_controls:
        return UNCLEAR, f"The sign is unclear, as the toy does not pass its control: {listed(failed_controls)}."
    elif by_verdict[UNCLEAR]:
        verdict, start = UNCLEAR, f"The sign is unclear, within seed noise, {counts[UNCLEAR]} with {sources}: "
    else:
        return AGREES, f"The sign agrees with {sources}: {listed(claims)}."
    others = {other: some for other, some in by_verdict.items() if some and other != verdict}
    rest = "".join(f"; {len(some)} {'agree' if other == AGREES else 'unclear'}" for other, some in others.items())
    return verdict, start + listed(by_verdict[verdict]) + rest + "."


def format_interval(interval: Interval) -> str:
    """+0.0123 ± 0.0045: with as many decimals as the half-width needs for two digits."""
    if not interval.half_width:
        return f"{interval.mean:+.3g} ± 0"
    num_decimals = min(6, max(0, 1 - math.floor(math.log10(interval.half_width))))
    return f"{interval.mean:+.{num_decimals}f} ± {interval.half_width:.{num_decimals}f}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ablation:
    """The question, the report's answer, and how it is measured here."""

    name: str
    title: str
    question: str
    finding: str  # of the report, with its figure
    toy: str  # the models that are trained here, in one sentence
    measures: dict[str, str]  # name -> description, with its unit
    settings: tuple[str, ...]
    claims: tuple[Claim, ...]


def summarize(ablation: Ablation, rows: Sequence[dict], *, seconds: float) -> dict:
    """The content of result.json. `rows`: {setting, seed, measures} of every setting and seed."""
    judged = [judge(claim, rows) for claim in ablation.claims]
    verdict, sentence = overall_verdict(judged)
    means = {
        setting: {
            measure: dataclasses.asdict(
                confidence_interval([row["measures"][measure] for row in rows if row["setting"] == setting])
            )
            for measure in ablation.measures
        }
        for setting in ablation.settings
    }
    texts = {field: getattr(ablation, field) for field in ("name", "title", "question", "finding", "toy", "measures")}
    return (
        texts
        | {
            "verdict": verdict,
            "sentence": sentence,
            "num_seeds": len({row["seed"] for row in rows}),
            "rows": list(rows),
            "means": means,
            "claims": [
                {
                    "text": one.claim.text,
                    "source": one.claim.source,
                    "is_control": one.claim.is_control,
                    "number": list(one.claim.value),  # the keys of earlier result files
                    "less": list(one.claim.baseline),
                    "low": None if math.isinf(one.claim.low) else one.claim.low,
                    "high": None if math.isinf(one.claim.high) else one.claim.high,
                    "differences": one.differences,
                    **dataclasses.asdict(one.interval),
                    "verdict": one.verdict,
                }
                for one in judged
            ],
            "command": " ".join(["python", f"experiments/ablations/{ablation.name}.py", *sys.argv[1:]]),
            "minutes": seconds / 60,
            "num_cpus": os.cpu_count(),
            "versions": {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "numpy")},
            "python": sys.version.split()[0],
            "commit": _commit(),
        }
    )


def _commit() -> str:
    """The commit of this checkout, with + if files differ from it; "unknown" outside of a checkout."""
    directory = pathlib.Path(__file__).parent
    command = ["git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"]
    try:
        return subprocess.run(command, cwd=directory, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git, or an unpacked archive
        return "unknown"


def plot_intervals(axes, positions: Sequence, intervals: Sequence[Interval], *, label: str, marker: str = "o-") -> None:
    """Draws a point for each mean, and its interval as a bar."""
    half_widths = [interval.half_width for interval in intervals]
    axes.errorbar(positions, [interval.mean for interval in intervals], half_widths, fmt=marker, capsize=4, label=label)


def write(summary: dict, directory: pathlib.Path, plot: Callable) -> None:
    """Writes result.json, and plot.png as `plot(axes, summary)` draws it. Needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    (directory / RESULT).write_text(json.dumps(summary, indent=1) + "\n")
    figure, axes = pyplot.subplots(figsize=(6.4, 4.2), layout="constrained")
    plot(axes, summary)
    axes.grid(alpha=0.3)
    figure.savefig(directory / PLOT, dpi=120)
    pyplot.close(figure)


def paired_difference(summary: dict, value: tuple[str, str], baseline: tuple[str, str]) -> Interval:
    """The interval of `value` minus `baseline`, each a (setting, measure), paired by seed."""
    return judge(Claim(text="", source="", value=value, baseline=baseline), summary["rows"]).interval


def print_table(summary: dict) -> None:
    """Prints the means of each setting, the claims, and the sentence."""
    name_width = max(len(setting) for setting in summary["means"])
    print(f"{'':<{name_width}}" + "".join(f"{measure:>26}" for measure in summary["measures"]))
    for setting, measures in summary["means"].items():
        cells = (f"{mean['mean']:.4f} ± {mean['half_width']:.4f}" for mean in measures.values())
        print(f"{setting:<{name_width}}" + "".join(f"{cell:>26}" for cell in cells))
    for claim in summary["claims"]:
        interval = Interval(claim["mean"], claim["half_width"])
        print(f"{claim['verdict']}: {claim['text']}: {format_interval(interval)}")
    print(f"{summary['sentence']} ({summary['num_seeds']} seeds, {summary['minutes']:.1f} minutes)")
