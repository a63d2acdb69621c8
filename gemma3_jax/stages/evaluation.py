"""Evaluation while a stage trains: on rows that no stage trains on.

They are disjoint from the rows that stages train on; rows of another length may hold the same documents. A stage that
quantizes is compared with the parameters that it began with, over the whole vocabulary: unquantized, rounded before
any training, and as they are now. In addition, the tasks of `evaluate` run on the weights as training sees them.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gemma3_jax import settings
from gemma3_jax.data import interleave, order, stream
from gemma3_jax.distill import settings as distill_settings
from gemma3_jax.distill import teacher
from gemma3_jax.evals import registry, task
from gemma3_jax.evals import settings as evals_settings
from gemma3_jax.inference import sampler
from gemma3_jax.losses import distillation, next_token
from gemma3_jax.stages import inputs
from gemma3_jax.tokenizer import vocabulary
from gemma3_jax.train import program, stage_run, step

WHOLE = distill_settings.Samples(estimator=distill_settings.WHOLE)
Begin = Callable[[dict], Callable[[dict], dict[str, float]]]


def make(
    config: settings.StageConfig,
    step_program: program.Program,
    *,
    num_bytes: np.ndarray,
    tokenizer: vocabulary.Tokenizer,
    open_rows: Callable[[], Sequence],
    load_initial: Callable[[str], dict],
) -> stage_run.Evaluation | None:
    """Returns the evaluation that a stage's config asks for. `load_initial(dtype)`: the parameters it began with.

    Raises: ValueError if a task cannot be built.
    """
    if not config.evaluation.every_steps:
        return None
    if config.quant.format:
        begin = _rounding(config, step_program, num_bytes=num_bytes, open_rows=open_rows, load_initial=load_initial)
    else:
        begin = _next_token(config, step_program, num_bytes=num_bytes, open_rows=open_rows)
    if config.evaluation.measures.tasks:
        begin = _with_tasks(config, step_program, tokenizer=tokenizer, begin=begin)
    return stage_run.Evaluation(every_steps=config.evaluation.every_steps, begin=begin)


def open_rows(
    configs: Sequence[settings.StageConfig],
    step_program: program.Program,
    data: inputs.StageData,
    *,
    warn: Callable[[str], None],
) -> list[stream.Rows]:
    """Reads rows of a stage's data, by its mixture, that come after all those that the run's stages train on."""
    [config] = [config for config in configs if config.name == step_program.name]
    trained_on = [
        (inputs.find_order(other, data.dataset), other.num_steps)
        for other in configs
        if (other.data, other.seq_len) == (config.data, config.seq_len)
    ]
    first, num_steps = first_unseen(data.rows, trained_on), math.ceil(config.evaluation.num_rows / config.batch_size)
    if max(data.rows.epochs(first + num_steps).values()) > 1:
        warn(f"warning: {config.name} is evaluated on sequences that it trains on: {data.dataset.path} has no others")
    with stream.Stream(data.dataset, data.rows, step_program.mesh, first_step=first) as batches:
        return [next(batches).rows for _ in range(num_steps)]


def first_unseen(rows: order.Order, trained_on: Sequence[tuple[order.Order, int]]) -> int:
    """Returns the first step with no row of the first `num_steps` steps of any other (order, num_steps) of these rows.

    That holds in the first epoch: orders of one seed take the rows of a part one after the other in the same way.
    """
    counts: dict[str, float] = {}  # rows of each part
    for other, num_steps in trained_on:
        for part, fraction in other.fractions.items():
            count = fraction * num_steps * other.batch_size + interleave.MOST_AHEAD
            counts[part] = max(counts.get(part, 0), count)
    first_row = max(
        (counts.get(part, 0) + interleave.MOST_AHEAD) / fraction for part, fraction in rows.fractions.items()
    )
    return math.ceil(first_row / rows.batch_size)


def _next_token(config: settings.StageConfig, step_program: program.Program, *, num_bytes, open_rows) -> Begin:
    def begin(frozen):
        loss = next_token.make(config.model, config.execution, num_bytes=num_bytes)
        view = step_program.stage.view_params
        mean = _mean(lambda params, batch, frozen: loss(view(params, frozen), {}, batch), step_program)
        rows = open_rows()

        def score(params):
            means = mean(params, rows, frozen)
            return {"nats": means["loss"], "bits_per_byte": means["loss"] / means["bytes_per_target"] / math.log(2)}

        return score

    return begin


def _rounding(
    config: settings.StageConfig, step_program: program.Program, *, num_bytes, open_rows, load_initial
) -> Begin:
    """Returns the evaluation of a stage that rounds, against its start: its teacher, or read once more."""

    def begin(frozen):
        is_teacher = config.teacher == settings.START
        unquantized = frozen["teacher"] if is_teacher else load_initial(config.execution.dtype)
        rows = open_rows()
        teach = teacher.make(config.model, config.execution, samples=WHOLE)
        loss = distillation.make(
            config.model,
            config.execution,
            num_bytes=num_bytes,
            temperature=WHOLE.temperature,
            knows_kl=True,
            targets_of=lambda frozen, batch: teach(frozen["teacher"], batch, 0),
        )
        view = step_program.stage.view_params
        mean = _mean(
            lambda params, batch, unquantized: loss(view(params, {}), {"teacher": unquantized}, batch), step_program
        )
        rounded = mean(load_initial("float32"), rows, unquantized)
        return lambda params: compare(rounded, mean(params, rows, unquantized))

    return begin


def compare(rounded: dict[str, float], trained: dict[str, float]) -> dict[str, float]:
    """Returns how much of the loss of rounding training has recovered, from two means of `distillation`'s sums."""
    whole, least, nats = trained["teacher_cross_entropy"], rounded["cross_entropy"], trained["cross_entropy"]
    with np.errstate(over="ignore", invalid="ignore"):  # of a run that has diverged; the loop reports that
        cost, left = np.exp([least, nats]) - np.exp(whole)
    rounded_kl, trained_kl = rounded["kl_to_teacher"], trained["kl_to_teacher"]
    return {
        "unquantized_nats": whole,
        "rounded_nats": least,
        "trained_nats": nats,
        "rounded_kl": rounded_kl,
        "trained_kl": trained_kl,
        # Rounding may happen to cost nothing: then there is no fraction of it.
        "recovered_perplexity": float(1 - left / cost) if 0 < cost < math.inf else math.nan,
        "recovered_kl": 1 - trained_kl / rounded_kl if rounded_kl > 0 else math.nan,
    }


