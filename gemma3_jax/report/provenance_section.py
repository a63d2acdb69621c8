"""What produced a run: its directory, command, code, package versions, data, and the times it was started."""

import dataclasses
import datetime
import shlex
from collections.abc import Mapping, Sequence

from gemma3_jax.report import run_data, table

NOT_RECORDED = "not recorded"
MAX_SECONDS = 253_402_300_800  # the end of the year 9999


@dataclasses.dataclass(frozen=True, kw_only=True)
class Property:
    """A name and its value."""

    name: str
    value: str
    is_code: bool = True


def properties(run: run_data.RunData) -> list[Property]:
    last = run.starts[-1] if run.starts else {}
    versions = last.get("versions")
    return [
        Property(name="Directory", value=str(run.path.resolve())),
        Property(name="Command", value=_command(last)),
        Property(name="Started", value=_start_times(run.starts), is_code=False),
        Property(name="Commit", value=str(last.get("commit") or NOT_RECORDED)),
        Property(name="Versions", value=_versions(versions) if isinstance(versions, Mapping) else NOT_RECORDED),
        Property(name="Config digest", value=run.config_digest()[:16] if run.config else NOT_RECORDED),
    ]


def data_digests(run: run_data.RunData) -> table.Table | None:
    """Digests of the training data by stage; None if they were not recorded."""
    digests = run.starts[-1].get("data") if run.starts else None
    if not isinstance(digests, Mapping) or not all(isinstance(by_name, Mapping) for by_name in digests.values()):
        return None
    names = list(dict.fromkeys(name for by_name in digests.values() for name in by_name))
    rows = [[stage, *(str(by_name.get(name, "–"))[:16] for name in names)] for stage, by_name in digests.items()]
    return table.Table(head=["stage", *names], rows=rows, code_columns=range(1, 1 + len(names)))


def starts(run: run_data.RunData) -> table.Table | None:
    """Every start of the run; None if there was only one."""
    if len(run.starts) < 2:
        return None
    rows = [[utc(start.get("time")), str(start.get("commit") or "–")[:12], _command(start)] for start in run.starts]
    return table.Table(head=["time", "commit", "command"], rows=rows, code_columns=(1, 2))


def utc(seconds: object) -> str:
    """A time in UTC, to the minute."""
    if not run_data.is_number(seconds) or not 0 <= seconds < MAX_SECONDS:
        return NOT_RECORDED
    return f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%d %H:%M} UTC"


def _versions(versions: Mapping) -> str:
    return ", ".join(f"{name} {version or '(not installed)'}" for name, version in versions.items())


def _start_times(starts: Sequence[Mapping]) -> str:
    if not starts:
        return NOT_RECORDED
    first, last = utc(starts[0].get("time")), utc(starts[-1].get("time"))
    return first if len(starts) == 1 else f"{first}; {len(starts):,} times, last at {last}"


def _command(start: Mapping) -> str:
    command = start.get("command")
    if not isinstance(command, list):
        return NOT_RECORDED
    return f"python -m gemma3_jax {shlex.join(map(str, command))}"
