"""How many local layers may there be for each global layer? The report's figure 3 in miniature.

    python experiments/ablations/local_global.py [--output=runs/ablations] [--seeds=3] [--steps=300]

Students of 8 layers differ in the layer pattern alone: 1, 3, 5 or 7 local layers before each global one, with sliding
windows of an eighth of the sequence. That makes 4, 2, 1 and 1 global layers; a single one is the sixth or the last. A
student without global layers is the control: if it is no worse, the result is unclear. Two CPU cores, about 13 minutes
with other work running.

Expected: losses that differ by less than a hundredth of a nat. Source: Gemma 3 report, figure 3 (2B and 9B, within 0.1
of a perplexity); the margin is ours, as the report does not give the perplexity that 0.1 is compared with.
"""

import time

import results
import students
import trials

NAME = "local_global"
PATTERNS = {"1:1": 1, "3:1": 3, "5:1": 5, "7:1": 7, "no global": 8}  # name -> num_local_per_global
MARGIN = 0.01  # nats: 1 % of the perplexity
NUM_LAYERS, EMBED_DIM, SLIDING_WINDOW = 8, 64, 16


def claims() -> tuple[results.Claim, ...]:
    within_margin = (
        results.Claim(
            text=f"{name} is within {MARGIN} nats of 1:1",
            source="the report's figure 3",
            value=(name, "nats"),
            baseline=("1:1", "nats"),
            low=-MARGIN,
            high=MARGIN,
        )
        for name in ("3:1", "5:1", "7:1")
    )
    control = results.Claim(
        text="students without a global layer are worse than those of 1:1",
        source="control",
        value=("no global", "nats"),
        baseline=("1:1", "nats"),
        low=0.0,
        is_control=True,
    )
    return (*within_margin, control)


ABLATION = results.Ablation(
    name=NAME,
    title="Local layers for each global one",
    question="How much does the perplexity rise with more local layers for each global one?",
    finding="Within 0.1 of a perplexity from 1:1 to 7:1 (report, figure 3; 2B and 9B).",
    toy=f"{NUM_LAYERS} layers of width {EMBED_DIM}, windows of {SLIDING_WINDOW} tokens in rows of {students.SEQ_LEN}.",
    measures={"nats": "cross-entropy of the next token on held-out sequences, nats"},
    settings=tuple(PATTERNS),
    claims=claims(),
)


def plot(axes, summary: dict) -> None:
    names = [name for name in PATTERNS if name != "1:1"]
    intervals = [results.paired_difference(summary, (name, "nats"), ("1:1", "nats")) for name in names]
    axes.axhspan(-MARGIN, MARGIN, color="tab:green", alpha=0.15, label=f"within {MARGIN} nats")
    axes.axhline(0, color="grey", linewidth=0.8)
    results.plot_intervals(axes, names, intervals, label="mean and 95 %", marker="o")
    axes.set_xlabel("local layers : global layers")
    axes.set_ylabel("loss minus that of 1:1, same seed (nats a token)")
    axes.legend()


def main() -> None:
    started = time.monotonic()
    flags = trials.parse(trials.make_parser(__doc__, seeds=3, steps=300))
    data = students.make_data(flags.output, flags.library_files)
    models = {
        name: students.toy_model(
            EMBED_DIM, NUM_LAYERS, sliding_window=SLIDING_WINDOW, num_local_per_global=num_local_per_global
        )
        for name, num_local_per_global in PATTERNS.items()
    }
    trials.run(
        ABLATION,
        flags,
        students.measure_models(data, models, flags.steps, flags.held_out),
        options={"steps": flags.steps, "held_out": flags.held_out, "library_files": flags.library_files},
        num_steps_of=lambda missing: len(missing) * flags.steps,
        plot=plot,
        started=started,
    )


if __name__ == "__main__":
    trials.run_main(main)