def _with_tasks(
    config: settings.StageConfig, step_program: program.Program, *, tokenizer: vocabulary.Tokenizer, begin: Begin
) -> Begin:
    measures = config.evaluation.measures
    if (readers := set(measures.tasks) & set(evals_settings.READ_DOCUMENTS)) and not measures.documents:
        raise ValueError(
            f"evaluation.measures.tasks has {min(readers)}, and measures.documents is empty, as config.documents is; "
            "name the documents it reads: --config.documents=FILE"
        )
    gemma = sampler.build(config.model, tokenizer, mesh=step_program.mesh, execute=config.execution)
    tasks = [registry.make(name, gemma, measures) for name in measures.tasks]
    # Without a format the view moves no number: a jitted one would copy the parameters.
    view = jax.jit(step_program.stage.view_params) if config.quant.format else step_program.stage.view_params

    def begin_all(frozen):
        score = begin(frozen)

        def evaluate(params):
            results = score(params)
            with jax.set_mesh(step_program.mesh):
                viewed = view(params, frozen)
            for each in tasks:
                summary = task.run(each, lambda: viewed, model_id=step_program.name)
                results |= {f"{each.name}/{name}": number for name, number in task.numbers(summary).items()}
                results |= {name: value for name, value in summary.items() if isinstance(value, list)}
            return results

        return evaluate

    return begin_all


def _mean(f: Callable, step_program: program.Program) -> Callable[..., dict[str, float]]:
    """Returns `(params, batches, *more) -> means`: the sums of `f(params, batch, *more)` over the number of targets.

    A batch is evaluated in as many parts as it is trained in.
    """

    @jax.jit
    def run(params, batch, *more):
        parts = jax.tree.map(lambda x: step.split(x, step_program.grad_accum_steps), batch)
        sums = jax.lax.map(lambda part: f(params, part, *more), parts)
        return jax.tree.map(lambda x: jnp.sum(x, axis=0), sums)

    def mean(params: dict, batches: Sequence, *more) -> dict[str, float]:
        num_targets, totals = 0, {}
        with jax.set_mesh(step_program.mesh):
            for batch in batches:
                _, count, sums = jax.device_get(run(params, batch, *more))
                num_targets += int(count)
                totals = {name: totals.get(name, 0.0) + float(value) for name, value in sums.items()}
        return {name: value / max(num_targets, 1) for name, value in totals.items()}

    return mean
