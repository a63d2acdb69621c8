"""What does the RoPE scale do for an extension to longer rows? The report's figure 7 in miniature.

    python experiments/ablations/rope_scale.py [--output=runs/ablations] [--seeds=3] [--steps=20]

A student learns from rows of 128 tokens. Then it goes on for 20 steps with rows of 1,024, once as it is and once with
the angles of its global layers divided by 8. Each is asked for the last 64 tokens of the same texts, of modules that
no row is made of, with ever more context before them: up to 4 times what the extension had. All layers are global:
next to local ones, which the scale leaves alone, a toy hardly uses them. The base of their angles is 1,000,000
divided by 256, as the rows are 256 times shorter than the report's 32K. Two CPU cores, some 8 minutes beside other
work.

Expected: before the extension more loss at 1,024 tokens than at 128; after it, with the scale of 8, no more there
than at 128, but more at 4,096; and less at 1,024 than without the scale. Source: Gemma 3 report, figure 7 and section
5.3 (good to the extended 128K, then rapidly worse; 8 works well, others are not shown).
"""

import dataclasses
import functools
import time

import finding
import jax
import jax.numpy as jnp
import numpy as np
import school
import trials

from gemma3_jax.losses import cross_entropy
from gemma3_jax.model import masks, parameters

NAME = "rope_scale"
BEFORE, AS_IT_IS, SCALED = "before", "extended, scale 1", "extended, scale 8"
SCALES = {BEFORE: 1.0, AS_IT_IS: 1.0, SCALED: 8.0}
CONTEXTS = (128, 256, 512, 1_024, 2_048, 4_096)  # tokens, those that are scored included
NUM_SCORED = 64
WIDTH, NUM_LAYERS, BASE = 96, 3, 1e6 / 256
SHORT_BATCH_SIZE, LONG_BATCH_SIZE, LONG_RATE = 8, 2, 1e-3
MARGIN = 0.01  # nats


def measure_of(context: int) -> str:
    return f"nats at {context}"


def claim(
    text: str, number: tuple[str, int], less: tuple[str, int], *, control: bool = False, **limits
) -> finding.Claim:
    return finding.Claim(
        text=text,
        source="control" if control else "the report's figure 7",
        number=(number[0], measure_of(number[1])),
        less=(less[0], measure_of(less[1])),
        is_control=control,
        **limits,
    )


SHORT, LONG, BEYOND = school.SEQ_LEN, school.LONG_SEQ_LEN, CONTEXTS[-1]
ABLATION = finding.Ablation(
    name=NAME,
    title="The RoPE scale of the extension",
    question="Is a model that was extended to rows 8 times as long good up to there, and does the scale of 8 help?",
    finding="Good to the extended 128K with a scale of 8, and rapidly worse beyond (report, figure 7).",
    toy=f"{NUM_LAYERS} layers of width {WIDTH}, all global; rows of {SHORT}, then of {LONG:,} tokens.",
    measures={
        measure_of(context): f"of the last {NUM_SCORED} of {context:,} tokens, nats a token" for context in CONTEXTS
    },
    settings=tuple(SCALES),
    claims=(
        claim(
            f"before the extension the loss at {LONG:,} tokens is above that at {SHORT}",
            (BEFORE, LONG),
            (BEFORE, SHORT),
            control=True,
            low=0.0,
        ),
        claim(
            f"after it, with a scale of 8, the loss at {LONG:,} tokens is no more than {MARGIN} above that at {SHORT}",
            (SCALED, LONG),
            (SCALED, SHORT),
            high=MARGIN,
        ),
        claim(
            f"with a scale of 8 the loss at {BEYOND:,} tokens is above that at {LONG:,}",
            (SCALED, BEYOND),
            (SCALED, LONG),
            low=0.0,
        ),
        claim(
            f"at {LONG:,} tokens the scale of 8 has less loss than that of 1",
            (SCALED, LONG),
            (AS_IT_IS, LONG),
            high=0.0,
        ),
    ),
)


