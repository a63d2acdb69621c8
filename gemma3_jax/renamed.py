"""Names that changed, so that what was written under the old ones still opens.

The error of an old field name gives the new one. Kept for one release: after it this file goes, with every call of it.
"""

from collections.abc import Collection, Mapping

# Old name of a config field -> new one. Those of a model are also the columns that a checkpoint stores.
FIELDS = {
    "walk": "stage_order",
    "rows_per_step": "batch_size",
    "row_length": "seq_len",
    "row_lengths": "seq_lens",
    "num_microbatches": "grad_accum_steps",
    "watch": "spike_guard",
    "average_decay": "ema_decay",
    "peak_rate": "peak_lr",
    "final_share": "final_lr_fraction",
    "max_gradient_norm": "clip_norm",
    "not_decayed": "no_decay",
    "share": "fraction",
    "width": "embed_dim",
    "mlp_width": "mlp_dim",
    "head_width": "head_dim",
    "num_key_heads": "num_kv_heads",
    "window": "sliding_window",
}
# Old name of a part of the training state -> new one, as checkpoints of a run store them.
STATE = {"moments": "opt_state", "average": "ema_params", "normal": "loss_stats"}
# Old name of a column of metrics.jsonl or evaluations.jsonl -> new one.
METRICS = {"kept_mass": "captured_mass", "unquantised_nats": "unquantized_nats"}
# Groups whose keys are names that users choose.
CHOSEN = ("stages", "sources", "mixture")


def current(stored: Mapping) -> dict:
    """Returns `stored`, a config or a part of one as nested dicts, under today's names.

    A dotted key is renamed at its end: model.width -> model.embed_dim. A window of `perplexity` keeps its name, and so
    do stages, sources and buckets of a mixture.
    """
    renamed = {}
    for key, value in stored.items():
        parent, _, name = key.rpartition(".")
        new = f"{parent}.{FIELDS.get(name, name)}" if parent else FIELDS.get(name, name)
        if key in CHOSEN and isinstance(value, Mapping):
            value = {chosen: current(entry) if isinstance(entry, Mapping) else entry for chosen, entry in value.items()}
        elif isinstance(value, Mapping) and key != "perplexity":
            value = current(value)
        renamed[new] = value
    return renamed


def current_metrics(row: Mapping) -> Mapping:
    """Returns a row of metrics under today's names."""
    return {METRICS.get(name, name): value for name, value in row.items()} if METRICS.keys() & row.keys() else row


def stored_parts(parts: Collection[str], stored: Collection[str]) -> dict[str, str]:
    """Returns the name under which a checkpoint holds each of today's `parts` of the training state.

    `stored` has the names of the checkpoint's parts.
    """
    old_names = {new: old for old, new in STATE.items()}
    stored_names = {}
    for part in parts:
        old = old_names.get(part)
        stored_names[part] = old if old in stored and part not in stored else part
    return stored_names
