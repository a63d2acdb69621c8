"""Names that changed, so that what was written before still opens, and who types an old name learns the new one.

Kept for one release: this file goes, with every call of it, in version 0.3.
"""

from collections.abc import Mapping

# Old name of a config field -> new one. A model's are the columns that a checkpoint stores, too.
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


def current(stored: Mapping) -> dict:
    """Returns `stored`, a config or a part of one as nested dicts, under today's names.

    A dotted key is renamed at its end: model.width -> model.embed_dim. A window of `perplexity` keeps its name.
    """
    renamed = {}
    for key, value in stored.items():
        parent, _, name = key.rpartition(".")
        new = f"{parent}.{FIELDS.get(name, name)}" if parent else FIELDS.get(name, name)
        is_nested = isinstance(value, Mapping) and key != "perplexity"
        renamed[new] = current(value) if is_nested else value
    return renamed
