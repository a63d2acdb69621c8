"""How many local layers may there be for a global one? The report's figure 3 in miniature.

    python experiments/ablations/local_global.py [--output=runs/ablations] [--seeds=3] [--steps=300]

Students of 8 layers that differ in the pattern alone: 1, 3, 5 or 7 local layers before each global one, with windows
of an eighth of the row. That makes 4, 2, 1 and 1 global layers, the single one sixth or last. A student without any
is the control: where it is no worse, nothing can be told. Two CPU cores, some 13 minutes beside other work.

Expected: perplexities that differ by less than a hundredth. Source: Gemma 3 report, figure 3 (2B and 9B, within 0.1
of a perplexity); the margin is ours, as the report does not say what 0.1 is a part of.
"""

import time

import finding
import school
import trials

NAME = "local_global"
PATTERNS = {"1:1": 1, "3:1": 3, "5:1": 5, "7:1": 7, "no global": 8}
MARGIN = 0.01  # nats, about a hundredth of a perplexity
NUM_LAYERS, WIDTH, WINDOW = 8, 64, 16


def claims() -> tuple[finding.Claim, ...]:
    source = "the report's figure 3"
    same = (
        finding.Claim(
            text=f"{name} is within {MARGIN} nats of 1:1",
            source=source,
            number=(name, "nats"),
            less=("1:1", "nats"),
            low=-MARGIN,
            high=MARGIN,
        )
        for name in ("3:1", "5:1", "7:1")
    )
    control = finding.Claim(
        text="students without a global layer are worse than those of 1:1",
        source="control",
        number=("no global", "nats"),
        less=("1:1", "nats"),
        low=0.0,
        is_control=True,
    )
    return (*same, control)


ABLATION = finding.Ablation(
    name=NAME,
    title="Local layers for each global one",
    question="What does the perplexity pay for more local layers to each global one?",
    finding="Within 0.1 of a perplexity from 1:1 to 7:1 (report, figure 3; 2B and 9B).",
    toy=f"{NUM_LAYERS} layers of width {WIDTH}, windows of {WINDOW} tokens in rows of {school.SEQ_LEN}.",
    measures={"nats": "cross-entropy of the next token on held-out rows, nats"},
    settings=tuple(PATTERNS),
    claims=claims(),
)


def draw(axes, result: dict) -> None:
    names = [name for name in PATTERNS if name != "1:1"]
    found = [finding.paired(result, (name, "nats"), ("1:1", "nats")) for name in names]
    axes.axhspan(-MARGIN, MARGIN, color="tab:green", alpha=0.15, label=f"within {MARGIN} nats")
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.errorbar(
        names, [one.mean for one in found], [one.half_width for one in found], fmt="o", capsize=4, label="mean, 95 %"
    )
    axes.set_xlabel("local layers : global layers")
    axes.set_ylabel("loss less that of 1:1, same seed (nats a token)")
    axes.legend()


def main() -> None:
    began = time.monotonic()
    flags = trials.parse(trials.parser(__doc__, seeds=3, steps=300))
    data = school.make_data(flags.output, flags.library_files)
    models = {
        name: school.model(WIDTH, NUM_LAYERS, sliding_window=WINDOW, num_local_per_global=number)
        for name, number in PATTERNS.items()
    }
    trials.run(
        ABLATION,
        flags,
        school.of_shapes(data, models, flags.steps),
        asked={"steps": flags.steps, "library_files": flags.library_files},
        steps_of=lambda settings: len(settings) * flags.steps,
        draw=draw,
        began=began,
    )


if __name__ == "__main__":
    trials.until_stopped(main)
