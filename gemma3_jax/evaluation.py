"""What a stage is measured by while it trains: how well it predicts rows that no stage learns from.

No row comes twice in that form; but rows of another length hold the same documents, if a stage has such.

A stage that rounds its weights is held against what it began with, over the whole vocabulary: unquantised; rounded
there and then, which is quantisation after training; and as it is now, rounded too.

And whatever `evaluate` measures of a checkpoint, if asked for, of the weights as training sees them.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gemma3_jax import settings
from gemma3_jax.data import dataset, interleave, order, stream
from gemma3_jax.distill import settings as distill_settings
from gemma3_jax.distill import teacher
from gemma3_jax.evals import registry, task
from gemma3_jax.evals import settings as evals_settings
from gemma3_jax.inference import sampler
from gemma3_jax.losses import objectives
from gemma3_jax.model import config
from gemma3_jax.tokenizer import vocabulary
from gemma3_jax.train import stage, step

WHOLE = distill_settings.Samples(estimator=distill_settings.WHOLE)
Begin = Callable[[dict], Callable[[dict], dict[str, float]]]


def make(
    given: settings.Train,
    leg: stage.Leg,
    model: config.Config,
    *,
    num_bytes: np.ndarray,
    tokenizer: vocabulary.Tokenizer,
    open_rows: Callable[[], Sequence],
    load_start: Callable[[str], dict],
) -> stage.Evaluation | None:
    """What the settings of a leg's stage ask for. `load_start(dtype)` reads the parameters that it began with.

    Raises: ValueError if a measure cannot be made.
    """
    asked = given.stages[leg.name]
    if not asked.evaluation.every_steps:
        return None
    if asked.quant.format:
        has_start = asked.teacher == settings.START
        load_unrounded = None if has_start else lambda: load_start(given.execution.dtype)
        begin = _of_rounding(
            given,
            leg,
            model,
            num_bytes=num_bytes,
            open_rows=open_rows,
            load_start=load_start,
            load_unrounded=load_unrounded,
        )
    else:
        begin = _of_next_token(given, leg, model, num_bytes=num_bytes, open_rows=open_rows)
    if asked.evaluation.measures.tasks:
        begin = _and_measures(given, leg, model, tokenizer=tokenizer, begin=begin)
    return stage.Evaluation(every_steps=asked.evaluation.every_steps, begin=begin)


def open_rows(
    given: settings.Train, leg: stage.Leg, data: dataset.Dataset, rows: order.Order, *, warn: Callable[[str], None]
) -> list[stream.Rows]:
    """Rows of a stage's data, by its mixture, that come after all that the stages of the stage_order learn from."""
    asked, learned = given.stages[leg.name], []
    for other in (given.stages[name] for name in given.stage_order):
        if (other.data or given.data, other.seq_len) == (asked.data or given.data, asked.seq_len):
            found = order.find(
                data,
                seq_len=other.seq_len,
                batch_size=other.batch_size,
                seed=given.seed,
                buckets=other.mixture or None,
            )
            learned.append((found, other.num_steps))
    first, num_steps = first_unlearned(rows, learned), math.ceil(asked.evaluation.num_rows / asked.batch_size)
    if max(rows.epochs(first + num_steps).values()) > 1:
        warn(f"warning: {leg.name} is evaluated on rows that were learned from: {data.path} has no more of them")
    with stream.Stream(data, rows, leg.mesh, first_step=first) as batches:
        return [next(batches).rows for _ in range(num_steps)]


def first_unlearned(rows: order.Order, learned: Sequence[tuple[order.Order, int]]) -> int:
    """The first step from which on no row is one of those that so many steps of other orders of the same rows have.

    In its first epoch, that is. Orders of one seed come to the rows of a part one after the other in the same way.
    """
    counts: dict[str, float] = {}  # of each part
    for other, num_steps in learned:
        for part, share in other.shares.items():
            count = share * num_steps * other.batch_size + interleave.MOST_AHEAD
            counts[part] = max(counts.get(part, 0), count)
    first_row = max((counts.get(part, 0) + interleave.MOST_AHEAD) / share for part, share in rows.shares.items())
    return math.ceil(first_row / rows.batch_size)


def _of_next_token(given: settings.Train, leg: stage.Leg, model: config.Config, *, num_bytes, open_rows) -> Begin:
    def begin(_):
        mean, rows = _mean(objectives.next_token(model, given.execution, num_bytes=num_bytes), leg), open_rows()

        def score(params):
            found = mean(params, rows)
            return {"nats": found["loss"], "bits_per_byte": found["loss"] / found["bytes_per_target"] / math.log(2)}

        return score

    return begin


