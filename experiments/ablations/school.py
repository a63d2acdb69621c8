"""Toy students, side by side: the same rows in the same order, one thing different.

The text is the Python standard library, as in the demo. Each seed has a part of the rows of its own, whose first are
held out; teachers learn from the last rows of all. So nobody is scored on rows that anybody has learned from.
"""

import dataclasses
import functools
import itertools
import json
import pathlib
import sys
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import trials

from gemma3_jax import settings, sharding
from gemma3_jax.data import dataset, stream
from gemma3_jax.data.prepare import builtin, pipeline
from gemma3_jax.data.prepare import settings as prepare_settings
from gemma3_jax.distill import settings as distill_settings
from gemma3_jax.distill import targets
from gemma3_jax.losses import vocab_parallel
from gemma3_jax.model import config, execution, masks, parameters
from gemma3_jax.quant import settings as quant_settings
from gemma3_jax.stages import step as stage_step
from gemma3_jax.train import settings as train_settings

SEQ_LEN, LONG_SEQ_LEN = 128, 1_024  # tokens; the second is of the extension
VOCAB_SIZE = 2_048
PEAK_LR = 4e-3
NUM_BINS = 15  # of confidence, for the error of calibration
NUM_HELD_OUT = 32  # steps of rows, of each seed
BATCH_SIZE, TEACHER_BATCH_SIZE = 4, 8
TEACHER_SHARE = 40  # hundredths of the rows, the last ones
EXECUTION = execution.Execution(dtype="bfloat16")


