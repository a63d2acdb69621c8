"""Synthetic run directories, with a little of everything in them."""

import json
import math
import pathlib
from collections.abc import Mapping, Sequence

MODEL = {
    "num_layers": 6, "embed_dim": 128, "mlp_dim": 512, "num_heads": 4, "num_kv_heads": 1, "head_dim": 32,
    "sliding_window": 64, "query_scale": 0.18, "rope_scale": 8.0, "vocab_size": 2048,
}  # fmt: skip
LENGTHS = {"pretrain": 512, "long_context": 4_096, "qat": 512}
NEAR, FAR = (128, 256, 512), (1_024, 2_048, 4_096)


def write_lines(path: pathlib.Path, entries: Sequence[Mapping]) -> None:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def rows(num_steps: int, *, distilled: bool = True, better: float = 0.0) -> list[dict]:
    """Rows of three stages: `num_steps` each, but three times as many of the first."""
    result, global_step, tokens = [], 0, 0
    for stage, length in LENGTHS.items():
        num = 3 * num_steps if stage == "pretrain" else num_steps
        for step in range(1, num + 1):
            global_step, tokens = global_step + 1, tokens + 4 * length
            wave = math.sin(37.0 * step) * 0.08
            loss = 4.6 - better + 3.4 * math.exp(-6 * global_step / (5 * num_steps)) + wave
            row = {"stage": stage, "step": step, "global_step": global_step, "batch_id": f"{global_step:016x}"}
            row |= {"loss": loss, "bits_per_byte": loss / 2.1, "gradient_norm": 0.3 + wave, "skipped": False}
            row |= {"learning_rate": 4e-3 * min(1, step / (num / 10)) * (1 - 0.9 * step / num), "tokens_seen": tokens}
            row |= {"time": 1.79e9 + global_step, "tokens_per_second": 2_000 * (1 + wave), "data_wait_share": abs(wave)}
            row |= {"mfu": 0.41 + wave / 4}
            if distilled:
                row |= {"cross_entropy": loss - 0.2, "captured_mass": 0.83 + wave / 8, "agreement": 1 - 2 / (2 + step)}
            result.append(row)
    return result


def evaluations(metrics_rows: Sequence[Mapping]) -> list[dict]:
    """Two of each stage: a short one in the middle, and one with every value at the end."""
    result = []
    for stage in LENGTHS:
        stage_rows = [row for row in metrics_rows if row["stage"] == stage]
        middle, last = stage_rows[len(stage_rows) // 2], stage_rows[-1]
        held_out = {"nats": last["loss"] + 0.02, "bits_per_byte": last["bits_per_byte"] + 0.01}
        result.append({name: middle[name] for name in ("stage", "step", "global_step", "time")} | held_out)
        row = {name: last[name] for name in ("stage", "step", "global_step", "time")} | held_out
        beyond = 0.9 if stage == "pretrain" else -0.1
        for at, length in enumerate(NEAR + FAR):
            nats = 4.9 - 0.07 * at + (beyond * (at - 2) if length in FAR else 0)
            row |= {
                f"context/by_length/{length}/nats": nats,
                f"context/by_position/{length // 2}-{length - 1}": nats + 0.1,
            }
        row |= {"perplexity/nats": 4.7, "perplexity/web/nats": 4.9, "perplexity/code/nats": 4.2}
        row |= {"needle/single/512": 0.75, "needle/single/1024": 0.5, "memorization/exact": 0.0}
        row["context/num_documents"] = 8
        if stage == "qat":
            row |= {"unquantized_nats": 4.6816, "rounded_nats": 4.7144, "trained_nats": 4.6855, "rounded_kl": 0.022}
            row |= {"trained_kl": 0.004, "recovered_perplexity": 0.88, "recovered_kl": 0.82}
        row["samples"] = [
            {"prompt": "The river ", "text": f"runs past the mill after {stage}.\nAnd then it bends."},
            {"prompt": "Once upon ", "text": "a time there was <b>a house</b> & a garden."},
        ]
        result.append(row)
    return result


def config(**changed) -> dict:
    stages = {name: {"seq_len": length, "num_steps": 50} for name, length in LENGTHS.items()}
    stages["qat"]["quant"] = {"format": "q4_0", "embedding": "float16"}
    return {
        "model": MODEL,
        "data": "runs/demo/data",
        "execution": {"dtype": "bfloat16"},
        "stage_order": list(LENGTHS),
        "stages": stages,
    } | changed


def start(**changed) -> dict:
    return {
        "time": 1.79e9,
        "command": ["train", "--config=experiments/demo.py", "--workdir=runs/demo"],
        "versions": {"python": "3.11.2", "gemma3_jax": "0.1.0", "jax": "0.10.2"},
        "commit": "0123456789abcdef0123456789abcdef01234567+changes",
        "data": {
            name: {"data": "d1" * 32, "mixture": "e2" * 8, "tokenizer": "f3" * 32, "teacher": "none"}
            for name in LENGTHS
        },
        "config": config(),
    } | changed


def write(directory: pathlib.Path, *, num_steps: int = 20, distilled: bool = True, better: float = 0.0) -> pathlib.Path:
    """Writes a run directory that has every file."""
    directory.mkdir(parents=True, exist_ok=True)
    metrics_rows = rows(num_steps, distilled=distilled, better=better)
    spike = metrics_rows[num_steps]
    spike |= {"loss": 900.0, "skipped": True}
    write_lines(directory / "metrics.jsonl", metrics_rows)
    columns = ("stage", "step", "global_step", "batch_id", "loss", "gradient_norm")
    write_lines(directory / "skipped.jsonl", [{name: spike[name] for name in columns}])
    write_lines(directory / "evaluations.jsonl", evaluations(metrics_rows))
    seconds = {"init": 9.0, "compile": 21.0, "restore": 0.5, "data": 4.0, "step": 240.0, "save": 6.0, "evaluate": 12.0}
    write_lines(
        directory / "goodput.jsonl",
        [
            {"restored": 0},
            {"global_step": 3, "seconds": seconds},
            {"restored": 2},
            {"global_step": 100, "seconds": seconds},
        ],
    )
    write_lines(directory / "starts.jsonl", [start(), start(time=1.79e9 + 400)])
    (directory / "config.json").write_text(json.dumps(config()))
    return directory
