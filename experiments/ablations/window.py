"""How small may the window of local layers be? The report's figure 4 in miniature.

    python experiments/ablations/window.py [--output=runs/ablations] [--seeds=3] [--steps=300]

Students of 4 layers, one or three local ones before each global one, that differ in the window alone: from 64 tokens,
half of a row, down by a factor of 8 as the report goes from 4,096 tokens to 512. One whose window is the token itself
is the control: where it is no worse, nothing can be told. Two CPU cores, some 8 minutes beside other work.

Expected: perplexities that differ by less than a hundredth. Source: Gemma 3 report, figure 4 (2B, within 0.02 of a
perplexity); the margin is ours: the report's would be below the noise of a toy's seed.
"""

import time

import finding
import school
import trials

NAME = "window"
RATIOS = {"1:1": 1, "3:1": 3}
WINDOWS = (64, 8)  # tokens; the first is what the other is held against
NARROW = 1
MARGIN = 0.01  # nats, about a hundredth of a perplexity
NUM_LAYERS, WIDTH = 4, 96
SETTINGS = {f"{ratio}, {window}": (number, window) for ratio, number in RATIOS.items() for window in WINDOWS}
SETTINGS[f"3:1, {NARROW}"] = (3, NARROW)


def claims() -> tuple[finding.Claim, ...]:
    same = (
        finding.Claim(
            text=f"at {ratio} a window of {window} is within {MARGIN} nats of one of {WINDOWS[0]}",
            source="the report's figure 4",
            number=(f"{ratio}, {window}", "nats"),
            less=(f"{ratio}, {WINDOWS[0]}", "nats"),
            low=-MARGIN,
            high=MARGIN,
        )
        for ratio in RATIOS
        for window in WINDOWS[1:]
    )
    control = finding.Claim(
        text=f"a window of {NARROW} is worse than one of {WINDOWS[0]}",
        source="control",
        number=(f"3:1, {NARROW}", "nats"),
        less=(f"3:1, {WINDOWS[0]}", "nats"),
        low=0.0,
        is_control=True,
    )
    return (*same, control)


ABLATION = finding.Ablation(
    name=NAME,
    title="The window of local layers",
    question="What does the perplexity pay for a smaller window?",
    finding="Within 0.02 of a perplexity from 512 to 4,096 tokens, at 1:1 and 3:1 (report, figure 4; 2B).",
    toy=f"{NUM_LAYERS} layers of width {WIDTH}, rows of {school.SEQ_LEN} tokens.",
    measures={"nats": "cross-entropy of the next token on held-out rows, nats"},
    settings=tuple(SETTINGS),
    claims=claims(),
)


def draw(axes, result: dict) -> None:
    axes.axhspan(-MARGIN, MARGIN, color="tab:green", alpha=0.15, label=f"within {MARGIN} nats")
    axes.axhline(0, color="grey", linewidth=0.8)
    for ratio, shift in zip(RATIOS, (0.97, 1.03), strict=True):
        windows = [window for name, (number, window) in SETTINGS.items() if number == RATIOS[ratio]][1:]
        less = (f"{ratio}, {WINDOWS[0]}", "nats")
        found = [finding.paired(result, (f"{ratio}, {window}", "nats"), less) for window in windows]
        axes.errorbar(
            [window * shift for window in windows],
            [one.mean for one in found],
            [one.half_width for one in found],
            marker="o",
            capsize=4,
            label=f"{ratio}, mean and 95 %",
        )
    shown = (NARROW, *reversed(WINDOWS))
    axes.set_xscale("log", base=2)
    axes.set_xticks(shown, [str(window) for window in shown])
    axes.set_xlabel(f"window (tokens; rows have {school.SEQ_LEN})")
    axes.set_ylabel(f"loss less that at {WINDOWS[0]}, same seed (nats a token)")
    axes.legend()


def main() -> None:
    began = time.monotonic()
    flags = trials.parse(trials.parser(__doc__, seeds=3, steps=300))
    data = school.make_data(flags.output, flags.library_files)
    models = {
        name: school.model(WIDTH, NUM_LAYERS, sliding_window=window, num_local_per_global=number)
        for name, (number, window) in SETTINGS.items()
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
