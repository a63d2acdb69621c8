"""Which few numbers should stand for a teacher's word? The report's section 2.2, read in seven ways.

    python experiments/ablations/estimator.py [--output=runs/ablations] [--seeds=3] [--steps=64]

One teacher learns the next token of the Python standard library. Then students learn from it on the same rows, each
from another estimator with M = 32 numbers a token of V = 2,048; beside them one from the whole distribution (the best
there is) and one from the next token alone. Seeds are of students and their rows; the teacher is the same for all.
--sizes=8 32 256 is the longer table in the README here. Two CPU cores, some 10 minutes beside other work.

Expected: samples are better than the next token, and those whose mean is the teacher's distribution better than top_k
and than samples renormalised. Source: Gemma 3 report, section 2.2 (256 samples, renormalised; nothing is compared),
and Anshumann et al. 2025 (arXiv 2503.16870) for the bias.
"""

import time

import finding
import school
import trials

from gemma3_jax.distill import settings

NAME = "estimator"
SIZE, DEFAULT = 32, settings.Samples().estimator
COLUMNS = ("kl", "nats", "calibration_error", "overconfidence")
TEACHER_WIDTH, STUDENT_WIDTH, NUM_LAYERS = 256, 96, 3
NEXT_TOKEN, DENSE = "next token alone", "whole distribution"


def ablation(sizes: list[int]) -> finding.Ablation:
    first = f"{DEFAULT}, {sizes[0]}"
    than_next_token = finding.Claim(
        text=f"M = {sizes[0]} by {DEFAULT} teaches more than the next token alone",
        source="the report's section 2.2",
        number=(first, "kl"),
        less=(NEXT_TOKEN, "kl"),
        high=0.0,
    )
    than_biased = (
        finding.Claim(
            text=f"{name} with M = {size} is farther from the teacher than {DEFAULT}",
            source="Anshumann et al. 2025",
            number=(f"{name}, {size}", "kl"),
            less=(f"{DEFAULT}, {size}", "kl"),
            low=0.0,
        )
        for name in ("top_k", "sampled")
        for size in sizes
    )
    return finding.Ablation(
        name=NAME,
        title="The estimator of the teacher's distribution",
        question="Which few numbers a token should stand for what the teacher says?",
        finding="256 ids sampled by probability, renormalised; compared with nothing (report, section 2.2).",
        toy=f"students of width {STUDENT_WIDTH}, a teacher of {TEACHER_WIDTH}, V = {school.VOCAB_SIZE:,}.",
        measures={
            "kl": "from the teacher on held-out rows, nats a token",
            "nats": "cross-entropy of the next token on held-out rows, nats",
            "calibration_error": "expected, of the most probable token",
            "overconfidence": "nats less the student's own entropy",
        },
        settings=(DENSE, *(f"{name}, {size}" for size in sizes for name in settings.ESTIMATORS), NEXT_TOKEN),
        claims=(than_next_token, *than_biased),
    )


def draw(axes, result: dict) -> None:
    names = [name for name in result["means"] if name != DENSE]
    found = [finding.paired(result, (name, "kl"), (DENSE, "kl")) for name in names]
    kinds = [name.split(",")[0] for name in names]
    colors = ["tab:blue" if kind in settings.UNBIASED else "tab:orange" for kind in kinds[:-1]] + ["grey"]
    for number, (one, color) in enumerate(zip(found, colors, strict=True)):
        axes.errorbar([one.mean], [number], xerr=[one.half_width], fmt="o", capsize=4, color=color)
    axes.axvline(0, color="grey", linewidth=0.8)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xscale("symlog", linthresh=0.01)
    axes.set_xlabel("KL less that from the whole distribution (nats a token)")
    axes.set_title("blue: the mean is the teacher's distribution; orange: it is not", fontsize=10)


def main() -> None:
    began = time.monotonic()
    parser = trials.parser(__doc__, seeds=3, steps=64)
    parser.add_argument("--teacher_steps", type=int, default=300)
    parser.add_argument("--sizes", type=int, nargs="+", default=[SIZE], help="M, numbers a token")
    flags = trials.parse(parser)
    data = school.make_data(flags.output, flags.library_files)
    of_teacher, of_student = (school.model(width, NUM_LAYERS) for width in (TEACHER_WIDTH, STUDENT_WIDTH))
    params = school.teacher(data, of_teacher, flags.teacher_steps)
    teach, read = school.logits_of(of_teacher), school.logits_of(of_student)
    made = school.School(data, of_student, num_steps=flags.steps)

    def begin(setting: str, seed: int) -> school.Student:
        if setting == NEXT_TOKEN:
            return made.by_next_token(seed)
        if setting == DENSE:
            return made.by_samples(settings.Samples(num_samples=school.VOCAB_SIZE), seed)
        name, size = setting.split(", ")
        return made.by_samples(settings.Samples(estimator=name, num_samples=int(size)), seed)

    def measure(seed, missing, progress):
        """All of a seed side by side, as the teacher's pass is shared."""
        held_out, rows = school.rows_of(data, seed, flags.steps)
        students = {setting: begin(setting, seed) for setting in missing}
        for batch in rows:
            logits = teach(params, batch)
            for student in students.values():
                student.learn(batch, logits)
                progress.step()
        told = [(batch, teach(params, batch)) for batch in held_out]
        for setting, student in students.items():
            found = school.score(read, student.state.params, told)
            yield setting, {column: found[column] for column in COLUMNS}

    trials.run(
        ablation(flags.sizes),
        flags,
        measure,
        asked={"steps": flags.steps, "teacher_steps": flags.teacher_steps, "library_files": flags.library_files},
        steps_of=lambda missing: len(missing) * flags.steps,
        draw=draw,
        began=began,
    )


if __name__ == "__main__":
    trials.until_stopped(main)
