"""Families of inputs: intact files, how each is damaged, and the command that reads them."""

import argparse
import dataclasses
import gzip
import json
import pathlib
import random
import tempfile
import types
import zipfile
from collections.abc import Callable

import jax
import jax.numpy as jnp
import msgpack
import pytest

from gemma3_jax import settings, sharding
from gemma3_jax.checkpoint import orbax
from gemma3_jax.cli import configs, program, terminal
from gemma3_jax.data import dataset, order, shards, stream
from gemma3_jax.data.targets import reader as targets_reader
from gemma3_jax.data.targets import writer as targets_writer
from gemma3_jax.model import parameters
from tests import runs, texts, toys
from tests.checkpoint import saved, test_hf
from tests.data.targets import synthetic, test_reader
from tests.fuzz import damage
from tests.report import run_directories

Damage = Callable[[random.Random, bytes], bytes]
MODEL = dataclasses.replace(toys.TOY, num_layers=2, num_local_per_global=1)
WITH_TOKENIZER = dataclasses.replace(MODEL, vocab_size=texts.TOKENIZER_SIZE)


@dataclasses.dataclass(frozen=True)
class Family:
    """`damages`: the files, one of which is damaged in a case. `command(draw, target)`: what then reads them."""

    damages: dict[pathlib.Path, Damage]
    command: Callable[[random.Random, pathlib.Path], list]
    verb: types.SimpleNamespace | None = None  # one of the test's own, "read"


def of_head(num_bytes: int) -> Damage:
    return lambda draw, content: damage.of_bytes(draw, content, head=num_bytes)


def convert(source: pathlib.Path, *formats: str):
    def command(draw: random.Random, target: pathlib.Path) -> list[str]:
        kind = draw.choice(formats)
        suffix = ".gguf" if kind == "gguf" else ""
        return ["convert", f"--source={source}", f"--target={target}{suffix}", f"--format={kind}"]

    return command


def reading(read: Callable[[], object]) -> types.SimpleNamespace:
    """A verb that reads, in place of `train` and `teach`, whose programs take seconds to compile."""

    def run(flags: argparse.Namespace) -> None:
        read()

    return types.SimpleNamespace(parser=lambda: terminal.Parser(prog="read"), run=run)


# --- checkpoints ---


def hf_directory(root: pathlib.Path) -> Family:
    """config.json, weights, tokenizer and what stands beside them."""
    source = root / "hf"
    orbax.save(root / "orbax", WITH_TOKENIZER, toys.params(WITH_TOKENIZER))
    (root / "orbax" / "tokenizer.model").write_bytes(texts.tokenizer_model())
    assert program.main(["convert", f"--source={root / 'orbax'}", f"--target={source}", "--format=hf"]) == 0
    damages = {file: damage.of_json for file in source.glob("*.json") if file.stat().st_size < 1 << 16}
    damages |= {file: of_head(5_000) for file in source.glob("*.safetensors")}
    damages[source / "tokenizer.model"] = damage.of_bytes
    return Family(damages, convert(source, "hf", "gguf"))


def hf_index(root: pathlib.Path) -> Family:
    source = test_hf.make_sharded(root / "hf")
    damages = {file: damage.of_json for file in source.glob("*.json")}
    damages |= {file: of_head(9_000) for file in source.glob("*.safetensors")}
    return Family(damages, convert(source, "hf"))


def gguf(root: pathlib.Path) -> Family:
    orbax.save(root / "orbax", WITH_TOKENIZER, toys.params(WITH_TOKENIZER))
    (root / "orbax" / "tokenizer.model").write_bytes(texts.tokenizer_model())
    source = root / "x.gguf"
    flags = [f"--target={source}", "--format=gguf", "--dtype=bfloat16"]
    assert program.main(["convert", f"--source={root / 'orbax'}", *flags]) == 0
    return Family({source: of_head(30_000)}, convert(source, "hf", "gguf"))


def orbax_checkpoint(root: pathlib.Path) -> Family:
    orbax.save(root / "orbax", MODEL, toys.params(MODEL))
    files = [file for file in (root / "orbax").rglob("*") if file.is_file()]
    damages = {file: damage.of_json if is_json(file) else damage.of_bytes for file in files}
    return Family(damages, convert(root / "orbax", "hf"))


