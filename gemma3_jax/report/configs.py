"""The configs of runs, and the fields in which they differ."""

import json
from collections.abc import Sequence

from gemma3_jax import provenance, renamed
from gemma3_jax.report import labeled_run, table


def as_json(run: labeled_run.LabeledRun) -> str:
    """The resolved config as it is in the run directory; empty if it is missing."""
    return json.dumps(run.data.config, indent=2, ensure_ascii=False) if run.data.config else ""


def differences(runs: Sequence[labeled_run.LabeledRun]) -> table.Table | None:
    """A row for each field that is not the same in all configs; None if there is no such field."""
    flat_configs = [provenance.fields(renamed.current(run.data.config)) for run in runs]
    fields = sorted({field for flat in flat_configs for field in flat})
    values = {field: [json.dumps(flat[field]) if field in flat else "–" for flat in flat_configs] for field in fields}
    rows = [[field, *values[field]] for field in fields if len(set(values[field])) > 1]
    if not rows:
        return None
    return table.Table(head=["field", *(run.label for run in runs)], rows=rows, code_columns=(0,))
