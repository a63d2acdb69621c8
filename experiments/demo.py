"""The whole recipe in miniature, on the CPU: a teacher, and a student that is distilled from it.

    bash launch/demo.sh

About 15 minutes on two CPU cores, after installation. The text is the Python standard library (`demo_data.py`). The
teacher trains on the next token, then on sequences 8 times as long. The student is distilled from 256 samples a token
of the teacher, which runs in the same step. Then the student trains with its weights rounded to 4 bits, distilled from
its unquantized start. Sizes and learning rates are ours: the report has no toys.

    python experiments/demo.py runs/demo        # prints the results of the demo in that directory

Another format, starting where the student's `qat` started:

    python -m gemma3_jax train --config=experiments/demo.py --stage=qat --workdir=runs/demo/int4 \
        --config.data=runs/demo/data --config.documents=runs/demo/documents.jsonl --config.teacher=runs/demo/teacher \
        --config.init_from=runs/demo/student/checkpoints/220 --config.stages.qat.quant.format=int4
"""

import json
import pathlib
import sys
from collections.abc import Iterator

import ml_collections

# About 1.7 million parameters (the teacher: 3.6); 5 local layers and a global one.
STUDENT = {
    "num_layers": 6,
    "embed_dim": 128,
    "mlp_dim": 512,
    "num_heads": 4,
    "num_kv_heads": 1,
    "head_dim": 32,
    "sliding_window": 64,  # tokens
    "query_scale": 32**-0.5,
    "rope_scale": 8.0,  # of the final model; the stage before the extension has 1
    "vocab_size": 2_048,
}
# Measured on held-out documents of up to 4,096 tokens, at the end of each stage of the student.
MEASURES = {
    "tasks": ("perplexity", "context", "samples"),
    "perplexity": {"window": 512},
    "context": {"lengths": (128, 256, 512, 1_024, 2_048, 4_096), "num_documents": 16},
    "prompts": ("def main(argv):\n", "import ", "class Error(Exception):\n"),
}
TEACHER = STUDENT | {"embed_dim": 192, "mlp_dim": 768, "head_dim": 48, "query_scale": 48**-0.5}


def get_config(role: str = "student") -> ml_collections.ConfigDict:
    if role not in ("student", "teacher"):
        raise ValueError(
            f"the argument is {role!r}; it must be student or teacher: --config=experiments/demo.py:teacher"
        )
    pretrain = {
        "seq_len": 512,  # tokens
        "batch_size": 4,
        "num_steps": 200 if role == "student" else 140,
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
        "teacher": "start",  # its own unquantized start
        "samples": {"estimator": "whole"},
        "quant": {"format": "q4_0"},
        "evaluation": {"every_steps": 25, "num_rows": 32, "measures": {"tasks": ("perplexity",)}},
    }
    stages = {"pretrain": pretrain, "long_context": long_context}
    if role == "student":
        for stage in stages.values():
            stage["evaluation"] = {"every_steps": stage["num_steps"], "num_rows": 8, "measures": MEASURES}
        stages = {name: stage | {"loss": "distill"} for name, stage in (stages | {"qat": qat}).items()}
    return ml_collections.ConfigDict(
        {
            "model": STUDENT if role == "student" else TEACHER,
            "execution": {"dtype": "bfloat16", "remat": "none"},  # a toy's activations fit
            "stage_order": tuple(stages),
            "stages": stages,
            "checkpoints": {"every_steps": 50},
        }
    )


def main(directory: str) -> None:
    """Prints the results of each stage, the paths of the outputs, and what to try next."""
    root = pathlib.Path(directory)
    print("\n".join([*_stage_table(root), "", *_evaluation_lines(root), "", *last_lines(directory)]))


def _stage_table(root: pathlib.Path) -> Iterator[str]:
    """A line for each stage. Loss and bits per byte are means over the last tenth of its steps."""
    yield (
        f"{'model':<10}{'stage':<14}{'steps':>7}{'tokens':>12}{'loss':>8}{'bits/byte':>11}"
        f"{'tokens/s':>10}{'minutes':>9}"
    )
    for role in ("teacher", "student"):
        rows = _read_lines(root / role / "metrics.jsonl")
        for stage in dict.fromkeys(row["stage"] for row in rows):
            steps = [row for row in rows if row["stage"] == stage]
            last = steps[-max(1, len(steps) // 10) :]
            loss, bits = (sum(row[name] for row in last) / len(last) for name in ("loss", "bits_per_byte"))
            seconds = sum(row["step_seconds"] for row in steps)
            tokens = round(sum(row["tokens_per_second"] * row["step_seconds"] for row in steps))
            yield (
                f"{role:<10}{stage:<14}{len(steps):>7}{tokens:>12,}{loss:>8.3f}{bits:>11.3f}"
                f"{tokens / seconds:>10,.0f}{seconds / 60:>9.1f}"
            )


def _evaluation_lines(root: pathlib.Path) -> Iterator[str]:
    """The student's last evaluation of each stage, on text that no stage trained on."""
    last = {row["stage"]: row for row in _read_lines(root / "student" / "evaluations.jsonl")}
    lengths = MEASURES["context"]["lengths"]
    yield "Nats per token of the last 64 tokens of held-out documents, by context length"
    yield f"{'':<14}" + "".join(f"{length:>8,}" for length in lengths) + "  tokens"
    for stage in ("pretrain", "long_context"):
        nats = (last[stage][f"context/by_length/{length}/nats"] for length in lengths)
        yield f"{stage:<14}" + "".join(f"{value:>8.3f}" for value in nats)
    qat = last["qat"]
    yield ""
    yield (
        f"KL from the unquantized student on held-out sequences: {qat['rounded_kl']:.4g} nats when its weights are "
        f"rounded to 4 bits, {qat['trained_kl']:.4g} after qat"
    )


def last_lines(directory: str) -> list[str]:
    """The five lines that the demo ends with; the README quotes the last four."""
    student, export = f"{directory}/student", f"{directory}/export"
    return [
        "Done. What was made, and what to try next:",
        f"  report   {student}/report.html: the run on one page; open it in a browser",
        f"  model    {student}: a checkpoint of every stage, for generate, evaluate and convert",
        f"  exports  {export}/hf for Transformers, {export}/student.gguf for llama.cpp and Ollama",
        f"  next     python -m gemma3_jax generate --checkpoint={student} --prompt='import '",
    ]


def _read_lines(file: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


if __name__ == "__main__":
    main(*sys.argv[1:])
