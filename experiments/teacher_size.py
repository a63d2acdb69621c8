"""A small and a large teacher over short and long horizons: the report's figure 8 in miniature.

    python experiments/teacher_size.py [--output=runs/teacher_size]

The report finds that students of a small teacher are better over short horizons and those of a large one over long
ones. Here two teachers learn the next token, then students of one seed learn from each, by the default estimator with
M = 32, over several horizons: each is a run of its own, from the first step to a rate that has fallen to a tenth, as
horizons can only be compared with schedules that end. Writes a table as JSON lines and a plot (extra [plots]). Some 20
minutes of one CPU core; teacher_size.png is what came out, and README says it in words.
"""

import argparse
import importlib.util
import itertools
import json
import math
import pathlib
import time

import students

from gemma3_jax.distill import settings

WIDTHS = {"small": 96, "large": 256}
STUDENT_WIDTH, NUM_LAYERS, NUM_SAMPLES = 96, 3, 32
NUM_HELD_OUT, LEAST_STEPS = 32, 25


def learn(data, teach, params: dict, num_steps: int, rows_per_step: int) -> dict[str, float]:
    """How well a student of a teacher does after so many steps."""
    of_student, rows = students.model(STUDENT_WIDTH, NUM_LAYERS), students.rows_of(data, rows_per_step)
    school = students.School(data, of_student, num_steps=num_steps, rows_per_step=rows_per_step, decay="cosine")
    held_out = [(batch, teach(params, batch)) for batch in itertools.islice(rows, NUM_HELD_OUT)]
    student, clock = school.by_samples(settings.Samples(num_samples=NUM_SAMPLES)), students.Clock("student", num_steps)
    for number, batch in zip(range(1, num_steps + 1), rows, strict=False):
        student.learn(batch, teach(params, batch))
        clock.tell(number)
    found = students.score(students.logits_of(of_student), student.state.params, held_out)
    return {"tokens": num_steps * rows_per_step * students.ROW_LENGTH, "perplexity": math.exp(found["nats"]), **found}


def plot(scores: list[dict], path: pathlib.Path) -> None:
    """Difference of perplexity (large less small) over the tokens of a horizon, as the report draws it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    by_horizon: dict[int, dict[str, float]] = {}
    for row in scores:
        by_horizon.setdefault(row["tokens"], {})[row["teacher"]] = row["perplexity"]
    tokens = sorted(by_horizon)
    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.plot(tokens, [by_horizon[n]["large"] - by_horizon[n]["small"] for n in tokens], marker="o")
    axes.set_xscale("log")
    axes.set_xticks(tokens, [f"{number:,}" for number in tokens])
    axes.minorticks_off()
    axes.set_xlabel("tokens the student learns from")
    axes.set_ylabel("perplexity: large teacher less small")
    axes.set_title("Below 0 the large teacher's student is better")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="runs/teacher_size", help="directory of the data, the table and the plot")
    parser.add_argument("--teacher_steps", type=int, default=400)
    parser.add_argument("--horizons", type=int, default=5, help=f"{LEAST_STEPS} steps, and each twice the one before")
    parser.add_argument("--rows_per_step", type=int, default=4)
    parser.add_argument("--library_files", type=int, help="make the rows of so many modules only")
    flags = parser.parse_args()
    if importlib.util.find_spec("matplotlib") is None:
        parser.exit(1, "matplotlib is not installed; pip install 'gemma3_jax[plots]'\n")
    directory, started = pathlib.Path(flags.output), time.monotonic()

    data = students.make_data(directory, flags.library_files)
    horizons = [LEAST_STEPS << number for number in range(flags.horizons)]
    first_row = (horizons[-1] + NUM_HELD_OUT) * flags.rows_per_step  # behind those of the students
    students.check_rows(data, first_row + flags.teacher_steps * 8)
    scores = []
    for size, width in WIDTHS.items():
        of_teacher = students.model(width, NUM_LAYERS)
        params = students.train_teacher(
            data, of_teacher, num_steps=flags.teacher_steps, rows_per_step=8, first_row=first_row
        )
        teach = students.logits_of(of_teacher)
        for num_steps in horizons:
            found = learn(data, teach, params, num_steps, flags.rows_per_step)
            scores.append({"teacher": size, **found})
            print(json.dumps(scores[-1]), flush=True)
    (directory / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in scores))
    plot(scores, directory / "teacher_size.png")
    print(f"{(time.monotonic() - started) / 60:.1f} minutes; {directory / 'teacher_size.png'}")


if __name__ == "__main__":
    main()
