"""What a finished ablation is: numbers by setting and seed, what was claimed of them, and one sentence on the sign.

Settings are compared seed by seed: those of one seed learn from the same rows in the same order and are scored on the
same others, so that what a seed does to all of them falls out of their difference.
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

AGREES, DISAGREES, UNCLEAR = "agrees", "disagrees", "cannot be told"
RESULT, PLOT = "result.json", "plot.png"


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean over seeds, and where the mean of all seeds is 95 times of 100: `half_width` to either side."""

    mean: float
    half_width: float

    @property
    def low(self) -> float:
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        return self.mean + self.half_width


def interval(values: Sequence[float]) -> Interval:
    """By Student's t, as seeds are few. Raises: ValueError if there is one value, or none."""
    if len(values) < 2:
        raise ValueError(f"{len(values)} seeds have no deviation; an interval needs at least 2: --seeds=2")
    mean = math.fsum(values) / len(values)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return Interval(mean, float(scipy.special.stdtrit(len(values) - 1, 0.975)) * deviation / math.sqrt(len(values)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
    """That the difference of two numbers lies between `low` and `high`, and who says so.

    The numbers are measures of settings, of one seed each time.
    """

    text: str
    source: str  # the report and its figure, or who else
    number: tuple[str, str]  # (setting, measure)
    less: tuple[str, str]
    low: float = -math.inf
    high: float = math.inf
    is_control: bool = False  # not a finding to be told, but what a toy has to show that could tell it


@dataclasses.dataclass(frozen=True)
class Judged:
    """A claim, its difference by seed, and whether the numbers bear it out."""

    claim: Claim
    differences: list[float]
    interval: Interval
    verdict: str


def judge(claim: Claim, rows: Sequence[dict]) -> Judged:
    """AGREES if all of the interval of the paired difference is where it is claimed to be, DISAGREES if none of it."""
    by_place = {(row["setting"], row["seed"]): row["measures"] for row in rows}
    seeds = sorted({row["seed"] for row in rows})

    def value(place: tuple[str, str], seed: int) -> float:
        setting, measure = place
        return by_place[setting, seed][measure]

    differences = [value(claim.number, seed) - value(claim.less, seed) for seed in seeds]
    found = interval(differences)
    if claim.low <= found.low and found.high <= claim.high:
        return Judged(claim, differences, found, AGREES)
    apart = found.high < claim.low or claim.high < found.low
    return Judged(claim, differences, found, DISAGREES if apart else UNCLEAR)


def verdict(judged: Sequence[Judged]) -> tuple[str, str]:
    """The verdict on all claims together, and one sentence that says why."""

    def told(of: Sequence[Judged]) -> str:
        return "; ".join(f"{one.claim.text} ({shown(one.interval)})" for one in of)

    blind = [one for one in judged if one.claim.is_control and one.verdict != AGREES]
    claims = [one for one in judged if not one.claim.is_control]
    by_word = {word: [one for one in claims if one.verdict == word] for word in (AGREES, DISAGREES, UNCLEAR)}
    sources = " and ".join(dict.fromkeys(one.claim.source for one in claims))
    share = {word: f"in {len(of)} of {len(claims)} comparisons" for word, of in by_word.items()}
    if by_word[DISAGREES]:
        word, sentence = DISAGREES, f"The sign disagrees with {sources} {share[DISAGREES]}; expected was that "
    elif blind:
        sentence = "The sign cannot be told, as the toy does not show what one must that could tell it, that "
        return UNCLEAR, sentence + told(blind) + "."
    elif by_word[UNCLEAR]:
        word, sentence = UNCLEAR, f"The sign cannot be told from seed noise {share[UNCLEAR]} with {sources}: that "
    else:
        return AGREES, f"The sign agrees with {sources}: {told(claims)}."
    others = {other: of for other, of in by_word.items() if of and other != word}
    rest = "".join(f"; {len(of)} {'agree' if other == AGREES else 'cannot be told'}" for other, of in others.items())
    return word, sentence + told(by_word[word]) + rest + "."


def shown(of: Interval) -> str:
    """+0.0123 ± 0.0045, both to the places in which the second has two digits."""
    if not of.half_width:
        return f"{of.mean:+.3g} ± 0"
    places = min(6, max(0, 1 - math.floor(math.log10(of.half_width))))
    return f"{of.mean:+.{places}f} ± {of.half_width:.{places}f}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ablation:
    """What is asked, what was found by others, and how it is measured here."""

    name: str
    title: str
    question: str
    finding: str  # of the report, with its figure
    toy: str  # what was trained here, in a sentence
    measures: dict[str, str]  # name -> what it is, with its unit
    settings: tuple[str, ...]
    claims: tuple[Claim, ...]


def conclude(ablation: Ablation, rows: Sequence[dict], *, seconds: float) -> dict:
    """All that is known, for JSON: `rows` are {setting, seed, measures} of every setting and seed."""
    judged = [judge(claim, rows) for claim in ablation.claims]
    word, sentence = verdict(judged)
    means = {
        setting: {
            measure: dataclasses.asdict(
                interval([row["measures"][measure] for row in rows if row["setting"] == setting])
            )
            for measure in ablation.measures
        }
        for setting in ablation.settings
    }
    about = {field: getattr(ablation, field) for field in ("name", "title", "question", "finding", "toy", "measures")}
    return about | {
        "verdict": word,
        "sentence": sentence,
        "num_seeds": len({row["seed"] for row in rows}),
        "rows": list(rows),
        "means": means,
        "claims": [
            {
                "text": one.claim.text,
                "source": one.claim.source,
                "is_control": one.claim.is_control,
                "number": list(one.claim.number),
                "less": list(one.claim.less),
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


def _commit() -> str:
    """Of the checkout, with + where files differ from it; unknown outside of one."""
    here = pathlib.Path(__file__).parent
    try:
        asked = ["git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"]
        return subprocess.run(asked, cwd=here, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git, or an unpacked archive
        return "unknown"


def write(result: dict, directory: pathlib.Path, draw: Callable) -> None:
    """result.json, and plot.png as `draw(axes, result)` fills it. Needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    (directory / RESULT).write_text(json.dumps(result, indent=1) + "\n")
    figure, axes = pyplot.subplots(figsize=(6.4, 4.2), layout="constrained")
    draw(axes, result)
    axes.grid(alpha=0.3)
    figure.savefig(directory / PLOT, dpi=120)
    pyplot.close(figure)


def paired(result: dict, number: tuple[str, str], less: tuple[str, str]) -> Interval:
    """The difference of two measures of settings, seed by seed, of a result."""
    return judge(Claim(text="", source="", number=number, less=less), result["rows"]).interval


def print_table(result: dict) -> None:
    """Means by setting, the claims, and the sentence."""
    width = max(len(setting) for setting in result["means"])
    print(f"{'':<{width}}" + "".join(f"{measure:>26}" for measure in result["measures"]))
    for setting, measures in result["means"].items():
        cells = (f"{of['mean']:.4f} ± {of['half_width']:.4f}" for of in measures.values())
        print(f"{setting:<{width}}" + "".join(f"{cell:>26}" for cell in cells))
    for claim in result["claims"]:
        print(f"{claim['verdict']}: {claim['text']}: {shown(Interval(claim['mean'], claim['half_width']))}")
    print(f"{result['sentence']} ({result['num_seeds']} seeds, {result['minutes']:.1f} minutes)")
