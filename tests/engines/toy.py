"""A toy that was trained by this program and has learned to answer: what the engines are asked about."""

import dataclasses
import pathlib

from gemma3_jax.cli import program
from gemma3_jax.tokenizer import vocabulary
from tests import texts, toys
from tests.checkpoint.test_hf import make_directory

MODEL = dataclasses.replace(
    toys.IN_BLOCKS,
    num_layers=7,  # so that one is global
    embed_dim=128,
    mlp_dim=256,
    vocab_size=texts.TOKENIZER_SIZE,
    context_length=8192,
)
SYSTEM = "Answer with a number."
NUM_STEPS = 200


def question(first: int, second: int) -> list[dict]:
    return [{"role": "user", "content": f"What is {first} + {second}?"}]


QUESTIONS = [question(3, 4), question(11, 9), [{"role": "system", "content": SYSTEM}, *question(5, 5)]]


def train(directory: pathlib.Path, tokenizer: bytes | None = None) -> pathlib.Path:
    """Returns a run that was trained on sums, from random weights; `tokenizer` is a SentencePiece model."""
    tokenizer = tokenizer or texts.tokenizer_model()
    model = dataclasses.replace(MODEL, vocab_size=vocabulary.Tokenizer(tokenizer).size)
    make_directory(directory / "start", toys.hf_weights(model), model)
    (directory / "start" / "tokenizer.model").write_bytes(tokenizer)
    rows = [
        {"messages": [*question(first, second), {"role": "assistant", "content": f"It is {first + second}."}]}
        for first in range(20)
        for second in range(10)
    ]
    texts.write_lines(directory / "chats.jsonl", rows)
    run = directory / "run"
    flags = [f"--input={directory}/chats.jsonl", f"--tokenizer={directory}/start", f"--output={directory}/data"]
    ours("prepare", *flags, "--processes=0", "--config.seq_lens=(128,)")
    flags = [f"--config={pathlib.Path(__file__).parents[2]}/experiments/finetune.py", f"--workdir={run}"]
    flags += [f"--config.init_from={directory}/start", f"--config.data={directory}/data"]
    settings = {"num_steps": NUM_STEPS, "optimizer.peak_lr": 3e-3}
    ours("train", *flags, *(f"--config.stages.tune.{name}={value}" for name, value in settings.items()))
    return run


def ours(verb: str, *flags: str) -> None:
    if status := program.main([verb, *flags]):
        raise SystemExit(f"{verb} {' '.join(flags)} ended with status {status}")