def model(width: int, num_layers: int, **columns) -> config.Config:
    """Two heads of a quarter of the width each; every third layer is global; but for the columns that are given."""
    return config.Config(
        **{
            "num_layers": num_layers,
            "num_local_per_global": 2,
            "embed_dim": width,
            "mlp_dim": 4 * width,
            "num_heads": 2,
            "num_kv_heads": 1,
            "head_dim": width // 4,
            "sliding_window": 64,
            "query_scale": (width // 4) ** -0.5,
            "rope_scale": 1.0,
            "vocab_size": VOCAB_SIZE,
            **columns,
        }
    )


def held_out_files() -> list[pathlib.Path]:
    """Every tenth of the modules of 20 KB and more: no row is made of them."""
    return [file for file in builtin.files() if file.stat().st_size >= 20_000][::10]


def learned_files() -> list[pathlib.Path]:
    """All others."""
    left_out = set(held_out_files())
    return [file for file in builtin.files() if file not in left_out]


def make_data(output: str, num_files: int | None = None) -> dataset.Dataset:
    """Rows of the first so many modules, None: of all, in a directory of their own. What is there already is taken."""
    directory = pathlib.Path(output)
    path = directory / ("data" if num_files is None else f"data_of_{num_files}_files")
    if not (path / dataset.MANIFEST).exists():
        directory.mkdir(parents=True, exist_ok=True)
        texts = [row["text"] for file in learned_files()[:num_files] for row in builtin.rows(file)]
        library = path.with_suffix(".jsonl")
        library.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        made = prepare_settings.PrepareConfig(
            sources={"library": prepare_settings.SourceConfig(paths=(str(library),))},
            seq_lens=(SEQ_LEN, LONG_SEQ_LEN),
            tokenizer=prepare_settings.TokenizerConfig(size=VOCAB_SIZE, max_characters=4_000_000),
        )
        print("making rows of the Python standard library", file=sys.stderr)
        pipeline.run(made, str(path))
    return dataset.open_dataset(path)


@dataclasses.dataclass
class Student:
    """One that learns: its state, and what it does with a batch."""

    step: Callable  # (state, frozen, batch) -> (state, reported)
    state: object
    frozen: dict
    view: Callable  # (rows, the teacher's logits) -> batch

    def learn(self, rows: stream.Rows, logits: jax.Array | None = None) -> None:
        self.state, _ = self.step(self.state, self.frozen, self.view(rows, logits))


class School:
    """Makes students of one shape and schedule: they share what is compiled."""

    def __init__(
        self,
        data: dataset.Dataset,
        of: config.Config,
        *,
        num_steps: int,
        batch_size: int = BATCH_SIZE,
        seq_len: int = SEQ_LEN,
        peak_lr: float = PEAK_LR,
    ):
        rates = train_settings.AdamW(peak_lr=peak_lr, warmup_steps=min(20, num_steps // 2), weight_decay=0.0)
        self._stage = functools.partial(
            settings.StageEntry, num_steps=num_steps, batch_size=batch_size, seq_len=seq_len, optimizer=rates
        )
        self._data, self._model, self._made = data, of, {}

    def by_next_token(self, seed: int = 0, start: dict | None = None) -> Student:
        """One that learns the token that did come, from fresh parameters or from a copy of `start`."""
        return self._student("next_token", self._stage(), _rows_alone, seed, start)

    def by_samples(self, samples: distill_settings.Samples, seed: int = 0) -> Student:
        """Of the teacher's word in so many numbers a token; as many as V are all of them."""
        draw = _draw(samples)

        def view(rows, logits):
            places = jnp.broadcast_to(jnp.arange(rows.tokens.shape[1], dtype=jnp.int32), rows.tokens.shape)
            return stream.DistillBatch(rows, draw(logits, rows.labels, rows.row_ids, places))

        # The loss is the same program for every estimator: it sees ids and weights alone.
        same = dataclasses.replace(samples, estimator="stratified")
        stage = self._stage(loss="distill", samples=same)
        return self._student(f"M {samples.num_samples}", stage, view, seed)

    def by_itself(self, quant: quant_settings.Quant, start: dict) -> Student:
        """One whose weights are rounded, from all that `start` says where nothing is: the recipe's `qat`."""
        whole = distill_settings.Samples(estimator=distill_settings.WHOLE)
        stage = self._stage(loss="distill", teacher=settings.START, samples=whole, quant=quant)
        student = self._student(quant.name, stage, _rows_alone, 0, start, teacher_model=self._model)
        return dataclasses.replace(
            student, frozen={"teacher": jax.tree.map(lambda x: x.astype(EXECUTION.dtype), start)}
        )

    def _student(
        self, name: str, stage: settings.StageEntry, view: Callable, seed: int, start: dict | None = None, **teacher
    ) -> Student:
        if name not in self._made:
            run_config = settings.Train(
                model=self._model,
                data=str(self._data.path),
                execution=EXECUTION,
                stage_order=("toy",),
                stages={"toy": stage},
            )
            num_bytes = np.zeros(VOCAB_SIZE, np.int32)
            config = settings.resolve(run_config, "toy")
            program = stage_step.make(config, sharding.make_mesh(), num_bytes, **teacher)
            init = jax.jit(functools.partial(parameters.init, self._model, mesh=program.mesh))  # compiled for all seeds
            self._made[name] = program, init, jax.jit(program.step(), donate_argnums=0)
        program, init, step = self._made[name]
        # A copy: the step gives away what it was handed.
        params = init(jax.random.key(seed)) if start is None else jax.tree.map(jnp.copy, start)
        return Student(step, program.begin(params), {}, view)


@functools.cache
def _draw(samples: distill_settings.Samples) -> Callable:
    """What is drawn goes by the row's number, so each seed of students has its own."""
    return jax.jit(functools.partial(targets.draw, vocab_parallel.Shard(VOCAB_SIZE), samples=samples, seed=0))


def _rows_alone(rows: stream.Rows, logits: jax.Array | None) -> stream.Rows:
    return rows


def logits_of(of: config.Config) -> Callable:
    """(parameters, rows) -> float32[B, T, V], of all tokens at once: a toy's fit."""

    @jax.jit
    def logits(params, rows):
        bound = parameters.bind(of, params)
        return bound.logits(bound(rows.tokens, masks.TokenLayout(rows.segments, rows.positions), execute=EXECUTION))

    return logits


def rows_of(
    data: dataset.Dataset,
    seed: int,
    num_steps: int,
    *,
    seq_len: int = SEQ_LEN,
    batch_size: int = BATCH_SIZE,
) -> tuple[list[stream.Rows], Iterator[stream.Rows]]:
    """The held-out rows of a seed, in NUM_HELD_OUT steps, and its others, step after step.

    Raises: ValueError if the rows of seed and teachers would meet.
    """
    part = NUM_HELD_OUT + num_steps
    num_rows, has = (seed + 1) * part * batch_size, num_rows_of(data, seq_len)
    num_of_students = has if seq_len != SEQ_LEN else has - TEACHER_SHARE * has // 100
    if num_rows > num_of_students:
        raise ValueError(
            f"{seed + 1} seeds of {num_steps} steps have {num_rows:,} rows of {seq_len} tokens, and there are "
            f"{num_of_students:,} for students; take fewer of --steps or --seeds"
        )
    rows = _rows_from(data, seed * part, part, seq_len, batch_size)
    return list(itertools.islice(rows, NUM_HELD_OUT)), rows


def rows_of_teachers(data: dataset.Dataset, num_steps: int) -> Iterator[stream.Rows]:
    """The rows that every teacher learns from, step after step. Raises: ValueError if there are too few."""
    has = num_rows_of(data, SEQ_LEN)
    of_teachers = TEACHER_SHARE * has // 100
    first_step = -(-(has - of_teachers) // TEACHER_BATCH_SIZE)
    if (first_step + num_steps) * TEACHER_BATCH_SIZE > has:
        raise ValueError(
            f"{num_steps:,} steps of a teacher have {num_steps * TEACHER_BATCH_SIZE:,} rows, and there are "
            f"{of_teachers:,} for teachers; take fewer of --teacher_steps"
        )
    return _rows_from(data, first_step, num_steps, SEQ_LEN, TEACHER_BATCH_SIZE)


def num_rows_of(data: dataset.Dataset, seq_len: int) -> int:
    return sum(part["rows"][str(seq_len)] for part in data.manifest["parts"].values())


def _rows_from(
    data: dataset.Dataset, first_step: int, num_steps: int, seq_len: int, batch_size: int
) -> Iterator[stream.Rows]:
    with stream.open_stream(
        data.path,
        sharding.make_mesh(),
        seq_len=seq_len,
        batch_size=batch_size,
        seed=0,
        first_step=first_step,
    ) as batches:
        for batch in itertools.islice(batches, num_steps):
            yield batch.rows


def teacher(data: dataset.Dataset, of: config.Config, num_steps: int) -> dict:
    """The parameters of one that has learned the next token from the teachers' rows; kept beside the data."""
    path = data.path.with_name(f"{data.path.name}_teachers") / f"width_{of.embed_dim}_steps_{num_steps}.npz"
    if path.exists():
        tree = jax.tree.structure(parameters.shapes(of))
        with np.load(path) as kept:
            return jax.tree.unflatten(tree, [jnp.asarray(kept[str(number)]) for number in range(tree.num_leaves)])
    school = School(data, of, num_steps=num_steps, batch_size=TEACHER_BATCH_SIZE)
    learner = school.by_next_token(seed=1_000)
    progress = trials.Progress(f"teacher of width {of.embed_dim}", num_steps)
    for rows in rows_of_teachers(data, num_steps):
        learner.learn(rows)
        progress.step()
    path.parent.mkdir(exist_ok=True)
    kept = {str(number): np.asarray(leaf) for number, leaf in enumerate(jax.tree.leaves(learner.state.params))}
    unfinished = path.with_suffix(".part.npz")
    np.savez(unfinished, **kept)
    unfinished.rename(path)
    return learner.state.params


def of_shapes(data: dataset.Dataset, models: dict[str, config.Config], num_steps: int) -> trials.Measure:
    """Measures `nats` of students that differ in their model: a setting is the name of one."""

    @functools.cache
    def made(setting: str) -> tuple[School, Callable]:
        return School(data, models[setting], num_steps=num_steps), logits_of(models[setting])

    def measure(seed, settings, progress):
        for setting in settings:
            school, read = made(setting)
            student = school.by_next_token(seed)
            held_out, rows = rows_of(data, seed, num_steps)
            for batch in rows:
                student.learn(batch)
                progress.step()
            yield setting, {"nats": nats(read, student.state.params, held_out)}

    return measure


@jax.jit
def sums(logits, teacher_logits, rows) -> dict[str, jax.Array]:
    """Over the targets of some rows: nats, KL from the teacher, and per bin of confidence counts, hits, confidence."""
    mask = rows.loss_mask
    ours, theirs = jax.nn.log_softmax(logits), jax.nn.log_softmax(teacher_logits)
    nats = -jnp.take_along_axis(ours, rows.labels[..., None], axis=-1)[..., 0]
    kl = jnp.sum(jnp.exp(theirs) * (theirs - ours), axis=-1)
    confidence, hit = jnp.exp(ours.max(-1)), ours.argmax(-1) == rows.labels
    bins = jnp.minimum((confidence * NUM_BINS).astype(jnp.int32), NUM_BINS - 1)

    def binned(x):
        return jnp.zeros(NUM_BINS).at[bins].add(x * mask)

    return {
        "num_targets": mask.sum(),
        "nats": jnp.sum(nats * mask),
        "kl": jnp.sum(kl * mask),
        "entropy": -jnp.sum(jnp.sum(jnp.exp(ours) * ours, axis=-1) * mask),
        "counts": binned(jnp.ones(mask.shape)),
        "hits": binned(hit.astype(jnp.float32)),
        "confidence": binned(confidence),
    }


def nats(logits: Callable, params: dict, held_out: list[stream.Rows]) -> float:
    """Of the next token, mean over the targets of rows."""
    parts = [_nats(logits(params, rows), rows) for rows in held_out]
    return float(sum(total for total, _ in parts) / sum(count for _, count in parts))


@jax.jit
def _nats(logits, rows) -> tuple[jax.Array, jax.Array]:
    log_probs = jnp.take_along_axis(jax.nn.log_softmax(logits), rows.labels[..., None], axis=-1)[..., 0]
    return -jnp.sum(log_probs * rows.loss_mask), rows.loss_mask.sum()


def score(logits: Callable, params: dict, held_out: list[tuple[stream.Rows, jax.Array]]) -> dict[str, float]:
    """On rows beside the teacher's logits of them: `nats` a token, `kl` from the teacher, and calibration.

    `calibration_error` is the expected one (Guo et al. 2017) of the most probable token; `overconfidence` is nats less
    the student's own entropy: above 0 where it is surer than it is right.
    """
    parts = [sums(logits(params, rows), theirs, rows) for rows, theirs in held_out]
    total = {name: sum(np.asarray(part[name], np.float64) for part in parts) for name in parts[0]}
    count = total["num_targets"]
    return {
        "nats": float(total["nats"] / count),
        "kl": float(total["kl"] / count),
        "calibration_error": float(np.abs(total["hits"] - total["confidence"]).sum() / count),
        "overconfidence": float((total["nats"] - total["entropy"]) / count),
    }
