"""A toy tokenizer, toy text, and toy data sets."""

import functools
import json
import pathlib

from gemma3_jax.data import dataset, shards
from gemma3_jax.data.prepare import builtin, pipeline, settings
from gemma3_jax.tokenizer import training, vocabulary

TOKENIZER_SIZE = 800


@functools.cache
def library() -> tuple[str, ...]:
    """Real text: 48 modules of the standard library."""
    files = [file for file in builtin.files() if 2_000 < file.stat().st_size < 40_000]
    return tuple(builtin.rows(file)[0]["text"] for file in files[:48])


@functools.cache
def tokenizer_model() -> bytes:
    return training.train(library()[:16], TOKENIZER_SIZE)


@functools.cache
def tokenizer() -> vocabulary.Tokenizer:
    return vocabulary.Tokenizer(tokenizer_model())


def write_lines(path: pathlib.Path, rows) -> str:
    """A JSONL file; text is a row of its own, bytes are a line as they are."""
    rows = ({"text": row} if isinstance(row, str) else row for row in rows)
    lines = (row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows)
    write(path, b"".join(line + b"\n" for line in lines))
    return str(path)


def write(path: pathlib.Path, content: bytes) -> None:
    """Writes what is not there already: a file that is written again counts as changed."""
    if not path.exists() or path.read_bytes() != content:
        path.write_bytes(content)


def config(directory: pathlib.Path, sources, **changes) -> settings.PrepareConfig:
    """A config with the toy tokenizer, and everything off that a test does not set."""
    model = directory / "toy.model"
    model.write_bytes(tokenizer_model())
    plain = {
        "tokenizer": settings.TokenizerConfig(path=str(model)),
        "personal_data": settings.PersonalDataConfig(action=""),
        "duplicates": settings.DuplicatesConfig(exact=False, near=False),
        "seq_lens": (64,),
    }
    return settings.PrepareConfig(sources=sources, **(plain | changes))


def run(settings_, output: pathlib.Path, num_processes: int = 0) -> tuple[dict, dict]:
    return pipeline.run(settings_, str(output), num_processes=num_processes)


def read_all(path: pathlib.Path, num_records: int) -> list[bytes]:
    """Every record of a shard."""
    reader = shards.Reader(path, num_records)
    return [reader[index] for index in range(num_records)]


def toy_dataset(directory: pathlib.Path, **changes) -> dataset.Dataset:
    """The library's 48 modules in three parts: text/a (24 modules), text/b (16) and code/c (8)."""
    rows = [
        {"text": text, "language": "a" if number < 24 else "b" if number < 40 else "c"}
        for number, text in enumerate(library())
    ]
    sources = {
        "text": settings.SourceConfig(
            paths=(write_lines(directory / "text.jsonl", rows[:40]),), language_field="language"
        ),
        "code": settings.SourceConfig(
            paths=(write_lines(directory / "code.jsonl", rows[40:]),), language_field="language", bucket="code"
        ),
    }
    run(config(directory, sources, **changes), directory / "data")
    return dataset.open_dataset(directory / "data")
