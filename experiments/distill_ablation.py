"""Which few numbers should stand for a teacher's word? Every estimator, three sizes, two budgets, and the two ends.

    python experiments/distill_ablation.py [--output=runs/distill_ablation]

One teacher learns the next token of the Python standard library. Then students of one seed learn from it on the same
rows, each from another estimator with M = 8, 32 or 256 numbers a token of V = 2,048; beside them one from the whole
distribution (dense: the best there is) and one from the next token alone. All are scored halfway and at the end, at one
constant rate, on rows that nobody learned from: nats of the next token, KL from the teacher, calibration. It took 14
minutes on two CPU cores that had other work beside it; with --steps=200, 23. The table is printed and kept as JSON
lines; README says what came out and what it decided.
"""

import argparse
import itertools
import json
import pathlib
import time

import students

from gemma3_jax.distill import settings

SIZES = (8, 32, 256)
COLUMNS = ("nats", "kl", "calibration_error", "overconfidence")
TEACHER_WIDTH, STUDENT_WIDTH, NUM_LAYERS = 192, 96, 3
NUM_HELD_OUT = 32  # steps of rows


def make_students(school: students.School, sizes) -> dict[tuple[str, int], students.Student]:
    """By estimator and M; M is 1 for the next token, and V for the whole distribution."""
    found = {("next_token", 1): school.by_next_token()}
    found["dense", students.VOCAB_SIZE] = school.by_samples(settings.Samples(num_samples=students.VOCAB_SIZE))
    for size in sizes:
        for name in settings.ESTIMATORS:
            found[name, size] = school.by_samples(settings.Samples(estimator=name, num_samples=size))
    return found


def print_table(scores: list[dict]) -> None:
    print(f"{'estimator':<22}{'M':>6}{'tokens':>10}" + "".join(f"{column:>19}" for column in COLUMNS))
    for row in scores:
        numbers = "".join(f"{row[column]:>19.4f}" for column in COLUMNS)
        print(f"{row['estimator']:<22}{row['num_samples']:>6}{row['tokens']:>10,}{numbers}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="runs/distill_ablation", help="directory of the data and the table")
    parser.add_argument("--teacher_steps", type=int, default=500)
    parser.add_argument("--steps", type=int, default=96, help="of a student; scored at a half of them, too")
    parser.add_argument("--rows_per_step", type=int, default=4)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="M, numbers a token")
    parser.add_argument("--library_files", type=int, help="make the rows of so many modules only")
    flags = parser.parse_args()
    directory, started = pathlib.Path(flags.output), time.monotonic()

    data = students.make_data(directory, flags.library_files)
    of_teacher, of_student = (students.model(width, NUM_LAYERS) for width in (TEACHER_WIDTH, STUDENT_WIDTH))
    first_row = (flags.steps + NUM_HELD_OUT) * flags.rows_per_step  # behind those of the students
    students.check_rows(data, first_row + flags.teacher_steps * 8)
    params = students.train_teacher(
        data, of_teacher, num_steps=flags.teacher_steps, rows_per_step=8, first_row=first_row
    )
    teach, read = students.logits_of(of_teacher), students.logits_of(of_student)

    school = students.School(data, of_student, num_steps=flags.steps, rows_per_step=flags.rows_per_step)
    rows = students.rows_of(data, flags.rows_per_step)
    held_out = [(batch, teach(params, batch)) for batch in itertools.islice(rows, NUM_HELD_OUT)]
    learning, scores = make_students(school, flags.sizes), []
    clock = students.Clock(f"{len(learning)} students", flags.steps)
    for number, batch in zip(range(1, flags.steps + 1), rows, strict=False):
        logits = teach(params, batch)
        for student in learning.values():
            student.learn(batch, logits)
        clock.tell(number)
        if number in (flags.steps // 2, flags.steps):
            tokens = number * flags.rows_per_step * students.ROW_LENGTH
            for (name, size), student in learning.items():
                found = students.score(read, student.state.params, held_out)
                scores.append({"estimator": name, "num_samples": size, "tokens": tokens, **found})
    of_teacher_itself = students.score(teach, params, held_out)
    scores.append({"estimator": "the teacher", "num_samples": 0, "tokens": 0, **of_teacher_itself})
    (directory / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in scores))
    print_table(scores)
    print(f"{(time.monotonic() - started) / 60:.1f} minutes; the table is also in {directory / 'table.jsonl'}")


if __name__ == "__main__":
    main()
