"""Which few targets should stand for the teacher's distribution? Seven readings of the report's section 2.2.

    python experiments/ablations/estimator.py [--output=runs/ablations] [--seeds=3] [--steps=64]

One teacher trains on the next token of the Python standard library. Then students are distilled from it on the same
batches, one for each estimator with M = 32 targets a token of V = 2,048. For comparison, one student trains on the
whole distribution (the best case) and one on the next token alone. A seed determines a student and its batches; all
share the teacher. --sizes=8 32 256 makes the longer table of the README here. Two CPU cores, about 10 minutes with
other work running.

Expected: samples are better than the next token, and estimators whose mean is the teacher's distribution are better
than top_k and than renormalized samples. Source: Gemma 3 report, section 2.2 (256 samples, renormalized, with no
comparison), and Anshumann et al. 2025 (arXiv 2503.16870) for the bias.
"""

import time

import results
import students
import trials

from gemma3_jax.distill import settings

NAME = "estimator"
NUM_SAMPLES, DEFAULT = 32, settings.Samples().estimator
MEASURES = {
    "kl": "from the teacher on held-out sequences, nats a token",
    "nats": "cross-entropy of the next token on held-out sequences, nats",
    "calibration_error": "expected, of the most probable token",
    "overconfidence": "nats minus the student's own entropy",
}
TEACHER_EMBED_DIM, STUDENT_EMBED_DIM, NUM_LAYERS = 256, 96, 3
NEXT_TOKEN, WHOLE = "next token alone", "whole distribution"


def ablation(sizes: list[int]) -> results.Ablation:
    """`sizes`: the values of M."""
    better_than_next_token = results.Claim(
        text=f"M = {sizes[0]} of {DEFAULT} is closer to the teacher than the next token alone",
        source="the report's section 2.2",
        value=(f"{DEFAULT}, {sizes[0]}", "kl"),
        baseline=(NEXT_TOKEN, "kl"),
        high=0.0,
    )
    better_than_biased = (
        results.Claim(
            text=f"{name} with M = {size} is farther from the teacher than {DEFAULT}",
            source="Anshumann et al. 2025",
            value=(f"{name}, {size}", "kl"),
            baseline=(f"{DEFAULT}, {size}", "kl"),
            low=0.0,
        )
        for name in ("top_k", "sampled")
        for size in sizes
    )
    return results.Ablation(
        name=NAME,
        title="The estimator of the teacher's distribution",
        question="Which few targets a token should stand for the teacher's distribution?",
        finding="256 ids sampled by probability, renormalized, with no comparison (report, section 2.2).",
        toy=f"students of width {STUDENT_EMBED_DIM}, a teacher of {TEACHER_EMBED_DIM}, V = {students.VOCAB_SIZE:,}.",
        measures=MEASURES,
        settings=(WHOLE, *(f"{name}, {size}" for size in sizes for name in settings.ESTIMATORS), NEXT_TOKEN),
        claims=(better_than_next_token, *better_than_biased),
    )


def plot(axes, summary: dict) -> None:
    names = [name for name in summary["means"] if name != WHOLE]
    intervals = [results.paired_difference(summary, (name, "kl"), (WHOLE, "kl")) for name in names]
    estimators = [name.split(",")[0] for name in names]
    colors = ["tab:blue" if one in settings.UNBIASED else "tab:orange" for one in estimators[:-1]] + ["grey"]
    for number, (interval, color) in enumerate(zip(intervals, colors, strict=True)):
        axes.errorbar([interval.mean], [number], xerr=[interval.half_width], fmt="o", capsize=4, color=color)
    axes.axvline(0, color="grey", linewidth=0.8)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xscale("symlog", linthresh=0.01)
    axes.set_xlabel("KL minus that with the whole distribution (nats a token)")
    axes.set_title("blue: unbiased; orange: biased", fontsize=10)


def main() -> None:
    started = time.monotonic()
    parser = trials.make_parser(__doc__, seeds=3, steps=64)
    parser.add_argument("--teacher_steps", type=int, default=300)
    parser.add_argument("--sizes", type=int, nargs="+", default=[NUM_SAMPLES], help="M, targets a token")
    flags = trials.parse(parser)
    data = students.make_data(flags.output, flags.library_files)
    teacher_model, student_model = (
        students.toy_model(embed_dim, NUM_LAYERS) for embed_dim in (TEACHER_EMBED_DIM, STUDENT_EMBED_DIM)
    )
    params = students.teacher_params(data, teacher_model, flags.teacher_steps)
    teacher_logits, student_logits = students.make_logits(teacher_model), students.make_logits(student_model)
    factory = students.StudentFactory(data, student_model, num_steps=flags.steps)

    def make_student(setting: str, seed: int) -> students.Student:
        if setting == NEXT_TOKEN:
            return factory.next_token(seed)
        if setting == WHOLE:
            return factory.distilled(settings.Samples(num_samples=students.VOCAB_SIZE), seed)
        name, size = setting.split(", ")
        return factory.distilled(settings.Samples(estimator=name, num_samples=int(size)), seed)

    def measure(seed, missing, progress):
        """All students of a seed train together, so that the teacher runs once per batch."""
        held_out, batches = students.student_batches(data, seed, flags.steps, num_held_out=flags.held_out)
        by_setting = {setting: make_student(setting, seed) for setting in missing}
        for batch in batches:
            logits = teacher_logits(params, batch)
            for student in by_setting.values():
                student.train_step(batch, logits)
                progress.step()
        with_logits = [(batch, teacher_logits(params, batch)) for batch in held_out]
        for setting, student in by_setting.items():
            scores = students.score(student_logits, student.state.params, with_logits)
            yield setting, {name: scores[name] for name in MEASURES}

    trials.run(
        ablation(flags.sizes),
        flags,
        measure,
        options={
            "steps": flags.steps,
            "teacher_steps": flags.teacher_steps,
            "held_out": flags.held_out,
            "library_files": flags.library_files,
        },
        num_steps_of=lambda missing: len(missing) * flags.steps,
        plot=plot,
        started=started,
    )


if __name__ == "__main__":
    trials.run_main(main)
