"""Metrics of every step: one row, written to metrics.jsonl, TensorBoard and wandb."""

import math
import pathlib
import resource
import secrets
import sys
from collections.abc import Callable, Mapping

import jax

from gemma3_jax.durable import jsonl
from gemma3_jax.train import events, goodput, program, settings

FILE, SKIPPED_FILE, WANDB_ID_FILE = "metrics.jsonl", "skipped.jsonl", "wandb_id"
EVALUATIONS_FILE = "evaluations.jsonl"
# All other fields of a row are functions of the seed and the step, however often the run was stopped.
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
    """Throughput since the last reading, from the ledger of time spent in steps and in waiting for data."""

    def __init__(self, ledger: goodput.Ledger, peak_flops: float | None):
        """`peak_flops`: FLOP/s of one device; None where it is unknown, as on a CPU."""
        self._ledger, self._peak_flops = ledger, peak_flops
        self._num_steps, self._seen = 0, dict(ledger.seconds)

    def count(self) -> None:
        """Counts a finished step."""
        self._num_steps += 1

    def read(self, step_program: program.Program) -> dict[str, float]:
        """Returns the timings of a row."""
        self._ledger.settle()
        spent = {kind: seconds - self._seen[kind] for kind, seconds in self._ledger.seconds.items()}
        num_steps, self._num_steps, self._seen = self._num_steps, 0, dict(self._ledger.seconds)
        seconds = max(spent["step"] + spent["data"], 1e-9)
        tokens_per_second = num_steps * step_program.tokens_per_step / seconds
        timings = {
            "step_seconds": seconds / num_steps,
            "tokens_per_second": tokens_per_second,
            "tokens_per_second_per_chip": tokens_per_second / step_program.mesh.size,
            "data_wait_share": spent["data"] / seconds,
            "save_seconds": spent["save"],
            "peak_memory_bytes": _peak_memory_bytes(),
        }
        if self._peak_flops:
            timings["mfu"] = (
                tokens_per_second * step_program.flops_per_token / (step_program.mesh.size * self._peak_flops)
            )
        return timings


def _peak_memory_bytes() -> int:
    """Returns the peak memory of any device of this host; on a CPU, of the process."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    if peaks := [device["peak_bytes_in_use"] for device in stats if "peak_bytes_in_use" in device]:
        return max(peaks)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def row(position: Mapping, logged: Mapping, tokens_seen: int) -> dict:
    """Returns the row of a step. `position`: its stage, step, global_step and batch_id."""
    numbers = {name: value.item() for name, value in logged.items()}
    loss = numbers.pop("loss")
    result = {**position, "loss": loss}
    if bytes_per_target := numbers.pop("bytes_per_target", None):
        result["bits_per_byte"] = numbers.get("cross_entropy", loss) / math.log(2) / bytes_per_target
    return {**result, **numbers, "tokens_seen": tokens_seen}


class Writers:
    """Everything that rows are written to. Rows of steps behind `after` are cut off: those steps run again."""

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
        """`show` gets the rows of steps; `warn` gets warnings, and a line for each evaluation."""
        self._say = warn
        self._rows, self._skipped, self._evaluations = (
            jsonl.Journal(workdir / name, warn, is_entry=lambda entry: isinstance(entry.get("global_step"), int))
            for name in (FILE, SKIPPED_FILE, EVALUATIONS_FILE)
        )
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
        """Writes the evaluation of a step, unless that was written before."""
        if row["global_step"] in self._evaluated:
            return
        self._evaluated.add(row["global_step"])
        self._evaluations.write(row)
        position = ("stage", "step", "global_step", "time")
        numbers = {name: value for name, value in row.items() if name not in position and not isinstance(value, list)}
        for sink in self._others:
            sink({name: row[name] for name in position} | {f"evaluation/{name}": x for name, x in numbers.items()})
        # Results by length, by source and so on are for plots.
        summary = {name: value for name, value in numbers.items() if name.count("/") < 2 and "/num_" not in name}
        shown = "  ".join(f"{name} {value:.4g}" for name, value in summary.items())
        self._say(f"{row['stage']} {row['step']} evaluated: {shown}")

    def skip(self, row: Mapping) -> None:
        """Notes a skipped step."""
        fields = ("stage", "step", "global_step", "batch_id", "loss", "gradient_norm")
        self._skipped.write({name: row[name] for name in fields})

    def flush(self) -> None:
        """Writes all rows through to the disk: to be called before the checkpoint that relies on them."""
        self._rows.flush(durable=True)
        self._skipped.flush(durable=True)
        self._evaluations.flush(durable=True)


def _wandb(workdir: pathlib.Path, project: str, config: Mapping) -> Callable[[Mapping], None]:
    import wandb

    file = workdir / WANDB_ID_FILE  # one wandb run, however often the process is restarted
    if not file.exists():
        file.write_text(secrets.token_hex(4))
    run = wandb.init(project=project, id=file.read_text(), resume="allow", dir=workdir, config=dict(config))
    return lambda row: run.log(dict(row), step=row["global_step"])
