"""Toy students side by side, for experiments on distillation: one teacher, the same rows, another loss each.

The text is the Python standard library, as in the demo. What stands here is shared by distill_ablation.py and
teacher_size.py; it is not an experiment of its own.
"""

import dataclasses
import functools
import json
import pathlib
import sys
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from gemma3_jax import settings, sharding, stages
from gemma3_jax.data import builtin, dataset, prepare, stream
from gemma3_jax.data import settings as data_settings
from gemma3_jax.distill import settings as distill_settings
from gemma3_jax.distill import targets, vocabulary
from gemma3_jax.model import config, execution, masks, parameters
from gemma3_jax.train import settings as train_settings

ROW_LENGTH = 256  # tokens
VOCAB_SIZE = 2_048
PEAK_RATE = 4e-3
NUM_BINS = 15  # of confidence, for the error of calibration


def model(width: int, num_layers: int) -> config.Config:
    """Two heads of a quarter of the width each; every third layer is global."""
    return config.Config(
        num_layers=num_layers,
        num_local_per_global=2,
        width=width,
        mlp_width=4 * width,
        num_heads=2,
        num_key_heads=1,
        head_width=width // 4,
        window=64,
        query_scale=(width // 4) ** -0.5,
        rope_scale=1.0,
        vocab_size=VOCAB_SIZE,
    )


def make_data(directory: pathlib.Path, num_files: int | None = None) -> dataset.Dataset:
    """Rows of the first so many modules; None: of all. What is there already is taken as it is."""
    if not (directory / "data" / dataset.MANIFEST).exists():
        directory.mkdir(parents=True, exist_ok=True)
        texts = [row["text"] for file in builtin.files()[:num_files] for row in builtin.rows(file)]
        (directory / "library.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        made = data_settings.Prepare(
            sources={"library": data_settings.Source(paths=(str(directory / "library.jsonl"),))},
            row_lengths=(ROW_LENGTH,),
            tokenizer=data_settings.Tokenizer(size=VOCAB_SIZE, max_characters=4_000_000),
        )
        prepare.run(made, str(directory / "data"))
    return dataset.open_dataset(directory / "data")


def leg(data: dataset.Dataset, of: config.Config, **fields):
    """One stage on one device: the targets of a student come with its rows."""
    stage = settings.Stage(row_length=ROW_LENGTH, **fields)
    given = settings.Train(
        model=of,
        data=str(data.path),
        execution=execution.Execution(dtype="bfloat16"),
        walk=("toy",),
        stages={"toy": stage},
    )
    num_bytes = np.zeros(VOCAB_SIZE, np.int32)
    return stages.abstract_leg(given, "toy", sharding.make_mesh(), num_bytes)


@dataclasses.dataclass
class Student:
    """One that learns: its state, and what it does with a batch."""

    step: Callable  # (state, frozen, batch) -> (state, reported)
    state: object
    view: Callable  # (rows, the teacher's logits) -> batch

    def learn(self, rows: stream.Rows, logits: jax.Array | None) -> None:
        self.state, _ = self.step(self.state, {}, self.view(rows, logits))


class School:
    """Makes students that share what is compiled, and scores them on rows that nobody has learned from."""

    def __init__(
        self, data: dataset.Dataset, of: config.Config, *, num_steps: int, rows_per_step: int, decay: str = "constant"
    ):
        rates = train_settings.AdamW(
            peak_rate=PEAK_RATE, warmup_steps=min(20, num_steps), decay=decay, weight_decay=0.0
        )
        self._leg = functools.partial(leg, data, of, num_steps=num_steps, rows_per_step=rows_per_step, optimizer=rates)
        self._model, self._steps = of, {}

    def by_next_token(self, seed: int = 0) -> Student:
        return self._student("next_token", {}, lambda rows, logits: rows, seed)

    def by_samples(self, samples: distill_settings.Samples, seed: int = 0) -> Student:
        """Of the teacher's word in so many numbers a token; as many as V are all of them."""
        shard = vocabulary.Shard(VOCAB_SIZE)
        draw = jax.jit(functools.partial(targets.draw, shard, samples=samples, seed=seed))

        def view(rows, logits):
            places = jnp.broadcast_to(jnp.arange(rows.tokens.shape[1], dtype=jnp.int32), rows.tokens.shape)
            return stream.TaughtRows(rows, draw(logits, rows.labels, rows.numbers, places))

        # The loss is the same program for every estimator: it sees ids and weights alone.
        same = dataclasses.replace(samples, estimator="stratified")
        return self._student(f"M {samples.num_samples}", {"loss": "distill", "samples": same}, view, seed)

    def _student(self, name: str, fields: dict, view: Callable, seed: int) -> Student:
        made = self._leg(**fields)
        if name not in self._steps:
            self._steps[name] = jax.jit(made.step(), donate_argnums=0)
        start = parameters.init(self._model, jax.random.key(seed), made.mesh)
        return Student(self._steps[name], made.begin(start), view)


def logits_of(of: config.Config) -> Callable:
    """(parameters, rows) -> float32[B, T, V], of all tokens at once: a toy's fit."""
    execute = execution.Execution(dtype="bfloat16")

    @jax.jit
    def logits(params, rows):
        bound = parameters.bind(of, params)
        return bound.logits(bound(rows.tokens, masks.Places(rows.segments, rows.positions), execute=execute))

    return logits


def check_rows(data: dataset.Dataset, num_rows: int) -> None:
    """Ends the program if rows would come again: some of them have to be new to everybody."""
    has = sum(part["rows"][str(ROW_LENGTH)] for part in data.manifest["parts"].values())
    if num_rows > has:
        raise SystemExit(f"{num_rows:,} rows are asked for and there are {has:,}; take fewer steps, or more files")


def rows_of(data: dataset.Dataset, rows_per_step: int, first_step: int = 0) -> Iterator[stream.Rows]:
    """The rows of step after step, without end; rows of the first epoch come once."""
    with stream.open_stream(
        data.path,
        sharding.make_mesh(),
        row_length=ROW_LENGTH,
        rows_per_step=rows_per_step,
        seed=0,
        first_step=first_step,
    ) as batches:
        for batch in batches:
            yield batch.rows


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


def train_teacher(
    data: dataset.Dataset, of: config.Config, *, num_steps: int, rows_per_step: int, first_row: int
) -> dict:
    """The parameters of a model that has learned the next token from rows behind the first so many."""
    school = School(data, of, num_steps=num_steps, rows_per_step=rows_per_step, decay="cosine")
    first_step = -(-first_row // rows_per_step)
    learner, clock = school.by_next_token(seed=1), Clock(f"teacher of width {of.width}", num_steps)
    for number, rows in zip(range(num_steps), rows_of(data, rows_per_step, first_step), strict=False):
        learner.learn(rows, None)
        clock.tell(number + 1)
    return learner.state.params


class Clock:
    """A line now and then on stderr: how far, and how long yet."""

    SECONDS = 15.0

    def __init__(self, what: str, total: int):
        self._what, self._total = what, total
        self._started = self._told = time.monotonic()

    def tell(self, done: int) -> None:
        now = time.monotonic()
        if now - self._told < self.SECONDS and done < self._total:
            return
        self._told = now
        left = (now - self._started) / done * (self._total - done)
        print(f"{self._what}: step {done}/{self._total}, {left:,.0f} s left", file=sys.stderr, flush=True)
