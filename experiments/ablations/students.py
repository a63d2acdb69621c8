"""Toy students that differ in one thing: they train on the same batches in the same order.

The text is the Python standard library, as in the demo. Each seed has its own part of the rows; the first rows of that
part are held out. Teachers train on the last rows of the data. So no model is scored on a row that any model trained
on.
"""

import dataclasses
import functools
import itertools
import json
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import trials

from gemma3_jax import settings, sharding
from gemma3_jax.data import dataset, stream
from gemma3_jax.data.prepare import builtin, pipeline
from gemma3_jax.data.prepare import settings as prepare_settings
from gemma3_jax.distill import noise, targets
from gemma3_jax.distill import settings as distill_settings
from gemma3_jax.losses import vocab_parallel
from gemma3_jax.model import config, execution, masks, parameters
from gemma3_jax.quant import settings as quant_settings
from gemma3_jax.stages import step as stage_step
from gemma3_jax.train import settings as train_settings

SEQ_LEN, LONG_SEQ_LEN = 128, 1_024  # tokens; the second is for the long-context extension
VOCAB_SIZE = 2_048
PEAK_LR = 4e-3
NUM_BINS = 15  # confidence bins of the calibration error
BATCH_SIZE, TEACHER_BATCH_SIZE = 4, 8
TEACHER_PERCENT = 40  # of the rows; the last ones
EXECUTION = execution.Execution(dtype="bfloat16")


