"""What does the RoPE scale do in an extension to longer sequences? The report's figure 7 in miniature.

    python experiments/ablations/rope_scale.py [--output=runs/ablations] [--seeds=3] [--steps=20]

A student trains on sequences of 128 tokens. Then it trains for 20 more steps on sequences of 1,024, once unchanged and
once with the angles of its global layers divided by 8. Each model is scored on the last 64 tokens of the same texts,
from modules that are not in the data, with more and more context before them: up to 4 times the length of the
extension. All layers are global: next to local layers, which the scale does not change, a toy hardly uses global ones.
Their base is 1,000,000 divided by 256, as the sequences are 256 times shorter than the report's 32K. Two CPU cores,
about 8 minutes with other work running.

Expected: before the extension, more loss at 1,024 tokens than at 128; after it, with the scale of 8, no more loss at
1,024 than at 128, but more at 4,096; and less at 1,024 than without the scale. Source: Gemma 3 report, figure 7 and
section 5.3 (good to the extended 128K, then rapidly worse; 8 works well, others are not shown).
"""

import dataclasses
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import results
import students
import trials

from gemma3_jax.losses import cross_entropy
from gemma3_jax.model import config, masks, parameters

NAME = "rope_scale"
BEFORE, UNSCALED, SCALED = "before", "extended, scale 1", "extended, scale 8"
SCALES = {BEFORE: 1.0, UNSCALED: 1.0, SCALED: 8.0}
CONTEXTS = (128, 256, 512, 1_024, 2_048, 4_096)  # tokens, including the scored ones
NUM_SCORED = 64
EMBED_DIM, NUM_LAYERS, ROPE_BASE = 96, 3, 1e6 / 256
SHORT_BATCH_SIZE, LONG_BATCH_SIZE, LONG_PEAK_LR = 8, 2, 1e-3
MARGIN = 0.01  # nats


def measure_name(context: int) -> str:
    return f"nats at {context}"


def claim(
    text: str, value: tuple[str, int], baseline: tuple[str, int], *, is_control: bool = False, **limits
) -> results.Claim:
    """`value`, `baseline`: (setting, context)."""
    return results.Claim(
        text=text,
        source="control" if is_control else "the report's figure 7",
        value=(value[0], measure_name(value[1])),
        baseline=(baseline[0], measure_name(baseline[1])),
        is_control=is_control,
        **limits,
    )


SHORT, LONG, LONGEST = students.SEQ_LEN, students.LONG_SEQ_LEN, CONTEXTS[-1]
ABLATION = results.Ablation(
    name=NAME,
    title="The RoPE scale of the extension",
    question="Is a model good up to the 8 times longer sequences of its extension, and does the scale of 8 help?",
    finding="Good to the extended 128K with a scale of 8, and rapidly worse beyond (report, figure 7).",
    toy=f"{NUM_LAYERS} layers of width {EMBED_DIM}, all global; rows of {SHORT}, then of {LONG:,} tokens.",
    measures={
        measure_name(context): f"of the last {NUM_SCORED} of {context:,} tokens, nats a token" for context in CONTEXTS
    },
    settings=tuple(SCALES),
    claims=(
        claim(
            f"before the extension the loss at {LONG:,} tokens is above that at {SHORT}",
            (BEFORE, LONG),
            (BEFORE, SHORT),
            is_control=True,
            low=0.0,
        ),
        claim(
            f"after it, with a scale of 8, the loss at {LONG:,} tokens is no more than {MARGIN} above that at {SHORT}",
            (SCALED, LONG),
            (SCALED, SHORT),
            high=MARGIN,
        ),
        claim(
            f"with a scale of 8 the loss at {LONGEST:,} tokens is above that at {LONG:,}",
            (SCALED, LONGEST),
            (SCALED, LONG),
            low=0.0,
        ),
        claim(
            f"at {LONG:,} tokens the scale of 8 has less loss than that of 1",
            (SCALED, LONG),
            (UNSCALED, LONG),
            high=0.0,
        ),
    ),
)


def held_out_texts(tokenizer) -> np.ndarray:
    """int32[texts, LONGEST] from modules that are not in the data; at most two texts of each."""
    texts = []
    for file in students.held_out_files():
        tokens = tokenizer.document(file.read_text(encoding="utf-8", errors="replace"))
        texts += [tokens[start : start + LONGEST] for start in (0, LONGEST) if start + LONGEST <= len(tokens)]
    return np.stack(texts).astype(np.int32)


