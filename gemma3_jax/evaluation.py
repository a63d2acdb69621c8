"""What a stage is measured by while it trains: how well it predicts rows that no stage learns from.

A stage that rounds its weights is held against what it began with, over the whole vocabulary: unquantised; rounded
there and then, which is quantisation after training; and as it is now, rounded too.
"""

import math
from collections.abc import Callable, Sequence

import jax
import numpy as np

from gemma3_jax import settings
from gemma3_jax.distill import loss, teacher
from gemma3_jax.distill import settings as distill_settings
from gemma3_jax.model import config
from gemma3_jax.train import stage

WHOLE = distill_settings.Samples(estimator=distill_settings.WHOLE)
Begin = Callable[[dict], Callable[[dict], dict[str, float]]]


def make(
    given: settings.Train,
    leg: stage.Leg,
    model: config.Config,
    *,
    num_bytes: np.ndarray,
    open_rows: Callable[[], Sequence],
    load_start: Callable[[str], dict],
) -> stage.Evaluation | None:
    """What the settings of a leg's stage ask for. `load_start(dtype)` reads the parameters that it began with."""
    asked = given.stages[leg.name]
    if not asked.evaluation.every_steps:
        return None
    if asked.quant.format:
        has_start = asked.teacher == settings.START
        begin = _of_rounding(given, leg, model, num_bytes, open_rows, load_start, is_frozen=has_start)
    else:
        begin = _of_next_token(given, leg, model, num_bytes, open_rows)
    return stage.Evaluation(every_steps=asked.evaluation.every_steps, begin=begin)


def _of_next_token(given: settings.Train, leg: stage.Leg, model: config.Config, num_bytes, open_rows) -> Begin:
    def begin(_):
        mean, rows = _mean(loss.next_token(model, given.execution, num_bytes=num_bytes), leg.mesh), open_rows()

        def score(params):
            found = mean(params, rows)
            return {"nats": found["loss"], "bits_per_byte": found["loss"] / found["bytes_per_target"] / math.log(2)}

        return score

    return begin


def _of_rounding(
    given: settings.Train, leg: stage.Leg, model: config.Config, num_bytes, open_rows, load_start, *, is_frozen: bool
) -> Begin:
    """`is_frozen`: whether what is frozen in the leg is its start."""

    def begin(frozen):
        unquantised, rows = frozen if is_frozen else load_start(given.execution.dtype), open_rows()
        targets_of = teacher.make(model, given.execution, samples=WHOLE, seed=0)
        distilled = loss.distilled(model, given.execution, num_bytes=num_bytes, samples=WHOLE, targets_of=targets_of)
        view = leg.stage.view_params
        mean = _mean(lambda params, rows, unquantised: distilled(view(params), unquantised, rows), leg.mesh)
        rounded = mean(load_start("float32"), rows, unquantised)
        return lambda params: compare(rounded, mean(params, rows, unquantised))

    return begin


def compare(rounded: dict[str, float], trained: dict[str, float]) -> dict[str, float]:
    """What training brought back of what rounding cost; of two means over the same rows of what `distilled` reports."""
    whole, least, nats = trained["teacher_cross_entropy"], rounded["cross_entropy"], trained["cross_entropy"]
    cost, left = math.exp(least) - math.exp(whole), math.exp(nats) - math.exp(whole)
    rounded_kl, trained_kl = rounded["kl_to_teacher"], trained["kl_to_teacher"]
    return {
        "unquantised_nats": whole,
        "rounded_nats": least,
        "trained_nats": nats,
        "rounded_kl": rounded_kl,
        "trained_kl": trained_kl,
        # Rounding may cost nothing, as chance has it: then there is no share of it.
        "recovered_perplexity": 1 - left / cost if cost > 0 else math.nan,
        "recovered_kl": 1 - trained_kl / rounded_kl if rounded_kl > 0 else math.nan,
    }


def _mean(f: Callable, mesh: jax.sharding.Mesh) -> Callable[..., dict[str, float]]:
    """`(parameters, batches of rows, more) -> ` the sums of `f(parameters, rows, more)` over the number of targets."""
    run = jax.jit(f)

    def mean(params: dict, batches: Sequence, *more) -> dict[str, float]:
        num_targets, sums = 0, {}
        with jax.set_mesh(mesh):
            for rows in batches:
                _, counted, found = jax.device_get(run(params, rows, *more))
                num_targets += int(counted)
                sums = {name: sums.get(name, 0.0) + float(value) for name, value in found.items()}
        return {name: value / max(num_targets, 1) for name, value in sums.items()}

    return mean