def steps(root: pathlib.Path) -> Family:
    """The checkpoints of a run, of which the newest is damaged."""
    mesh = sharding.make_mesh(data=2)
    params = jax.device_put(toys.params(MODEL), parameters.shardings(MODEL, mesh))
    manager = saved.in_directory(root / "run" / "checkpoints", print)
    state = {"step": jax.device_put(jnp.asarray(3), saved.everywhere(mesh))}
    about = {"model": dataclasses.asdict(MODEL), "tokenizer": "abc"}
    manager.save(3, params, state, cursor=saved.CURSOR, meta=saved.META, checkpoint_metadata=about)
    manager.finish()
    files = [file for file in (root / "run").rglob("*") if file.is_file()]
    damages = {file: damage.of_json if is_json(file) else damage.of_bytes for file in files}
    return Family(damages, convert(root / "run", "hf"))


def is_json(file: pathlib.Path) -> bool:
    try:
        json.loads(file.read_bytes())
        return True
    except ValueError:
        return False


# --- data ---


def of_records(draw: random.Random, content: bytes) -> bytes:
    """Damages a field of one record, its bytes, or those of the shard."""
    if draw.random() < 0.3:
        return damage.of_bytes(draw, content)
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory) / "shard"
        path.write_bytes(content)
        reader = shards.Reader(path)
        records = [reader[number] for number in range(len(reader))]
        number = draw.randrange(len(records))
        try:
            fields = msgpack.unpackb(records[number])
            records[number] = msgpack.packb(damage.of_value(draw, fields), default=str)
        except (ValueError, OverflowError, TypeError, msgpack.UnpackException):  # no msgpack, or no number of it
            records[number] = damage.of_bytes(draw, records[number])
        shards.write(str(path), records)
        return path.read_bytes()


def data_set(root: pathlib.Path) -> Family:
    """The manifest, the shards and the tokenizer of a data set, of which one epoch is read."""
    prepared = texts.toy_dataset(root, seq_lens=(512,)).path
    kind = dataset.rows_kind(512)
    files = dataset.open_dataset(prepared).manifest["parts"]["text/a"]["files"][kind]
    damages = {prepared / "manifest.json": damage.of_json, prepared / "tokenizer.model": damage.of_bytes}
    damages |= {prepared / file["path"]: of_records for file in files}

    def read() -> None:
        data = dataset.open_dataset(prepared)
        data.tokenizer()
        rows = order.find(data, seq_len=512, batch_size=32, seed=0)
        batches = stream.HostBatches(data, rows, range(32), 0, 2 + sum(rows.num_rows.values()) // 32)
        batches.check()
        for number in range(len(batches)):
            batches[number]

    return Family(damages, lambda draw, target: ["read"], reading(read))


def stored_targets(root: pathlib.Path) -> Family:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(targets_writer, "UNIT_BYTES", 1)
        test_reader.write_rows(root / "targets")
    files = [file for file in (root / "targets").rglob("*") if file.is_file() and file.suffix != ".json"]
    damages = {root / "targets" / targets_reader.MANIFEST: damage.of_json} | {file: of_records for file in files}

    def read() -> None:
        stored = targets_reader.open_targets(root / "targets")
        for number in range(test_reader.NUM_ROWS):
            stored.read(number, synthetic.row_of(number))

    return Family(damages, lambda draw, target: ["read"], reading(read))


# --- configs and raw text ---


def train_config(root: pathlib.Path) -> Family:
    """The values of a recipe, as a config file and as overrides."""
    file = root / "config.py"
    recipe: dict = {}
    exec(runs.CONFIG, recipe)  # noqa: S102 (a constant of the tests)
    values = recipe["get_config"]("data")
    file.write_text(_as_config(values))

    def read(path: pathlib.Path = file) -> None:
        config = configs.load(str(path), [], settings.Train)
        for name in config.stage_order:
            settings.resolve(config, name)

    return Family(
        {file: lambda draw, content: _as_config(damage.of_value(draw, values)).encode("utf-8", "surrogatepass")},
        lambda draw, target: ["read"],
        reading(read),
    )


def _as_config(values: object) -> str:
    return f"nan, inf = float('nan'), float('inf')\ndef get_config():\n    return {values!r}\n"


def prepare_inputs(root: pathlib.Path) -> Family:
    """Text in the containers and forms that `prepare` reads."""
    rows = [{"text": text[:600], "url": "https://example.org"} for text in texts.library()[:6]]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    chats = [[{"role": "user", "content": "Who?"}, {"role": "assistant", "content": f"I, {n}."}] for n in range(4)]
    (root / "rows.jsonl").write_bytes(lines)
    (root / "chats.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    (root / "rows.jsonl.gz").write_bytes(gzip.compress(lines, mtime=0))
    (root / "plain.txt").write_text(texts.library()[7][:3_000])
    with zipfile.ZipFile(root / "rows.zip", "w") as archive:
        archive.writestr(zipfile.ZipInfo("a.jsonl"), lines)
        archive.writestr(zipfile.ZipInfo("b.jsonl"), lines[: lines.index(b"\n") + 1])
    (root / "toy.model").write_bytes(texts.tokenizer_model())
    values = {
        "sources": {
            "rows": {"paths": (str(root / "rows.jsonl"), str(root / "rows.jsonl.gz"), str(root / "rows.zip"))},
            "plain": {"paths": (str(root / "plain.txt"),), "kind": "text"},
            "chats": {"paths": (str(root / "chats.jsonl"),), "kind": "jsonl", "turns_field": "messages"},
        },
        "tokenizer": {"path": str(root / "toy.model")},
        "seq_lens": (64,),
    }
    (root / "config.py").write_text(_as_config(values))
    damages = {root / name: damage.of_json_lines for name in ("rows.jsonl", "chats.jsonl")}
    damages |= {root / name: damage.of_bytes for name in ("rows.jsonl.gz", "rows.zip", "toy.model")}
    damages[root / "plain.txt"] = damage.of_text
    damages[root / "config.py"] = lambda draw, _: _as_config(damage.of_value(draw, values)).encode("utf-8", "ignore")

    def command(draw, target):
        return ["prepare", f"--config={root / 'config.py'}", f"--output={target}", "--processes=0"]

    return Family(damages, command)


# --- what is read at a prompt, and what is reported ---

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "tags": {"type": "array", "items": {"enum": ["a", "b"]}}},
    "required": ["name"],
    "additionalProperties": False,
}
TOOL = {"name": "add", "description": "The sum.", "parameters": SCHEMA}


