"""Runs an ablation: every setting with every seed, one after the other. Each result is saved as soon as it is there.

The first line of OUTPUT/NAME/trials.jsonl has the options that results depend on; each further line has the result of
one setting and seed. A run that was stopped resumes from this file.
"""

import argparse
import importlib.util
import json
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import results

TRIALS = "trials.jsonl"
# (seed, settings without a result, progress) -> each setting and its measures, as soon as they are there
Measure = Callable[[int, Sequence[str], "Progress"], Iterator[tuple[str, dict[str, float]]]]


def make_parser(doc: str, *, seeds: int, steps: int) -> argparse.ArgumentParser:
    """A parser with the flags that all ablations share."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="runs/ablations", help="directory of the data and of every ablation")
    parser.add_argument("--seeds", type=int, default=seeds, help="at least 2; each has its own parameters and batches")
    parser.add_argument("--steps", type=int, default=steps, help="training steps of a student")
    parser.add_argument("--held_out", type=int, default=32, help="held-out batches that a student is scored on")
    parser.add_argument("--library_files", type=int, help="make the data from this many modules only")
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The flags of the command line. Exits if they are invalid or matplotlib is missing."""
    flags = parser.parse_args()
    if flags.seeds < 2:
        parser.error(f"--seeds is {flags.seeds}; an interval needs at least 2")
    for name in ("steps", "held_out"):
        if getattr(flags, name) < 1:
            parser.error(f"--{name} is {getattr(flags, name)}; it must be at least 1")
    if importlib.util.find_spec("matplotlib") is None:
        parser.exit(1, "matplotlib is not installed; pip install 'gemma3_jax[plots]'\n")
    return flags


class Progress:
    """Prints the steps done and the time left to stderr, every SECONDS at most."""

    SECONDS = 15.0

    def __init__(self, name: str, num_steps: int):
        self._name, self._num_steps, self._num_done = name, num_steps, 0
        self._started = self._last_print = time.monotonic()

    def step(self) -> None:
        """Counts one step."""
        self._num_done += 1
        now = time.monotonic()
        if now - self._last_print < self.SECONDS and self._num_done < self._num_steps:
            return
        self._last_print = now
        left = (now - self._started) / self._num_done * (self._num_steps - self._num_done)
        done = f"{self._num_done}/{self._num_steps}"
        print(f"{self._name}: step {done}, {left:,.0f} s left", file=sys.stderr, flush=True)


class Results:
    """The results of an ablation so far, in a file that is appended to."""

    def __init__(self, directory: pathlib.Path, options: dict):
        """Raises: ValueError if the directory has results with other options."""
        self._path, self.rows = directory / TRIALS, []
        directory.mkdir(parents=True, exist_ok=True)
        lines = self._path.read_text().splitlines(keepends=True) if self._path.exists() else []
        complete = [line for line in lines if line.endswith("\n")]  # a killed program leaves half a line
        if complete:
            saved_options, *self.rows = map(json.loads, complete)
            if saved_options != options:
                differences = ", ".join(
                    f"{name} {saved_options.get(name)} there, {options.get(name)} here"
                    for name in sorted(saved_options.keys() | options.keys())
                    if saved_options.get(name) != options.get(name)
                )
                raise ValueError(
                    f"{self._path} has results with other options ({differences}); name another --output or remove it"
                )
        else:
            complete = [json.dumps(options) + "\n"]
        self._path.write_text("".join(complete))

    def missing(self, seed: int, settings: Sequence[str]) -> list[str]:
        """The settings that have no result with this seed."""
        done = {row["setting"] for row in self.rows if row["seed"] == seed}
        return [setting for setting in settings if setting not in done]

    def add(self, setting: str, seed: int, measures: dict[str, float], seconds: float) -> None:
        """Appends a result. `seconds`: since the previous one."""
        row = {"setting": setting, "seed": seed, "measures": measures, "seconds": round(seconds, 3)}
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self.rows.append(row)


def run(
    ablation: results.Ablation,
    flags: argparse.Namespace,
    measure: Measure,
    *,
    options: dict,
    num_steps_of: Callable[[Sequence[str]], int],
    plot: Callable,
    started: float,
) -> None:
    """Measures the missing results, then writes the summary and its plot, and prints the summary.

    `options`: the flags that results depend on. `num_steps_of`: training steps that a seed's missing settings take.
    `plot`: as for `results.write`. `started`: time.monotonic() at the start of the program.
    Raises: ValueError as `Results` does.
    """
    directory = pathlib.Path(flags.output) / ablation.name
    saved = Results(directory, {"toy": ablation.toy, **options})  # `toy` names the constants that change results
    missing = {seed: saved.missing(seed, ablation.settings) for seed in range(flags.seeds)}
    num_steps = sum(num_steps_of(settings) for settings in missing.values() if settings)
    progress, last_time = Progress(ablation.name, num_steps), started
    for seed, settings in missing.items():
        for setting, measures in measure(seed, settings, progress) if settings else ():
            now = time.monotonic()
            saved.add(setting, seed, measures, now - last_time)
            last_time = now
            first_measures = ", ".join(f"{name} {value:.4f}" for name, value in list(measures.items())[:4])
            print(f"{ablation.name}: seed {seed}, {setting}: {first_measures}", file=sys.stderr, flush=True)
    rows = [row for row in saved.rows if row["seed"] < flags.seeds and row["setting"] in ablation.settings]
    summary = results.summarize(ablation, rows, seconds=sum(row["seconds"] for row in rows))
    results.write(summary, directory, plot)
    results.print_table(summary)


def run_main(main: Callable[[], None]) -> None:
    """Runs `main`: Ctrl-C exits with status 130, a ValueError with status 1, each with one line on stderr."""
    try:
        main()
    except KeyboardInterrupt:
        print("stopped; all results so far are saved, and the same command resumes", file=sys.stderr)
        raise SystemExit(130) from None
    except ValueError as error:
        raise SystemExit(str(error)) from error
