"""What is written of every step: one row, to a file of JSON lines, to TensorBoard, to wandb."""

import math
import pathlib
import resource
import secrets
import sys
from collections.abc import Callable, Mapping

import jax

from gemma3_jax.train import events, goodput, journal, settings, stage

FILE, SKIPPED_FILE, WANDB_ID_FILE = "metrics.jsonl", "skipped.jsonl", "wandb_id"
EVALUATIONS_FILE = "evaluations.jsonl"
# Beside these, a row is a function of the seed and the step: the same however often a run was stopped.
TIMINGS = (
    "time",
    "step_seconds",
    "tokens_per_second",
    "tokens_per_second_per_chip",
    "mfu",
    "data_wait_share",
    "save_seconds",
    "peak_memory_bytes",
)


class Meter:
    """Speeds since it was last read, from the ledger: what went into steps, and into waiting for data."""

    def __init__(self, ledger: goodput.Ledger, peak_flops: float | None):
        """`peak_flops`: of one device, a second; None where it is not known, as on a CPU."""
        self._ledger, self._peak_flops = ledger, peak_flops
        self._num_steps, self._seen = 0, dict(ledger.seconds)

    def count(self) -> None:
        """One more step is done."""
        self._num_steps += 1

    def read(self, leg: stage.Leg) -> dict[str, float]:
        self._ledger.settle()
        spent = {kind: seconds - self._seen[kind] for kind, seconds in self._ledger.seconds.items()}
        num_steps, self._num_steps, self._seen = self._num_steps, 0, dict(self._ledger.seconds)
        seconds = max(spent["step"] + spent["data"], 1e-9)
        tokens_per_second = num_steps * leg.tokens_per_step / seconds
        found = {
            "step_seconds": seconds / num_steps,
            "tokens_per_second": tokens_per_second,
            "tokens_per_second_per_chip": tokens_per_second / leg.mesh.size,
            "data_wait_share": spent["data"] / seconds,
            "save_seconds": spent["save"],
            "peak_memory_bytes": _peak_memory_bytes(),
        }
        if self._peak_flops:
            found["mfu"] = tokens_per_second * leg.flops_per_token / (leg.mesh.size * self._peak_flops)
        return found


def _peak_memory_bytes() -> int:
    """The most that a device of this host has held; on a CPU the process."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    if found := [of["peak_bytes_in_use"] for of in stats if "peak_bytes_in_use" in of]:
        return max(found)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def row(leg: stage.Leg, place: Mapping, reported: Mapping, tokens_seen: int) -> dict:
    """What the numbers of one step say. `place`: its stage, step, global_step and batch_id."""
    numbers = {name: value.item() for name, value in reported.items()}
    loss = numbers.pop("loss")
    found = {**place, "loss": loss}
    if bytes_per_target := numbers.pop("bytes_per_target", None):
        found["bits_per_byte"] = numbers.get("cross_entropy", loss) / math.log(2) / bytes_per_target
    return {**found, **numbers, "tokens_seen": tokens_seen}


class Writers:
    """Everywhere that rows go. What was written of steps after `after` is cut off: they are done again."""

    def __init__(
        self,
        workdir: pathlib.Path,
        log: settings.Log,
        *,
        after: int,
        config: Mapping,
        warn: Callable[[str], None],
        show: Callable[[Mapping], None],
    ):
        """`show` is given rows of steps; `warn` is told the numbers of evaluations, too."""
        self._say = warn
        self._rows = journal.Journal(workdir / FILE, warn)
        self._skipped = journal.Journal(workdir / SKIPPED_FILE, warn)
        self._evaluations = journal.Journal(workdir / EVALUATIONS_FILE, warn)
        for file in (self._rows, self._skipped, self._evaluations):
            file.keep(lambda entry: entry["global_step"] <= after)
        self._evaluated = {entry["global_step"] for entry in self._evaluations.read()}
        self._others: list[Callable[[Mapping], None]] = []
        if log.tensorboard:
            self._others.append(events.Events(workdir / "tensorboard", after, warn).write)
        if log.wandb_project:
            self._others.append(_wandb(workdir, log.wandb_project, config))
        self._sinks = [self._rows.write, show, *self._others]

    def write(self, row: Mapping) -> None:
        for sink in self._sinks:
            sink(row)

    def evaluate(self, row: Mapping) -> None:
        """What was measured after a step, beside training; once, if it is measured again."""
        if row["global_step"] in self._evaluated:
            return
        self._evaluated.add(row["global_step"])
        self._evaluations.write(row)
        place = ("stage", "step", "global_step", "time")
        numbers = {name: value for name, value in row.items() if name not in place and not isinstance(value, list)}
        for sink in self._others:
            sink({name: row[name] for name in place} | {f"evaluation/{name}": x for name, x in numbers.items()})
        # What is measured by length, by source and the like is for plots.
        told = {name: value for name, value in numbers.items() if name.count("/") < 2 and "/num_" not in name}
        shown = "  ".join(f"{name} {value:.4g}" for name, value in told.items())
        self._say(f"{row['stage']} {row['step']} evaluated: {shown}")

    def skip(self, row: Mapping) -> None:
        """Notes a step that was not believed."""
        kept = ("stage", "step", "global_step", "batch_id", "loss", "gradient_norm")
        self._skipped.write({name: row[name] for name in kept})

    def flush(self) -> None:
        """Has all rows reach the disk: before the checkpoint that counts on them does."""
        self._rows.flush(durable=True)
        self._skipped.flush(durable=True)
        self._evaluations.flush(durable=True)


def _wandb(workdir: pathlib.Path, project: str, config: Mapping) -> Callable[[Mapping], None]:
    import wandb

    file = workdir / WANDB_ID_FILE  # one run there, however many processes it takes
    if not file.exists():
        file.write_text(secrets.token_hex(4))
    run = wandb.init(project=project, id=file.read_text(), resume="allow", dir=workdir, config=dict(config))
    return lambda row: run.log(dict(row), step=row["global_step"])