def _of_rounding(
    given: settings.Train, leg: stage.Leg, model: config.Config, *, num_bytes, open_rows, load_start, load_unrounded
) -> Begin:
    """`load_unrounded` reads the start in the dtype of activations; None: it is what is frozen in the leg."""

    def begin(frozen):
        unquantised, rows = load_unrounded() if load_unrounded else frozen, open_rows()
        targets_of = teacher.make(model, given.execution, samples=WHOLE, seed=0)
        distilled = objectives.distilled(
            model, given.execution, num_bytes=num_bytes, samples=WHOLE, targets_of=targets_of
        )
        view = leg.stage.view_params
        mean = _mean(lambda params, rows, unquantised: distilled(view(params), unquantised, rows), leg)
        rounded = mean(load_start("float32"), rows, unquantised)
        return lambda params: compare(rounded, mean(params, rows, unquantised))

    return begin


def compare(rounded: dict[str, float], trained: dict[str, float]) -> dict[str, float]:
    """What training brought back of what rounding cost; of two means over the same rows of what `distilled` reports."""
    whole, least, nats = trained["teacher_cross_entropy"], rounded["cross_entropy"], trained["cross_entropy"]
    with np.errstate(over="ignore", invalid="ignore"):  # of a run that has diverged; the loop will say so
        cost, left = np.exp([least, nats]) - np.exp(whole)
    rounded_kl, trained_kl = rounded["kl_to_teacher"], trained["kl_to_teacher"]
    return {
        "unquantised_nats": whole,
        "rounded_nats": least,
        "trained_nats": nats,
        "rounded_kl": rounded_kl,
        "trained_kl": trained_kl,
        # Rounding may cost nothing, as chance has it: then there is no share of it.
        "recovered_perplexity": float(1 - left / cost) if 0 < cost < math.inf else math.nan,
        "recovered_kl": 1 - trained_kl / rounded_kl if rounded_kl > 0 else math.nan,
    }


def _and_measures(
    given: settings.Train, leg: stage.Leg, model: config.Config, *, tokenizer: vocabulary.Tokenizer, begin: Begin
) -> Begin:
    asked = given.stages[leg.name].evaluation.measures
    asked = dataclasses.replace(asked, documents=asked.documents or given.documents)
    if (readers := set(asked.tasks) & set(evals_settings.READ_DOCUMENTS)) and not asked.documents:
        raise ValueError(
            f"evaluation.measures.tasks has {min(readers)}, and measures.documents is empty, as config.documents is; "
            "name what it is to read: --config.documents=FILE"
        )
    gemma = sampler.Sampler(
        model, _no_params, tokenizer, mesh=leg.mesh, execute=given.execution, context=sampler.ANY_CONTEXT
    )
    made = [registry.make(name, gemma, asked) for name in asked.tasks]
    # Compiled, parameters as they are would be copied.
    view = jax.jit(leg.stage.view_params) if given.stages[leg.name].quant.format else leg.stage.view_params

    def begin_all(frozen):
        score = begin(frozen)

        def measured(params):
            found = score(params)
            with jax.set_mesh(leg.mesh):
                gemma.params = view(params)
            for each in made:
                summary = task.run(each, of=leg.name)
                found |= {f"{each.name}/{name}": number for name, number in task.numbers(summary).items()}
                found |= {name: value for name, value in summary.items() if isinstance(value, list)}
            del gemma.params
            return found

        return measured

    return begin_all


def _no_params():
    raise AssertionError("parameters are set when they are measured")


def _mean(f: Callable, leg: stage.Leg) -> Callable[..., dict[str, float]]:
    """`(parameters, batches of rows, more) -> ` the sums of `f(parameters, rows, more)` over the number of targets.

    Takes as many rows at a time as a microbatch of the leg has.
    """

    @jax.jit
    def run(params, rows, *more):
        parts = jax.tree.map(lambda x: step.split(x, leg.grad_accum_steps), rows)
        found = jax.lax.map(lambda part: f(params, part, *more), parts)
        return jax.tree.map(lambda x: jnp.sum(x, axis=0), found)

    def mean(params: dict, batches: Sequence, *more) -> dict[str, float]:
        num_targets, sums = 0, {}
        with jax.set_mesh(leg.mesh):
            for rows in batches:
                _, counted, found = jax.device_get(run(params, rows, *more))
                num_targets += int(counted)
                sums = {name: sums.get(name, 0.0) + float(value) for name, value in found.items()}
        return {name: value / max(num_targets, 1) for name, value in sums.items()}

    return mean
