"""The whole recipe in miniature, on the CPU: a teacher, and a student through the recipe's stages.

    bash launch/demo.sh

Two CPU cores, some ten minutes after installation. The text is the Python standard library (`demo_data.py`). The
teacher learns the next token, then from rows 8 times as long. The student learns from what the teacher, running beside
it, says of every token in 256 samples; then, with its weights rounded to 4 bits, from itself as it was. Sizes and rates
are ours: the report has no toys.

    python experiments/demo.py runs/demo        # the table of results of a demo that has run there

Another format, from where the student's `qat` began:

    python -m gemma3_jax train --config=experiments/demo.py --stage=qat --workdir=runs/demo/int4 \
        --config.data=runs/demo/data --config.documents=runs/demo/documents.jsonl --config.teacher=runs/demo/teacher \
        --config.init_from=runs/demo/student/checkpoints/220 --config.stages.qat.quant.format=int4
"""

import json
import pathlib
import sys

import ml_collections

# About 1.7 million parameters, and 3.6; the pattern of 5 local layers and a global one, once.
STUDENT = {
    "num_layers": 6,
    "embed_dim": 128,
    "mlp_dim": 512,
    "num_heads": 4,
    "num_kv_heads": 1,
    "head_dim": 32,
    "sliding_window": 64,  # tokens
    "query_scale": 32**-0.5,
    "rope_scale": 8.0,  # of the model that comes out; the stage before the extension has 1
    "vocab_size": 2_048,
}
# At the end of each stage of the student: what documents that nobody learned from look like, up to 4,096 tokens.
MEASURES = {
    "tasks": ("perplexity", "context", "samples"),
    "perplexity": {"window": 512},
    "context": {"lengths": (128, 256, 512, 1_024, 2_048, 4_096), "num_documents": 16},
    "prompts": ("def main(argv):\n", "import ", "class Error(Exception):\n"),
}
TEACHER = STUDENT | {"embed_dim": 192, "mlp_dim": 768, "head_dim": 48, "query_scale": 48**-0.5}


def get_config(who: str = "student") -> ml_collections.ConfigDict:
    if who not in ("student", "teacher"):
        raise ValueError(
            f"the argument is {who!r}; it must be student or teacher: --config=experiments/demo.py:teacher"
        )
    pretrain = {
        "seq_len": 512,  # tokens
        "batch_size": 4,
        "num_steps": 200 if who == "student" else 140,
        "rope_scale": 1.0,
        "optimizer": {"peak_lr": 4e-3, "warmup_steps": 40, "final_lr_fraction": 0.1},
    }
    long_context = pretrain | {
        "seq_len": 4_096,  # 8 times as long, as 32K to 128K and the scale of 8 are
        "batch_size": 1,
        "num_steps": 20,
        "rope_scale": 8.0,
        "optimizer": {"peak_lr": 1e-3, "warmup_steps": 3},
    }
    qat = pretrain | {
        "num_steps": 50,
        "rope_scale": 8.0,
        "optimizer": {"peak_lr": 4e-4, "warmup_steps": 6, "weight_decay": 0.0},
        "teacher": "start",  # itself, before anything was rounded
        "samples": {"estimator": "whole"},
        "quant": {"format": "q4_0"},
        "evaluation": {"every_steps": 25, "num_rows": 32, "measures": {"tasks": ("perplexity",)}},
    }
    stages = {"pretrain": pretrain, "long_context": long_context}
    if who == "student":
        for stage in stages.values():
            stage["evaluation"] = {"every_steps": stage["num_steps"], "num_rows": 8, "measures": MEASURES}
        stages = {name: stage | {"loss": "distill"} for name, stage in (stages | {"qat": qat}).items()}
    return ml_collections.ConfigDict(
        {
            "model": STUDENT if who == "student" else TEACHER,
            "execution": {"dtype": "bfloat16", "remat": "none"},  # a toy's activations fit
            "stage_order": tuple(stages),
            "stages": stages,
            "checkpoints": {"every_steps": 50},
        }
    )


def main(directory: str) -> None:
    """Prints what each stage came to: means over its last tenth of steps."""
    print(f"{'':<10}{'stage':<14}{'steps':>7}{'tokens':>12}{'loss':>8}{'bits/byte':>11}{'tokens/s':>10}{'minutes':>9}")
    for who in ("teacher", "student"):
        file = pathlib.Path(directory) / who / "metrics.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        for stage in dict.fromkeys(row["stage"] for row in rows):
            of_stage = [row for row in rows if row["stage"] == stage]
            last = of_stage[-max(1, len(of_stage) // 10) :]
            loss, bits = (sum(row[name] for row in last) / len(last) for name in ("loss", "bits_per_byte"))
            seconds = sum(row["step_seconds"] for row in of_stage)
            tokens = round(sum(row["tokens_per_second"] * row["step_seconds"] for row in of_stage))
            print(
                f"{who:<10}{stage:<14}{len(of_stage):>7}{tokens:>12,}{loss:>8.3f}{bits:>11.3f}"
                f"{tokens / seconds:>10,.0f}{seconds / 60:>9.1f}"
            )
    lines = (pathlib.Path(directory) / "student" / "evaluations.jsonl").read_text().splitlines()
    last = {row["stage"]: row for row in map(json.loads, lines)}
    print("\nLoss of the last 64 tokens of documents that no stage learned from, in nats, given")
    print(f"{'':<14}" + "".join(f"{length:>8,}" for length in MEASURES["context"]["lengths"]) + "  tokens")
    for stage in ("pretrain", "long_context"):
        nats = (last[stage][f"context/by_length/{length}/nats"] for length in MEASURES["context"]["lengths"])
        print(f"{stage:<14}" + "".join(f"{value:>8.3f}" for value in nats))
    found = last["qat"]
    print(
        f"\nWeights rounded to 4 bits, on rows that no stage learned from: KL from the unquantised student "
        f"{found['rounded_kl']:.4g} nats before qat, {found['trained_kl']:.4g} after it"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
