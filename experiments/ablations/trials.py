"""Settings times seeds, one after the other, each kept as soon as it is done: a run that was stopped goes on.

OUTPUT/trials.jsonl begins with a line that says what was asked; then a line for each setting and seed.
"""

import argparse
import importlib.util
import json
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import finding

KEPT = "trials.jsonl"
# (seed, settings that are not done, progress) -> each setting and its measures, as soon as they are there
Measure = Callable[[int, Sequence[str], "Progress"], Iterator[tuple[str, dict[str, float]]]]


def parser(doc: str, *, seeds: int, steps: int) -> argparse.ArgumentParser:
    """The flags that all ablations have."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--output", default="runs/ablations", help="directory of the data, and of one for each ablation")
    made.add_argument("--seeds", type=int, default=seeds, help="at least 2; of fresh parameters and of rows")
    made.add_argument("--steps", type=int, default=steps, help="that a student learns")
    made.add_argument("--library_files", type=int, help="make the rows of so many modules only")
    return made


def parse(made: argparse.ArgumentParser) -> argparse.Namespace:
    """The flags of the command line. Ends the program if they cannot be."""
    flags = made.parse_args()
    if flags.seeds < 2:
        made.error(f"--seeds is {flags.seeds}; an interval needs at least 2")
    if flags.steps < 1:
        made.error(f"--steps is {flags.steps}; it must be at least 1")
    if importlib.util.find_spec("matplotlib") is None:
        made.exit(1, "matplotlib is not installed; pip install 'gemma3_jax[plots]'\n")
    return flags


class Progress:
    """A line now and then on stderr: how far, and how long yet."""

    SECONDS = 15.0

    def __init__(self, what: str, total: int):
        self._what, self._total, self._done = what, total, 0
        self._started = self._told = time.monotonic()

    def step(self) -> None:
        """One of the total is done."""
        self._done += 1
        now = time.monotonic()
        if now - self._told < self.SECONDS and self._done < self._total:
            return
        self._told = now
        left = (now - self._started) / self._done * (self._total - self._done)
        print(f"{self._what}: step {self._done}/{self._total}, {left:,.0f} s left", file=sys.stderr, flush=True)


class Kept:
    """What is done, of what was asked."""

    def __init__(self, directory: pathlib.Path, asked: dict):
        """Raises: ValueError if the directory has what was measured in another way."""
        self._path, self.rows = directory / KEPT, []
        directory.mkdir(parents=True, exist_ok=True)
        lines = self._path.read_text().splitlines(keepends=True) if self._path.exists() else []
        whole = [line for line in lines if line.endswith("\n")]  # the last is half where the program was killed
        if whole:
            had, *self.rows = map(json.loads, whole)
            if had != asked:
                differ = ", ".join(
                    f"{name} {had.get(name)} there, {asked.get(name)} here"
                    for name in sorted(had.keys() | asked.keys())
                    if had.get(name) != asked.get(name)
                )
                raise ValueError(f"{self._path} was measured otherwise ({differ}); name another --output or remove it")
        else:
            whole = [json.dumps(asked) + "\n"]
        self._path.write_text("".join(whole))

    def missing(self, seed: int, settings: Sequence[str]) -> list[str]:
        done = {row["setting"] for row in self.rows if row["seed"] == seed}
        return [setting for setting in settings if setting not in done]

    def add(self, setting: str, seed: int, measures: dict[str, float], seconds: float) -> None:
        """`seconds` since the one before."""
        row = {"setting": setting, "seed": seed, "measures": measures, "seconds": round(seconds, 3)}
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self.rows.append(row)


def run(
    ablation: finding.Ablation,
    flags: argparse.Namespace,
    measure: Measure,
    *,
    asked: dict,
    steps_of: Callable[[Sequence[str]], int],
    draw: Callable,
    began: float,
) -> None:
    """Measures what is not done yet, writes result and plot, and prints them.

    `asked`: flags that results depend on. `steps_of` says how many steps the missing settings of a seed will take.
    `began`: time.monotonic() of the program's first line.
    Raises: ValueError as `Kept` does.
    """
    directory = pathlib.Path(flags.output) / ablation.name
    kept = Kept(directory, {"toy": ablation.toy, **asked})  # constants of a module that change results stand in its toy
    todo = {seed: kept.missing(seed, ablation.settings) for seed in range(flags.seeds)}
    progress, last = Progress(ablation.name, sum(steps_of(missing) for missing in todo.values() if missing)), began
    for seed, missing in todo.items():
        for setting, measures in measure(seed, missing, progress) if missing else ():
            now = time.monotonic()
            kept.add(setting, seed, measures, now - last)
            last = now
            told = ", ".join(f"{name} {number:.4f}" for name, number in list(measures.items())[:4])
            print(f"{ablation.name}: seed {seed}, {setting}: {told}", file=sys.stderr, flush=True)
    rows = [row for row in kept.rows if row["seed"] < flags.seeds and row["setting"] in ablation.settings]
    result = finding.conclude(ablation, rows, seconds=sum(row["seconds"] for row in rows))
    finding.write(result, directory, draw)
    finding.print_table(result)


def until_stopped(main: Callable[[], None]) -> None:
    """Runs a program: Ctrl-C ends it with 130, and what a user can mend with 1, in a line each."""
    try:
        main()
    except KeyboardInterrupt:
        print("stopped; what is done is kept, and the same command goes on", file=sys.stderr)
        raise SystemExit(130) from None
    except ValueError as error:
        raise SystemExit(str(error)) from error
