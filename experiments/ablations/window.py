"""How small may the sliding window of local layers be? The report's figure 4 in miniature.

    python experiments/ablations/window.py [--output=runs/ablations] [--seeds=3] [--steps=300]

Students of 4 layers, with one or three local layers before each global one, differ in the window alone: 64 tokens,
half of a sequence, or an eighth of that, as the report goes from 4,096 tokens to 512. A student with a window of one
token is the control: if it is no worse, the result is unclear. Two CPU cores, about 8 minutes with other work running.

Expected: losses that differ by less than a hundredth of a nat. Source: Gemma 3 report, figure 4 (2B, within 0.02 of a
perplexity); the margin is ours, as the report's is smaller than the seed noise of a toy.
"""

import time

import results
import students
import trials

NAME = "window"
RATIOS = {"1:1": 1, "3:1": 3}  # name -> num_local_per_global
WINDOWS = (64, 8)  # tokens; the first is the baseline
CONTROL_WINDOW = 1
MARGIN = 0.01  # nats: 1 % of the perplexity
NUM_LAYERS, EMBED_DIM = 4, 96
SETTINGS = {f"{ratio}, {window}": (number, window) for ratio, number in RATIOS.items() for window in WINDOWS}
SETTINGS[f"3:1, {CONTROL_WINDOW}"] = (3, CONTROL_WINDOW)


def claims() -> tuple[results.Claim, ...]:
    within_margin = (
        results.Claim(
            text=f"at {ratio} a window of {window} is within {MARGIN} nats of one of {WINDOWS[0]}",
            source="the report's figure 4",
            value=(f"{ratio}, {window}", "nats"),
            baseline=(f"{ratio}, {WINDOWS[0]}", "nats"),
            low=-MARGIN,
            high=MARGIN,
        )
        for ratio in RATIOS
        for window in WINDOWS[1:]
    )
    control = results.Claim(
        text=f"a window of {CONTROL_WINDOW} is worse than one of {WINDOWS[0]}",
        source="control",
        value=(f"3:1, {CONTROL_WINDOW}", "nats"),
        baseline=(f"3:1, {WINDOWS[0]}", "nats"),
        low=0.0,
        is_control=True,
    )
    return (*within_margin, control)


ABLATION = results.Ablation(
    name=NAME,
    title="The window of local layers",
    question="How much does the perplexity rise with a smaller window?",
    finding="Within 0.02 of a perplexity from 512 to 4,096 tokens, at 1:1 and 3:1 (report, figure 4; 2B).",
    toy=f"{NUM_LAYERS} layers of width {EMBED_DIM}, rows of {students.SEQ_LEN} tokens.",
    measures={"nats": "cross-entropy of the next token on held-out sequences, nats"},
    settings=tuple(SETTINGS),
    claims=claims(),
)


def plot(axes, summary: dict) -> None:
    axes.axhspan(-MARGIN, MARGIN, color="tab:green", alpha=0.15, label=f"within {MARGIN} nats")
    axes.axhline(0, color="grey", linewidth=0.8)
    for ratio, shift in zip(RATIOS, (0.97, 1.03), strict=True):  # side by side, so that no point hides another
        windows = [window for number, window in SETTINGS.values() if number == RATIOS[ratio]][1:]
        baseline = (f"{ratio}, {WINDOWS[0]}", "nats")
        intervals = [results.paired_difference(summary, (f"{ratio}, {window}", "nats"), baseline) for window in windows]
        shifted = [window * shift for window in windows]
        results.plot_intervals(axes, shifted, intervals, label=f"{ratio}, mean and 95 %")
    ticks = (CONTROL_WINDOW, *reversed(WINDOWS))
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(window) for window in ticks])
    axes.set_xlabel(f"window (tokens; sequences have {students.SEQ_LEN})")
    axes.set_ylabel(f"loss minus that at {WINDOWS[0]}, same seed (nats a token)")
    axes.legend()


def main() -> None:
    started = time.monotonic()
    flags = trials.parse(trials.make_parser(__doc__, seeds=3, steps=300))
    data = students.make_data(flags.output, flags.library_files)
    models = {
        name: students.toy_model(EMBED_DIM, NUM_LAYERS, sliding_window=window, num_local_per_global=number)
        for name, (number, window) in SETTINGS.items()
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