def texts(tokenizer) -> np.ndarray:
    """int32[rows, CONTEXTS[-1]] of modules that no row is made of; of each two at most."""
    found = []
    for file in school.held_out_files():
        tokens = tokenizer.document(file.read_text(encoding="utf-8", errors="replace"))
        found += [tokens[start : start + BEYOND] for start in (0, BEYOND) if start + BEYOND <= len(tokens)]
    return np.stack(found).astype(np.int32)


def scorer(of):
    """(parameters, tokens[rows, context]) -> nats of the last NUM_SCORED tokens, mean over rows."""

    @jax.jit
    def score(params, tokens):
        def one(row):
            row = row[None]
            hidden = parameters.bind(of, params)(row, masks.whole_rows(row), execute=school.EXECUTION)
            last = slice(-NUM_SCORED - 1, -1)
            labels = row[:, -NUM_SCORED:]
            return cross_entropy.label_log_probs(hidden[:, last], params["embedder"]["table"], labels)

        return -jnp.mean(jax.lax.map(one, tokens))

    return score


def draw(axes, result: dict) -> None:
    for name, measures in result["means"].items():
        found = [measures[measure_of(context)] for context in CONTEXTS]
        axes.errorbar(
            CONTEXTS,
            [one["mean"] for one in found],
            [one["half_width"] for one in found],
            marker="o",
            capsize=4,
            label=name,
        )
    for length, words in ((SHORT, "learned from"), (LONG, "extended to")):
        axes.axvline(length, color="grey", linestyle=":", linewidth=1)
        axes.annotate(words, (length, 1), xycoords=("data", "axes fraction"), ha="left", va="top", fontsize=8)
    axes.set_xscale("log", base=2)
    axes.set_xticks(CONTEXTS, [f"{context:,}" for context in CONTEXTS])
    axes.set_xlabel("context (tokens)")
    axes.set_ylabel(f"loss of the last {NUM_SCORED} tokens (nats a token)")
    axes.legend(title="mean and 95 % over seeds")


def main() -> None:
    began = time.monotonic()
    parser = trials.parser(__doc__, seeds=3, steps=20)
    parser.add_argument("--short_steps", type=int, default=200, help="of short rows, before the extension")
    parser.add_argument("--texts", type=int, help="ask for the ends of so many texts only")
    flags = trials.parse(parser)
    data = school.make_data(flags.output, flags.library_files)
    plain = school.model(WIDTH, NUM_LAYERS, num_local_per_global=0, rope_base_global=BASE)
    models = {scale: dataclasses.replace(plain, rope_scale=scale) for scale in SCALES.values()}
    before = school.School(data, plain, num_steps=flags.short_steps, batch_size=SHORT_BATCH_SIZE, seq_len=SHORT)
    long = functools.partial(
        school.School,
        data,
        num_steps=flags.steps,
        batch_size=LONG_BATCH_SIZE,
        seq_len=LONG,
        peak_lr=LONG_RATE,
    )
    after = {scale: long(of) for scale, of in models.items()}
    score = {scale: scorer(of) for scale, of in models.items()}
    asked_for = texts(data.tokenizer())[: flags.texts]

    def learned(student, length, batch_size, num_steps, seed, progress):
        _, rows = school.rows_of(data, seed, num_steps, seq_len=length, batch_size=batch_size)
        for batch in rows:
            student.learn(batch)
            progress.step()
        return student.state.params

    def measure(seed, missing, progress):
        start = learned(before.by_next_token(seed), SHORT, SHORT_BATCH_SIZE, flags.short_steps, seed, progress)
        for setting in missing:
            scale, params = SCALES[setting], start
            if setting != BEFORE:
                student = after[scale].by_next_token(start=start)
                params = learned(student, LONG, LONG_BATCH_SIZE, flags.steps, seed, progress)
            yield (
                setting,
                {measure_of(context): float(score[scale](params, asked_for[:, -context:])) for context in CONTEXTS},
            )

    trials.run(
        ABLATION,
        flags,
        measure,
        asked={
            "steps": flags.steps,
            "short_steps": flags.short_steps,
            "texts": flags.texts,
            "library_files": flags.library_files,
        },
        steps_of=lambda missing: flags.short_steps + flags.steps * sum(name != BEFORE for name in missing),
        draw=draw,
        began=began,
    )


if __name__ == "__main__":
    trials.until_stopped(main)
