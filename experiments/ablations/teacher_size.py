"""A small and a large teacher over short and long horizons: the report's figure 8 in miniature.

    python experiments/ablations/teacher_size.py [--output=runs/ablations] [--seeds=3] [--steps=180]

Two teachers learn the next token, then students learn from each, by the default estimator with M = 32, over a ninth,
a third and all of --steps: each is a run of its own, from the first step to a rate that has fallen to a tenth, as
horizons can only be compared with schedules that end. Seeds are of students and their rows; the teachers are the same
for all. Two CPU cores, some 7 minutes beside other work.

Expected: students of the small teacher are better over the shortest horizon, those of the large one over the longest.
Source: Gemma 3 report, figure 8 (the difference of perplexity goes from +0.002 to -0.006).
"""

import math
import time

import finding
import school
import trials

from gemma3_jax.distill import settings

NAME = "teacher_size"
WIDTHS = {"small": 96, "large": 256}
STUDENT_WIDTH, NUM_LAYERS, NUM_SAMPLES = 96, 3, 32
SHARES = {"shortest": 9, "middle": 3, "longest": 1}  # of --steps: one part in so many
SETTINGS = {f"{size}, {horizon}": (size, horizon) for horizon in SHARES for size in WIDTHS}


def claim(text: str, horizon: str, **limits: float) -> finding.Claim:
    return finding.Claim(
        text=text,
        source="the report's figure 8",
        number=(f"large, {horizon}", "nats"),
        less=(f"small, {horizon}", "nats"),
        **limits,
    )


ABLATION = finding.Ablation(
    name=NAME,
    title="The size of the teacher",
    question="From which teacher does a student learn more, in few tokens and in many?",
    finding="From the small one in few tokens, from the large one in many (report, figure 8).",
    toy=f"students of width {STUDENT_WIDTH}, teachers of {WIDTHS['small']} and {WIDTHS['large']}; M = {NUM_SAMPLES}.",
    measures={
        "nats": "cross-entropy of the next token on held-out rows, nats",
        "tokens": "that the student learned from",
    },
    settings=tuple(SETTINGS),
    claims=(
        claim("the small teacher's students are ahead over the shortest horizon", "shortest", low=0.0),
        claim("the large teacher's students are ahead over the longest horizon", "longest", high=0.0),
    ),
)


def draw(axes, result: dict) -> None:
    tokens = [result["means"][f"large, {horizon}"]["tokens"]["mean"] for horizon in SHARES]
    found = [finding.paired(result, (f"large, {horizon}", "nats"), (f"small, {horizon}", "nats")) for horizon in SHARES]
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.errorbar(
        tokens,
        [one.mean for one in found],
        [one.half_width for one in found],
        marker="o",
        capsize=4,
        label="mean and 95 %",
    )
    axes.set_xscale("log")
    axes.set_xticks(tokens, [f"{number:,.0f}" for number in tokens])
    axes.minorticks_off()
    axes.set_xlabel("tokens the student learns from")
    axes.set_ylabel("loss: large teacher less small (nats a token)")
    axes.legend(title="below 0 the large teacher's student is better")


def main() -> None:
    began = time.monotonic()
    parser = trials.parser(__doc__, seeds=3, steps=180)
    parser.add_argument("--teacher_steps", type=int, default=300)
    flags = trials.parse(parser)
    data = school.make_data(flags.output, flags.library_files)
    of_teachers = {size: school.model(width, NUM_LAYERS) for size, width in WIDTHS.items()}
    of_student = school.model(STUDENT_WIDTH, NUM_LAYERS)
    params = {size: school.teacher(data, of, flags.teacher_steps) for size, of in of_teachers.items()}
    teach = {size: school.logits_of(of) for size, of in of_teachers.items()}
    read, samples = school.logits_of(of_student), settings.Samples(num_samples=NUM_SAMPLES)
    num_steps = {horizon: math.ceil(flags.steps / share) for horizon, share in SHARES.items()}
    schools = {horizon: school.School(data, of_student, num_steps=number) for horizon, number in num_steps.items()}

    def measure(seed, missing, progress):
        for setting in missing:
            size, horizon = SETTINGS[setting]
            held_out, rows = school.rows_of(data, seed, flags.steps)
            student = schools[horizon].by_samples(samples, seed)
            for _, batch in zip(range(num_steps[horizon]), rows, strict=False):
                student.learn(batch, teach[size](params[size], batch))
                progress.step()
            tokens = num_steps[horizon] * school.BATCH_SIZE * school.SEQ_LEN
            yield setting, {"nats": school.nats(read, student.state.params, held_out), "tokens": tokens}

    trials.run(
        ABLATION,
        flags,
        measure,
        asked={"steps": flags.steps, "teacher_steps": flags.teacher_steps, "library_files": flags.library_files},
        steps_of=lambda missing: sum(num_steps[SETTINGS[setting][1]] for setting in missing),
        draw=draw,
        began=began,
    )


if __name__ == "__main__":
    trials.until_stopped(main)
