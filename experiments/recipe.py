"""The published recipe of one size: 270m, 1b, 4b, 12b or 27b, on the mesh of the report's Table 2.

    python -m gemma3_jax train --config=experiments/recipe.py:1b --workdir=gs-mounted/1b --config.data=/data/prepared \
        --config.teacher=gs-mounted/teacher

Pre-training and its extension distill from 256 sampled logits of the teacher for each token (report, section 2.2). The
teacher and the temperature are not published, so the command names a teacher. `qat` distills from its own start.

Hardware and hours: Table 2 (512 v5e chips for 1B, 2,048 v5e for 4B, 6,144 v4 for 12B, 6,144 v5p for 27B); 27B would
take 10 days at an MFU of 1, so about 25 at 40 %, without the teacher (14e12 tokens x 1.73e11 FLOPs over
6,144 x 4.59e14 a second). The TPU compiler compiles every stage (docs/tpu_pods.md). None has run, as no accelerator
was available.
Sources: "report" is the Gemma 3 technical report (arXiv 2503.19786). "Not published" marks our choices, with reasons.
"""

import dataclasses

import ml_collections

from gemma3_jax.model import config

K = 1_024
# Tokens of pre-training: report, section 2.2; of 270M: Google's announcement of it (2025-08-14).
TOKENS = {"270m": 6e12, "1b": 2e12, "4b": 4e12, "12b": 12e12, "27b": 14e12}
# Report, Table 2: data shards, sequence shards, replicas. 270M is not in it and has a pod of 256 v5e chips.
MESH = {
    "270m": {"data": 64, "seq": 4, "replica": 1},
    "1b": {"data": 16, "seq": 16, "replica": 2},  # 512 v5e
    "4b": {"data": 16, "seq": 16, "replica": 8},  # 2,048 v5e
    "12b": {"data": 16, "seq": 16, "replica": 24},  # 6,144 v4
    "27b": {"data": 24, "seq": 8, "replica": 32},  # 6,144 v5p
}
# Not published. Usual for the size at millions of tokens a step; lower for larger models.
PEAK_LR = {"270m": 2e-3, "1b": 1e-3, "4b": 6e-4, "12b": 4e-4, "27b": 3e-4}
LONG_STEPS = 2_000  # not published; twice the 1,000 of position interpolation (Chen et al. 2023, section 3.1)
QAT_STEPS = 5_000  # report, section 2.3
CHECKPOINTS = {
    "every_steps": 0,
    "every_minutes": 15.0,  # at most this much work is lost with a machine
    "keep_last": 3,
    "keep_every_steps": 20_000,
}


def get_config(size: str = "") -> ml_collections.ConfigDict:
    if size not in config.SIZES:
        raise ValueError(
            f"size is {size!r}; it must be one of {', '.join(config.SIZES)}: --config=experiments/recipe.py:1b"
        )
    model = config.SIZES[size]
    is_extended = model.rope_scale > 1  # to 128K: 4B and up (report, section 2)
    mesh = MESH[size]
    batch_size = mesh["data"] * mesh["replica"]  # not published; one sequence per data shard, the fewest
    pretrain = {
        "seq_len": 32 * K,  # tokens; report, section 2
        "batch_size": batch_size,
        "num_steps": round(TOKENS[size] / (batch_size * 32 * K)),
        "rope_scale": 1.0,  # report, section 5.3: rescaled for the extension to 128K
        "optimizer": _optimizer(PEAK_LR[size], warmup_steps=2_000),
        "loss": "distill",
        "samples": {"num_samples": 256},  # report, section 2.2; the estimator: docs/distillation.md
        "z_loss": 1e-4,  # not published; PaLM's, against logits that drift in bfloat16
    }
    stages = {"pretrain": pretrain}
    if is_extended:
        # Not published. A quarter of the data shards and four times the sequence shards keep tokens per chip and
        # parameter shards as they were.
        long_mesh = {"data": mesh["data"] // 4, "seq": mesh["seq"] * 4}
        stages["long_context"] = pretrain | {
            "seq_len": 128 * K,  # report, section 2
            "batch_size": long_mesh["data"] * mesh["replica"],  # as many tokens a step as before
            "num_steps": LONG_STEPS,
            "rope_scale": model.rope_scale,  # 8, of the global layers; report, section 2
            "mesh": long_mesh,
            # Not published; the rate at which pre-training ends.
            "optimizer": _optimizer(PEAK_LR[size] / 10, warmup_steps=20),
        }
    stages["qat"] = pretrain | {
        "num_steps": QAT_STEPS,
        "rope_scale": model.rope_scale,
        "teacher": "start",  # the probabilities of the non-quantized checkpoint; report, section 2.3
        "samples": {"estimator": "whole"},  # not published; sampling a teacher in the step saves nothing
        "quant": {"format": "q4_0"},  # report, section 2.3: or int4 (per channel), or sfp8
        "evaluation": {"every_steps": 500, "num_rows": batch_size},
        "z_loss": 0.0,
        # Add a mixture like the data of pre-training and post-training (report, section 2.3), by bucket, such as:
        # "mixture": {"text": {"weight": 0.5}, "chat": {"weight": 0.5}},
        # Not published; a small rate, and no weight decay, which would pull weights off the quantization grid.
        "optimizer": _optimizer(1e-5, warmup_steps=100) | {"weight_decay": 0.0},
    }
    return ml_collections.ConfigDict(
        {
            "model": dataclasses.asdict(model),  # report, Table 1 and section 2
            "mesh": mesh,
            "execution": {"dtype": "bfloat16", "remat": "keep_global"},  # not published; what fits (docs/tpu_pods.md)
            "stage_order": tuple(name for name in ("pretrain", "long_context", "qat") if name in stages),
            "stages": stages,
            "num_data_workers": 4,  # processes per host
            "checkpoints": CHECKPOINTS,
            "log": {"every_steps": 10},
        }
    )


def _optimizer(peak_lr: float, *, warmup_steps: int) -> dict:
    """Not published except for the sharding of its state. Common AdamW settings, with cosine decay to a tenth."""
    return {
        "peak_lr": peak_lr,
        "warmup_steps": warmup_steps,
        "decay": "cosine",
        "final_lr_fraction": 0.1,
        "beta1": 0.9,
        "beta2": 0.95,
        "weight_decay": 0.1,
        "clip_norm": 1.0,
    }
