"""For which formats does quantization-aware training help? The report's section 2.3 in miniature.

    python experiments/ablations/qat_format.py [--output=runs/ablations] [--seeds=3] [--steps=40]

A student trains on the next token. Then, for each format of the report, it trains for 40 more steps with its weights
rounded, distilled from the whole distribution of its unrounded start. The measure is the KL from that start: of the
start rounded at once, and of the student rounded after those steps. Two CPU cores, about 7 minutes with other work
running.

Expected: less KL after the steps than before, in each format. Source: Gemma 3 report, section 2.3, which trains so for
5,000 steps and prints sizes alone; Google's announcement has a 54 % smaller rise of perplexity in Q4_0.
"""

import time

import jax
import results
import students
import trials

from gemma3_jax.model import parameters
from gemma3_jax.quant import settings as quant_settings
from gemma3_jax.quant import view

NAME = "qat_format"
FORMATS = {"q4_0": "int4, blocks of 32", "int4": "int4, per channel", "sfp8": "switched fp8"}
SETTINGS = {f"{format}, {when}": format for format in FORMATS for when in ("before", "after")}
UNROUNDED = "unrounded"
EMBED_DIM, NUM_LAYERS = 128, 4  # whole blocks of 32 in every contraction
PEAK_LR = 4e-4  # that of the demo's qat

ABLATION = results.Ablation(
    name=NAME,
    title="Formats of quantization-aware training",
    question="Is a model trained with rounded weights closer to the unrounded model than that model rounded directly?",
    finding="Trains in three formats, 5,000 steps each (report, section 2.3, with no measures of quality).",
    toy=f"{NUM_LAYERS} layers of width {EMBED_DIM}; rounded at a rate of {PEAK_LR:g}, with an embedding in float16.",
    measures={
        "kl": "from the unrounded model on held-out sequences, nats a token",
        "nats": "cross-entropy of the next token on held-out sequences, nats",
    },
    settings=(UNROUNDED, *SETTINGS),
    claims=tuple(
        results.Claim(
            text=f"{format} has less KL after the steps than before",
            source="the report's section 2.3",
            value=(f"{format}, after", "kl"),
            baseline=(f"{format}, before", "kl"),
            high=0.0,
        )
        for format in FORMATS
    ),
)


def plot(axes, summary: dict) -> None:
    for shift, (when, color) in zip((-0.18, 0.18), (("before", "tab:orange"), ("after", "tab:blue")), strict=True):
        intervals = [summary["means"][f"{format}, {when}"]["kl"] for format in FORMATS]
        axes.bar(
            [number + shift for number in range(len(FORMATS))],
            [interval["mean"] for interval in intervals],
            0.34,
            yerr=[interval["half_width"] for interval in intervals],
            capsize=4,
            color=color,
            label=f"rounded {when} the steps",
        )
    axes.set_xticks(range(len(FORMATS)), [f"{format}\n{description}" for format, description in FORMATS.items()])
    axes.set_yscale("log")
    axes.set_ylabel("KL from the unrounded model (nats a token)")
    axes.legend()


def main() -> None:
    started = time.monotonic()
    parser = trials.make_parser(__doc__, seeds=3, steps=40)
    parser.add_argument("--before_steps", type=int, default=200, help="steps of the next token, with unrounded weights")
    flags = trials.parse(parser)
    data = students.make_data(flags.output, flags.library_files)
    model = students.toy_model(EMBED_DIM, NUM_LAYERS, num_local_per_global=1)
    before = students.StudentFactory(data, model, num_steps=flags.before_steps)
    after = students.StudentFactory(data, model, num_steps=flags.steps, peak_lr=PEAK_LR)
    logits = students.make_logits(model)
    quants = {format: quant_settings.Quant(format=format) for format in FORMATS}
    rounded = {format: jax.jit(view.make(quant, parameters.dims(model))) for format, quant in quants.items()}

    def measure(seed, missing, progress):
        held_out, batches = students.student_batches(
            data, seed, flags.before_steps + flags.steps, num_held_out=flags.held_out
        )
        batches = list(batches)
        start = before.next_token(seed).train(batches[: flags.before_steps], progress)
        with_logits = [(batch, logits(start, batch)) for batch in held_out]
        for setting in missing:
            params = start
            if setting != UNROUNDED:
                format = SETTINGS[setting]
                if setting.endswith("after"):
                    student = after.quantized(quants[format], start)
                    params = student.train(batches[flags.before_steps :], progress)
                params = rounded[format](params)
            scores = students.score(logits, params, with_logits)
            yield setting, {"kl": scores["kl"], "nats": scores["nats"]}

    trials.run(
        ABLATION,
        flags,
        measure,
        options={
            "steps": flags.steps,
            "before_steps": flags.before_steps,
            "held_out": flags.held_out,
            "library_files": flags.library_files,
        },
        num_steps_of=lambda missing: (
            flags.before_steps + flags.steps * sum(setting.endswith("after") for setting in missing)
        ),
        plot=plot,
        started=started,
    )


if __name__ == "__main__":
    trials.run_main(main)
