"""A small and a large teacher over short and long horizons: the report's figure 8 in miniature.

    python experiments/ablations/teacher_size.py [--output=runs/ablations] [--seeds=3] [--steps=180]

Two teachers train on the next token. Then students are distilled from each, by the default estimator with M = 32, for
a ninth, a third and all of --steps. Each is a run of its own, whose learning rate decays to a tenth at its last step,
as horizons can only be compared with schedules that end. A seed determines a student and its batches; all share the
teachers. Two CPU cores, about 7 minutes with other work running.

Expected: students of the small teacher are better over the shortest horizon, those of the large one over the longest.
Source: Gemma 3 report, figure 8 (the difference of perplexity goes from +0.002 to -0.006).
"""

import math
import time

import results
import students
import trials

from gemma3_jax.distill import settings

NAME = "teacher_size"
TEACHER_EMBED_DIMS = {"small": 96, "large": 256}
STUDENT_EMBED_DIM, NUM_LAYERS, NUM_SAMPLES = 96, 3, 32
HORIZONS = {"shortest": 9, "middle": 3, "longest": 1}  # name -> what --steps is divided by
SETTINGS = {f"{size}, {horizon}": (size, horizon) for horizon in HORIZONS for size in TEACHER_EMBED_DIMS}


def claim(text: str, horizon: str, **limits: float) -> results.Claim:
    return results.Claim(
        text=text,
        source="the report's figure 8",
        value=(f"large, {horizon}", "nats"),
        baseline=(f"small, {horizon}", "nats"),
        **limits,
    )


ABLATION = results.Ablation(
    name=NAME,
    title="The size of the teacher",
    question="Which teacher makes the better student, over few tokens and over many?",
    finding="The small one over few tokens, the large one over many (report, figure 8).",
    toy=f"students of width {STUDENT_EMBED_DIM}, teachers of {TEACHER_EMBED_DIMS['small']} and "
    f"{TEACHER_EMBED_DIMS['large']}; M = {NUM_SAMPLES}.",
    measures={
        "nats": "cross-entropy of the next token on held-out sequences, nats",
        "tokens": "that the student trained on",
    },
    settings=tuple(SETTINGS),
    claims=(
        claim("the small teacher's students are ahead over the shortest horizon", "shortest", low=0.0),
        claim("the large teacher's students are ahead over the longest horizon", "longest", high=0.0),
    ),
)


def plot(axes, summary: dict) -> None:
    tokens = [summary["means"][f"large, {horizon}"]["tokens"]["mean"] for horizon in HORIZONS]
    intervals = [
        results.paired_difference(summary, (f"large, {horizon}", "nats"), (f"small, {horizon}", "nats"))
        for horizon in HORIZONS
    ]
    axes.axhline(0, color="grey", linewidth=0.8)
    results.plot_intervals(axes, tokens, intervals, label="mean and 95 %")
    axes.set_xscale("log")
    axes.set_xticks(tokens, [f"{number:,.0f}" for number in tokens])
    axes.minorticks_off()
    axes.set_xlabel("training tokens of the student")
    axes.set_ylabel("loss: large teacher minus small (nats a token)")
    axes.legend(title="below 0 the large teacher's student is better")


def main() -> None:
    started = time.monotonic()
    parser = trials.make_parser(__doc__, seeds=3, steps=180)
    parser.add_argument("--teacher_steps", type=int, default=300)
    flags = trials.parse(parser)
    data = students.make_data(flags.output, flags.library_files)
    teacher_models = {size: students.toy_model(dim, NUM_LAYERS) for size, dim in TEACHER_EMBED_DIMS.items()}
    student_model = students.toy_model(STUDENT_EMBED_DIM, NUM_LAYERS)
    params = {size: students.teacher_params(data, model, flags.teacher_steps) for size, model in teacher_models.items()}
    teacher_logits = {size: students.make_logits(model) for size, model in teacher_models.items()}
    student_logits, samples = students.make_logits(student_model), settings.Samples(num_samples=NUM_SAMPLES)
    num_steps = {horizon: math.ceil(flags.steps / divisor) for horizon, divisor in HORIZONS.items()}
    factories = {
        horizon: students.StudentFactory(data, student_model, num_steps=number) for horizon, number in num_steps.items()
    }

    def measure(seed, missing, progress):
        for setting in missing:
            size, horizon = SETTINGS[setting]
            held_out, batches = students.student_batches(data, seed, flags.steps, num_held_out=flags.held_out)
            student = factories[horizon].distilled(samples, seed)
            for _, batch in zip(range(num_steps[horizon]), batches, strict=False):
                student.train_step(batch, teacher_logits[size](params[size], batch))
                progress.step()
            tokens = num_steps[horizon] * students.BATCH_SIZE * students.SEQ_LEN
            nats = students.mean_nats(student_logits, student.state.params, held_out)
            yield setting, {"nats": nats, "tokens": tokens}

    trials.run(
        ABLATION,
        flags,
        measure,
        options={
            "steps": flags.steps,
            "teacher_steps": flags.teacher_steps,
            "held_out": flags.held_out,
            "library_files": flags.library_files,
        },
        num_steps_of=lambda missing: sum(num_steps[SETTINGS[setting][1]] for setting in missing),
        plot=plot,
        started=started,
    )


if __name__ == "__main__":
    trials.run_main(main)