def make_score(model: config.Config):
    """(parameters, tokens[texts, context]) -> nats a token of the last NUM_SCORED tokens, mean over texts."""

    @jax.jit
    def score(params, tokens):
        def log_probs(text):
            text = text[None]
            hidden = parameters.bind(model, params)(text, masks.whole_rows(text), execute=students.EXECUTION)
            last = slice(-NUM_SCORED - 1, -1)
            labels = text[:, -NUM_SCORED:]
            return cross_entropy.label_log_probs(hidden[:, last], params["embedder"]["table"], labels)

        return -jnp.mean(jax.lax.map(log_probs, tokens))

    return score


def plot(axes, summary: dict) -> None:
    for name, measures in summary["means"].items():
        intervals = [results.Interval(**measures[measure_name(context)]) for context in CONTEXTS]
        results.plot_intervals(axes, CONTEXTS, intervals, label=name)
    for length, label in ((SHORT, "trained on"), (LONG, "extended to")):
        axes.axvline(length, color="grey", linestyle=":", linewidth=1)
        axes.annotate(label, (length, 1), xycoords=("data", "axes fraction"), ha="left", va="top", fontsize=8)
    axes.set_xscale("log", base=2)
    axes.set_xticks(CONTEXTS, [f"{context:,}" for context in CONTEXTS])
    axes.set_xlabel("context (tokens)")
    axes.set_ylabel(f"loss of the last {NUM_SCORED} tokens (nats a token)")
    axes.legend(title="mean and 95 % over seeds")


def make_measure(data, flags) -> trials.Measure:
    short_model = students.toy_model(EMBED_DIM, NUM_LAYERS, num_local_per_global=0, rope_base_global=ROPE_BASE)
    models = {scale: dataclasses.replace(short_model, rope_scale=scale) for scale in SCALES.values()}
    make_long = functools.partial(
        students.StudentFactory,
        data,
        num_steps=flags.steps,
        batch_size=LONG_BATCH_SIZE,
        seq_len=LONG,
        peak_lr=LONG_PEAK_LR,
    )
    short_students = students.StudentFactory(
        data, short_model, num_steps=flags.short_steps, batch_size=SHORT_BATCH_SIZE, seq_len=SHORT
    )
    long_students = {scale: make_long(model) for scale, model in models.items()}
    score = {scale: make_score(model) for scale, model in models.items()}
    texts = held_out_texts(data.tokenizer())[: flags.texts]

    def measure(seed, missing, progress):
        batches_of = functools.partial(students.student_batches, data, seed, num_held_out=flags.held_out)
        _, batches = batches_of(flags.short_steps, seq_len=SHORT, batch_size=SHORT_BATCH_SIZE)
        start = short_students.next_token(seed).train(batches, progress)
        for setting in missing:
            scale, params = SCALES[setting], start
            if setting != BEFORE:
                _, batches = batches_of(flags.steps, seq_len=LONG, batch_size=LONG_BATCH_SIZE)
                params = long_students[scale].next_token(start=start).train(batches, progress)
            yield (
                setting,
                {measure_name(context): float(score[scale](params, texts[:, -context:])) for context in CONTEXTS},
            )

    return measure


def main() -> None:
    started = time.monotonic()
    parser = trials.make_parser(__doc__, seeds=3, steps=20)
    parser.add_argument("--short_steps", type=int, default=200, help="steps of short sequences, before the extension")
    parser.add_argument("--texts", type=int, help="score the first texts only, this many")
    flags = trials.parse(parser)
    data = students.make_data(flags.output, flags.library_files)
    trials.run(
        ABLATION,
        flags,
        make_measure(data, flags),
        options={
            "steps": flags.steps,
            "short_steps": flags.short_steps,
            "texts": flags.texts,
            "held_out": flags.held_out,
            "library_files": flags.library_files,
        },
        num_steps_of=lambda missing: flags.short_steps + flags.steps * sum(setting != BEFORE for setting in missing),
        plot=plot,
        started=started,
    )


if __name__ == "__main__":
    trials.run_main(main)