def generate(root: pathlib.Path) -> Family:
    """Schemas and tools, and prompts from a file."""
    orbax.save(root / "orbax", WITH_TOKENIZER, toys.params(WITH_TOKENIZER))
    (root / "orbax" / "tokenizer.model").write_bytes(texts.tokenizer_model())
    (root / "schema.json").write_text(json.dumps(SCHEMA))
    (root / "tools.json").write_text(json.dumps([TOOL, {"type": "function", "function": TOOL | {"name": "sub"}}]))
    damages = {root / name: damage.of_json for name in ("schema.json", "tools.json")}
    damages[root / "orbax" / "tokenizer.model"] = damage.of_bytes
    common = ["generate", f"--checkpoint={root / 'orbax'}", "--max_new_tokens=3", "--prompt=import os", "--mesh=data=1"]

    def command(draw, target):
        return [
            *common,
            *draw.choice(([f"--schema={root / 'schema.json'}"], ["--chat", f"--tools={root / 'tools.json'}"])),
        ]

    return Family(damages, command)


def evaluate(root: pathlib.Path) -> Family:
    """Documents, lists of ids, and results of an evaluation that was cut short."""
    orbax.save(root / "orbax", WITH_TOKENIZER, toys.params(WITH_TOKENIZER))
    (root / "orbax" / "tokenizer.model").write_bytes(texts.tokenizer_model())
    rows = [{"text": text[:200], "source": "a"} for text in texts.library()[:3]]
    (root / "documents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "documents.json").write_text(json.dumps(rows))
    (root / "ids.json").write_text(json.dumps([[2, 9, 19], [2, 5]]))
    flags = [f"--checkpoint={root / 'orbax'}", "--mesh=data=1"]
    perplexity = [*flags, "--task=perplexity", "--window=64"]
    results = root / "results.jsonl"
    resumed = ["evaluate", *perplexity, f"--input={root / 'documents.jsonl'}", f"--output={results}"]
    assert program.main(resumed) == 0
    damages = {root / name: damage.of_json for name in ("documents.json", "ids.json")}
    damages |= {root / "documents.jsonl": damage.of_json_lines, results: damage.of_json_lines}

    def command(draw, target):
        return draw.choice((
            ["evaluate", *flags, "--task=logprobs", f"--input={root / 'ids.json'}"],
            ["evaluate", *perplexity, f"--input={root / 'documents.json'}", f"--output={target}"],
            ["evaluate", *perplexity, f"--input={root / 'documents.jsonl'}"],
            resumed,
        ))  # fmt: skip

    return Family(damages, command)


def report(root: pathlib.Path) -> Family:
    """All files of a run directory."""
    directory = run_directories.write(root / "run", num_steps=4)
    damages = {file: damage.of_json_lines for file in directory.glob("*.jsonl")}
    damages[directory / "config.json"] = damage.of_json
    return Family(damages, lambda draw, target: ["report", f"--workdir={directory}", f"--output={target}.html"])


FAMILIES = {
    function.__name__: function
    for function in (
        hf_directory, hf_index, gguf, orbax_checkpoint, steps, data_set, stored_targets, train_config, prepare_inputs,
        generate, evaluate, report,
    )
}  # fmt: skip