def toy_model(embed_dim: int, num_layers: int, **fields) -> config.Config:
    """Two query heads, each of a quarter of `embed_dim`; every third layer is global. `fields` override the rest."""
    return config.Config(
        **{
            "num_layers": num_layers,
            "num_local_per_global": 2,
            "embed_dim": embed_dim,
            "mlp_dim": 4 * embed_dim,
            "num_heads": 2,
            "num_kv_heads": 1,
            "head_dim": embed_dim // 4,
            "sliding_window": 64,
            "query_scale": (embed_dim // 4) ** -0.5,
            "rope_scale": 1.0,
            "vocab_size": VOCAB_SIZE,
            **fields,
        }
    )


def held_out_files() -> list[pathlib.Path]:
    """Every tenth module of 20 KB and more: the dataset has no text of them."""
    return [file for file in builtin.files() if file.stat().st_size >= 20_000][::10]


def training_files() -> list[pathlib.Path]:
    """All modules that are not held out."""
    held_out = set(held_out_files())
    return [file for file in builtin.files() if file not in held_out]


def make_data(output: str, num_files: int | None = None) -> dataset.Dataset:
    """The dataset of the first `num_files` modules (None: of all), each in its own directory. Reused if it is there."""
    directory = pathlib.Path(output)
    path = directory / ("data" if num_files is None else f"data_of_{num_files}_files")
    if not (path / dataset.MANIFEST).exists():
        directory.mkdir(parents=True, exist_ok=True)
        texts = [row["text"] for file in training_files()[:num_files] for row in builtin.rows(file)]
        library = path.with_suffix(".jsonl")
        library.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        prepare_config = prepare_settings.PrepareConfig(
            sources={"library": prepare_settings.SourceConfig(paths=(str(library),))},
            seq_lens=(SEQ_LEN, LONG_SEQ_LEN),
            tokenizer=prepare_settings.TokenizerConfig(size=VOCAB_SIZE, max_characters=4_000_000),
        )
        print("preparing the text of the Python standard library", file=sys.stderr)
        pipeline.run(prepare_config, str(path))
    return dataset.open_dataset(path)


@dataclasses.dataclass
class Student:
    """The training state of one student, and its step."""

    step: Callable  # (state, frozen, hyperparameters, batch) -> (state, metrics)
    state: object
    frozen: dict
    hyperparameters: object
    make_batch: Callable  # (rows, teacher logits) -> batch

    def train_step(self, rows: stream.Rows, teacher_logits: jax.Array | None = None) -> None:
        self.state, _ = self.step(self.state, self.frozen, self.hyperparameters, self.make_batch(rows, teacher_logits))

    def train(self, batches: Iterable[stream.Rows], progress: trials.Progress) -> dict:
        """Takes a step on each batch, without a teacher. Returns the parameters."""
        for batch in batches:
            self.train_step(batch)
            progress.step()
        return self.state.params


class StudentFactory:
    """Makes students of one model and schedule. Students of one kind share a compiled step."""

    def __init__(
        self,
        data: dataset.Dataset,
        model: config.Config,
        *,
        num_steps: int,
        batch_size: int = BATCH_SIZE,
        seq_len: int = SEQ_LEN,
        peak_lr: float = PEAK_LR,
    ):
        optimizer = train_settings.AdamW(peak_lr=peak_lr, warmup_steps=min(20, num_steps // 2), weight_decay=0.0)
        self._stage = functools.partial(
            settings.StageEntry, num_steps=num_steps, batch_size=batch_size, seq_len=seq_len, optimizer=optimizer
        )
        self._data, self._model, self._compiled = data, model, {}

    def next_token(self, seed: int = 0, start: dict | None = None) -> Student:
        """A student of the next-token loss, from fresh parameters or from a copy of `start`."""
        return self._student("next_token", self._stage(), _rows_only, seed, start)

    def distilled(self, samples: distill_settings.Samples, seed: int = 0) -> Student:
        """A student of the teacher's targets, M of them a token; M = V is the whole distribution."""
        draw = _draw(samples)

        def make_batch(rows, teacher_logits):
            positions = jnp.broadcast_to(jnp.arange(rows.tokens.shape[1], dtype=jnp.int32), rows.tokens.shape)
            return stream.DistillBatch(rows, draw(teacher_logits, rows.labels, rows.row_ids, positions))

        # The loss is the same program for every estimator, as it takes ids and weights alone.
        stage = self._stage(loss="distill", samples=dataclasses.replace(samples, estimator="stratified"))
        return self._student(f"M {samples.num_samples}", stage, make_batch, seed)

    def quantized(self, quant: quant_settings.Quant, start: dict) -> Student:
        """A student with rounded weights, distilled from the whole distribution of `start`: the recipe's `qat`."""
        whole = distill_settings.Samples(estimator=distill_settings.WHOLE)
        stage = self._stage(loss="distill", teacher=settings.START, samples=whole, quant=quant)
        student = self._student(quant.name, stage, _rows_only, 0, start, teacher_model=self._model)
        return dataclasses.replace(
            student, frozen={"teacher": jax.tree.map(lambda x: x.astype(EXECUTION.dtype), start)}
        )

    def _student(
        self,
        kind: str,
        stage: settings.StageEntry,
        make_batch: Callable,
        seed: int,
        start: dict | None = None,
        *,
        teacher_model: config.Config | None = None,
    ) -> Student:
        if kind not in self._compiled:
            run_config = settings.Train(
                model=self._model,
                data=str(self._data.path),
                execution=EXECUTION,
                stage_order=("toy",),
                stages={"toy": stage},
            )
            num_bytes = np.zeros(VOCAB_SIZE, np.int32)
            stage_config = settings.resolve(run_config, "toy")
            program = stage_step.make(stage_config, sharding.make_mesh(), num_bytes, teacher_model=teacher_model)
            init = jax.jit(functools.partial(parameters.init, self._model, mesh=program.mesh))  # compiled for all seeds
            self._compiled[kind] = program, init, jax.jit(program.step(), donate_argnums=0)
        program, init, step = self._compiled[kind]
        # A copy, as the step donates its state.
        params = init(jax.random.key(seed)) if start is None else jax.tree.map(jnp.copy, start)
        return Student(step, program.begin(params), {}, program.place_hyperparameters(), make_batch)


@functools.cache
def _draw(samples: distill_settings.Samples) -> Callable:
    """Draws targets by row id, so the students of different seeds have different draws."""

    def draw(logits, labels, row_ids, positions):
        words = noise.token_words(0, row_ids, positions)
        return targets.draw(vocab_parallel.Shard(VOCAB_SIZE), logits, labels, words, samples=samples)

    return jax.jit(draw)


def _rows_only(rows: stream.Rows, teacher_logits: jax.Array | None) -> stream.Rows:
    return rows


def make_logits(model: config.Config) -> Callable:
    """(parameters, rows) -> float32[B, T, V], of all tokens at once, as a toy's logits fit in memory."""

    @jax.jit
    def logits(params, rows):
        bound = parameters.bind(model, params)
        return bound.logits(bound(rows.tokens, masks.TokenLayout(rows.segments, rows.positions), execute=EXECUTION))

    return logits


def student_batches(
    data: dataset.Dataset,
    seed: int,
    num_steps: int,
    *,
    num_held_out: int,
    seq_len: int = SEQ_LEN,
    batch_size: int = BATCH_SIZE,
) -> tuple[list[stream.Rows], Iterator[stream.Rows]]:
    """The held-out batches of a seed, and its training batches.

    Raises: ValueError if the data has too few rows for students.
    """
    num_batches = num_held_out + num_steps
    num_rows, num_available = (seed + 1) * num_batches * batch_size, num_rows_of(data, seq_len)
    num_for_students = num_available if seq_len != SEQ_LEN else num_available - TEACHER_PERCENT * num_available // 100
    if num_rows > num_for_students:
        raise ValueError(
            f"{seed + 1} seeds of {num_steps} steps need {num_rows:,} rows of {seq_len} tokens, and there are "
            f"{num_for_students:,} for students; take fewer of --steps, --seeds or --held_out"
        )
    batches = _batches(data, seed * num_batches, num_batches, seq_len, batch_size)
    return list(itertools.islice(batches, num_held_out)), batches


def teacher_batches(data: dataset.Dataset, num_steps: int) -> Iterator[stream.Rows]:
    """The batches that every teacher trains on. Raises: ValueError if there are too few."""
    num_available = num_rows_of(data, SEQ_LEN)
    num_for_teachers = TEACHER_PERCENT * num_available // 100
    first_step = -(-(num_available - num_for_teachers) // TEACHER_BATCH_SIZE)
    if (first_step + num_steps) * TEACHER_BATCH_SIZE > num_available:
        raise ValueError(
            f"{num_steps:,} steps of a teacher need {num_steps * TEACHER_BATCH_SIZE:,} rows, and there are "
            f"{num_for_teachers:,} for teachers; take fewer of --teacher_steps"
        )
    return _batches(data, first_step, num_steps, SEQ_LEN, TEACHER_BATCH_SIZE)


def num_rows_of(data: dataset.Dataset, seq_len: int) -> int:
    return sum(part["rows"][str(seq_len)] for part in data.manifest["parts"].values())


def _batches(
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


def teacher_params(data: dataset.Dataset, model: config.Config, num_steps: int) -> dict:
    """The parameters of a teacher after `num_steps` of the next-token loss; saved next to the data and reused."""
    path = data.path.with_name(f"{data.path.name}_teachers") / f"width_{model.embed_dim}_steps_{num_steps}.npz"
    if path.exists():
        tree = jax.tree.structure(parameters.shapes(model))
        with np.load(path) as saved:
            return jax.tree.unflatten(tree, [jnp.asarray(saved[str(number)]) for number in range(tree.num_leaves)])
    factory = StudentFactory(data, model, num_steps=num_steps, batch_size=TEACHER_BATCH_SIZE)
    teacher = factory.next_token(seed=1_000)
    progress = trials.Progress(f"teacher of embed_dim {model.embed_dim}", num_steps)
    params = teacher.train(teacher_batches(data, num_steps), progress)
    path.parent.mkdir(exist_ok=True)
    leaves = {str(number): np.asarray(leaf) for number, leaf in enumerate(jax.tree.leaves(params))}
    unfinished = path.with_suffix(".part.npz")
    np.savez(unfinished, **leaves)
    unfinished.rename(path)
    return teacher.state.params


def measure_models(
    data: dataset.Dataset, models: dict[str, config.Config], num_steps: int, num_held_out: int
) -> trials.Measure:
    """Measures `nats` of students that differ in their model alone. A setting is a key of `models`."""

    @functools.cache
    def compiled(setting: str) -> tuple[StudentFactory, Callable]:
        return StudentFactory(data, models[setting], num_steps=num_steps), make_logits(models[setting])

    def measure(seed, missing, progress):
        for setting in missing:
            factory, logits = compiled(setting)
            student = factory.next_token(seed)
            held_out, batches = student_batches(data, seed, num_steps, num_held_out=num_held_out)
            yield setting, {"nats": mean_nats(logits, student.train(batches, progress), held_out)}

    return measure


@jax.jit
def score_sums(logits, teacher_logits, rows) -> dict[str, jax.Array]:
    """Sums over the labels of a batch: nats, KL from the teacher, entropy; per bin: counts, hits, confidence."""
    mask = rows.loss_mask
    log_probs, teacher_log_probs = jax.nn.log_softmax(logits), jax.nn.log_softmax(teacher_logits)
    nats = -jnp.take_along_axis(log_probs, rows.labels[..., None], axis=-1)[..., 0]
    kl = jnp.sum(jnp.exp(teacher_log_probs) * (teacher_log_probs - log_probs), axis=-1)
    confidence, hit = jnp.exp(log_probs.max(-1)), log_probs.argmax(-1) == rows.labels
    bins = jnp.minimum((confidence * NUM_BINS).astype(jnp.int32), NUM_BINS - 1)

    def binned(x):
        return jnp.zeros(NUM_BINS).at[bins].add(x * mask)

    return {
        "num_targets": mask.sum(),
        "nats": jnp.sum(nats * mask),
        "kl": jnp.sum(kl * mask),
        "entropy": -jnp.sum(jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1) * mask),
        "counts": binned(jnp.ones(mask.shape)),
        "hits": binned(hit.astype(jnp.float32)),
        "confidence": binned(confidence),
    }


def mean_nats(logits: Callable, params: dict, held_out: list[stream.Rows]) -> float:
    """The cross-entropy of the next token, mean over the labels of all batches."""
    sums = [_nats_sum(logits(params, batch), batch) for batch in held_out]
    return float(sum(total for total, _ in sums) / sum(count for _, count in sums))


@jax.jit
def _nats_sum(logits, rows) -> tuple[jax.Array, jax.Array]:
    log_probs = jnp.take_along_axis(jax.nn.log_softmax(logits), rows.labels[..., None], axis=-1)[..., 0]
    return -jnp.sum(log_probs * rows.loss_mask), rows.loss_mask.sum()


def score(logits: Callable, params: dict, held_out: list[tuple[stream.Rows, jax.Array]]) -> dict[str, float]:
    """Means over batches with their teacher logits: `nats` a token, `kl` from the teacher, and calibration.

    `calibration_error` is the expected one (Guo et al. 2017) of the most probable token; `overconfidence` is nats less
    the student's entropy: above 0 where the student is more confident than it is right.
    """
    sums = [score_sums(logits(params, batch), teacher_logits, batch) for batch, teacher_logits in held_out]
    total = {name: sum(np.asarray(one[name], np.float64) for one in sums) for name in sums[0]}
    count = total["num_targets"]
    return {
        "nats": float(total["nats"] / count),
        "kl": float(total["kl"] / count),
        "calibration_error": float(np.abs(total["hits"] - total["confidence"]).sum() / count),
        "overconfidence": float((total["nats"] - total["entropy"]) / count),
    }
