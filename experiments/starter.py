"""Continued pre-training of a released checkpoint in sequences of 8,192 tokens, for a small budget.

    python -m gemma3_jax train --config=experiments/starter.py:1b --workdir=DIR --config.data=DATA \
        --config.init_from=gemma-3-1b-pt

Hardware: one slice of v5e each: 4 chips for 270M, 16 for 1B, 64 for 4B, 128 for 12B, 256 for 27B; `python -m gemma3_jax
plan --config=experiments/starter.py:1b --topology=v5e:4x4` says what a chip holds. Nothing here is published: a low
learning rate and a short warm-up, as the checkpoint has already learned; a billion tokens. Not run: no accelerator
was at hand.
"""

import dataclasses

import ml_collections

from gemma3_jax.model import config

NUM_CHIPS = {"270m": 4, "1b": 16, "4b": 64, "12b": 128, "27b": 256}  # v5e:2x2, 4x4, 8x8, 8x16, 16x16
SEQ_LEN = 8_192  # tokens
TOKENS = 1e9
PEAK_LR = {"270m": 1e-4, "1b": 5e-5, "4b": 3e-5, "12b": 2e-5, "27b": 1e-5}


def get_config(size: str = "") -> ml_collections.ConfigDict:
    if size not in NUM_CHIPS:
        raise ValueError(
            f"size is {size!r}; it must be one of {', '.join(NUM_CHIPS)}: --config=experiments/starter.py:1b"
        )
    num_chips = NUM_CHIPS[size]
    num_steps = round(TOKENS / (num_chips * SEQ_LEN))
    stage = {
        "seq_len": SEQ_LEN,
        "batch_size": num_chips,  # one a chip
        "num_steps": num_steps,
        "loss": "next_token",
        "z_loss": 1e-4,
        "optimizer": {
            "peak_lr": PEAK_LR[size],
            "warmup_steps": num_steps // 50,
            "decay": "cosine",
            "final_lr_fraction": 0.1,
            "beta1": 0.9,
            "beta2": 0.95,
            "weight_decay": 0.1,
            "clip_norm": 1.0,
        },
    }
    return ml_collections.ConfigDict(
        {
            "model": dataclasses.asdict(config.SIZES[size]),
            "mesh": {"data": num_chips, "seq": 1, "replica": 1},
            "execution": {"dtype": "bfloat16", "remat": "full"},
            "stage_order": ("continued",),
            "stages": {"continued": stage},
            "checkpoints": {"every_steps": 0, "every_minutes": 15.0, "keep_last": 2},
            "log": {"every_steps": 10},
        }
    )
