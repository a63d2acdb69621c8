"""Makes run_before_renames.tar.xz: a run as the program wrote it before its fields were renamed. Run at commit f680b2b.

    git worktree add ../before f680b2b
    cd ../before && python ../gemma3_jax/tests/golden/make_run_before_renames.py ../gemma3_jax/tests/golden

The archive holds a toy data set (`data`), a run stopped after half of its steps (`run`), and expected.json: the digest
of its parameters exported to Hugging Face, and the losses of all its steps.
"""

import hashlib
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile

NAME = "run_before_renames.tar.xz"
NUM_STEPS = 6
LEFT_OUT = (".lock", "goodput.jsonl", "report.json", "starts.jsonl")  # of a machine, or of no use to a run
WORDS = "the cat sat on a mat and saw one red hen run to its den in the old oak by the lake".split()

DATA = """
def get_config(texts):
    return {
        "sources": {"toy": {"paths": (texts,)}},
        "personal_data": {"action": ""},
        "duplicates": {"exact": False, "near": False},
        "tokenizer": {"size": 560},
        "row_lengths": (32,),
    }
"""
TRAIN = """
def get_config(data):
    return {
        "model": {"num_layers": 3, "num_local_per_global": 1, "width": 8, "mlp_width": 16, "num_heads": 2,
                  "num_key_heads": 1, "head_width": 4, "window": 8, "query_scale": 0.5, "rope_scale": 1.0,
                  "vocab_size": 560},
        "execution": {"dtype": "float32"},
        "data": data,
        "walk": ("only",),
        "stages": {"only": {"row_length": 32, "rows_per_step": 4, "num_steps": 6, "average_decay": 0.9,
                            "optimizer": {"peak_rate": 1e-2, "warmup_steps": 2}}},
        "checkpoints": {"every_steps": 3},
        "log": {"tensorboard": False},
    }
"""


def program(directory: pathlib.Path, *arguments: str) -> None:
    """Runs the program of this checkout in `directory`, so that no absolute path is stored."""
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    subprocess.run([sys.executable, "-m", "gemma3_jax", *arguments], cwd=directory, env=environment, check=True)


def texts() -> str:
    """40 documents of 60 words, as JSON lines."""
    lines = (" ".join(WORDS[i * (i + line) % len(WORDS)] for i in range(60)) + "." for line in range(40))
    return "".join(json.dumps({"text": line}) + "\n" for line in lines)


def make(work: pathlib.Path) -> None:
    """Fills `work` with what the archive holds, and more."""
    for name, content in {"texts.jsonl": texts(), "data.py": DATA, "train.py": TRAIN}.items():
        (work / name).write_text(content)
    program(work, "prepare", "--config=data.py:texts.jsonl", "--output=data")
    program(work, "train", "--config=train.py:data", "--workdir=run", "--cache=cache")
    shutil.rmtree(work / "run" / "checkpoints" / str(NUM_STEPS))
    program(work, "convert", "--source=run", "--target=hf", "--format=hf")
    exported = (work / "hf" / "model.safetensors").read_bytes()
    rows = [json.loads(line) for line in (work / "run" / "metrics.jsonl").read_text().splitlines()]
    expected = {"hf_sha256": hashlib.sha256(exported).hexdigest(), "losses": [row["loss"] for row in rows]}
    (work / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


def archive(work: pathlib.Path, output: pathlib.Path) -> None:
    """Packs the data, the run and what is expected of it, without times and owners."""
    files = [work / "expected.json", *sorted((work / "data").rglob("*")), *sorted((work / "run").rglob("*"))]
    with tarfile.open(output, "w:xz", preset=9) as tar:
        for file in files:
            if file.is_file() and file.name not in LEFT_OUT:
                member = tarfile.TarInfo(file.relative_to(work).as_posix())
                member.size = file.stat().st_size
                tar.addfile(member, io.BytesIO(file.read_bytes()))


def main() -> None:
    output = pathlib.Path(sys.argv[1]).resolve() / NAME
    with tempfile.TemporaryDirectory() as directory:
        make(pathlib.Path(directory))
        archive(pathlib.Path(directory), output)
    print(f"wrote {output}: {output.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
