"""Evaluation tasks during training and afterwards give the same numbers; and the flags of `evaluate`."""

import json
import shutil

import pytest

from gemma3_jax.checkpoint import hf_config
from gemma3_jax.cli import program, terminal
from tests import runs, test_generate, texts

data = runs.data  # a fixture

# task -> flags of `evaluate`; the settings of an evaluation during training have the same names
FLAGS = {
    "perplexity": {"window": "32"},
    "context": {"lengths": "20,40,80", "last_tokens": "8", "num_documents": "4"},
    "memorization": {"num_samples": "4", "prefix_tokens": "6", "suffix_tokens": "4"},
    "needle": {"lengths": "240", "kinds": "single", "num_depths": "2", "num_samples": "1"},
}
READS = ("perplexity", "context", "memorization")


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    path = tmp_path_factory.mktemp("documents") / "held_out.jsonl"
    rows = [{"source": f"part {number % 2}", "text": text[:1500]} for number, text in enumerate(texts.library()[40:46])]
    texts.write_lines(path, rows)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A toy with random weights."""
    return test_generate.save(tmp_path_factory.mktemp("fresh") / "orbax")


def measured(documents) -> list[str]:
    """Flags for a second stage that rounds, and runs every task at its end."""
    prefix = "--config.stages.second.evaluation"
    flags = [f"{prefix}.every_steps=20", f"{prefix}.num_rows=8", f"--config.documents={documents}"]
    flags += [f"{prefix}.measures.tasks={(*FLAGS, 'bytes', 'samples')}", f"{prefix}.measures.prompts=('import os',)"]
    flags += [f"{prefix}.measures.sample_tokens=5", f"{prefix}.measures.cache_lengths=(64,)"]
    for task, settings in FLAGS.items():
        for name, value in settings.items():
            is_tuple = name in ("lengths", "kinds")
            value = tuple(map(int, value.split(","))) if name == "lengths" else (value,) if is_tuple else value
            flags.append(f"{prefix}.measures.{task}.{name}={value}")
    return [*flags, "--config.stages.second.quant.format=int4"]


def last_row(workdir) -> dict:
    *_, row = map(json.loads, (workdir / "evaluations.jsonl").read_text().splitlines())
    return row


@pytest.fixture(scope="module")
def run(data, documents, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("measured") / "run"
    assert program.main(runs.command(data, workdir, *measured(documents), "--config.mesh.data=2")) == 0
    return workdir


def evaluate(capsys, run, task, documents, *flags, status=0):
    settings = [f"--{name}={value}" for name, value in FLAGS.get(task, {}).items()]
    reads = [f"--input={documents}"] if task in READS else []
    command = ["evaluate", f"--checkpoint={run}", f"--task={task}", "--mesh=data=1", *settings, *reads, *flags]
    assert program.main(command) == status, capsys.readouterr().err
    return capsys.readouterr()


def flat(summary, prefix=""):
    for name, value in summary.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{name}", value


@pytest.mark.slow
@pytest.mark.parametrize("task", FLAGS)
def test_evaluate_says_of_the_checkpoint_what_was_said_in_training(task, run, documents, capsys):
    row = last_row(run)
    in_training = {name.removeprefix(f"{task}/"): value for name, value in row.items() if name.startswith(f"{task}/")}
    afterwards = dict(flat(json.loads(evaluate(capsys, run, task, documents, "--json").out)))
    assert afterwards == pytest.approx(in_training, rel=1e-4) and len(in_training) > 3


@pytest.mark.slow
def test_sizes_and_samples_are_in_the_row_too(run):
    row = last_row(run)
    assert row["bytes/cache/64/window/bfloat16"] == 2 * 2 * 8 * (16 + 64) and row["step"] == 20
    (sample,) = row["samples"]
    assert sample["prompt"] == "import os" and isinstance(sample["text"], str)


@pytest.mark.slow
def test_two_hosts_measure_the_same(run, data, documents, tmp_path):
    second = ["--stage=second", f"--config.init_from={run / 'checkpoints' / '20'}", "--config.mesh.data=8"]
    for process in runs.start_two(runs.command(data, tmp_path / "run", *measured(documents), *second)):
        runs.finish(process)
    ours, theirs = last_row(run), last_row(tmp_path / "run")
    assert ours.keys() == theirs.keys()
    for name in (name for name in ours if name.endswith(("nats", "nats_per_token")) and "/" in name):
        assert theirs[name] == pytest.approx(ours[name], rel=2e-3), name  # rounding errors grow with training


def test_a_table_is_printed_and_results_are_gone_on_with(checkpoint, documents, capsys, tmp_path):
    straight = evaluate(capsys, checkpoint, "perplexity", documents, f"--output={tmp_path / 'all.jsonl'}").out
    assert "part 0" in straight and "part 1" in straight
    assert terminal.on_stop.note == f"run the same command to resume from {tmp_path / 'all.jsonl'}"
    lines = (tmp_path / "all.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "half.jsonl").write_bytes(b"".join(lines[:3]) + lines[3][:5])
    assert evaluate(capsys, checkpoint, "perplexity", documents, f"--output={tmp_path / 'half.jsonl'}").out == straight
    assert (tmp_path / "half.jsonl").read_bytes() == (tmp_path / "all.jsonl").read_bytes()
    output = evaluate(
        capsys, checkpoint, "perplexity", documents, f"--output={tmp_path / 'all.jsonl'}", "--dtype=bfloat16", status=1
    )
    assert "has results of another run: model" in output.err


@pytest.mark.parametrize(
    ("task", "flags", "text"),
    [
        ("perplexity", ["--window=2"], "--window is 2; it must be at least 3"),
        ("context", ["--lengths=20,x"], "--lengths has 'x'; it must be whole numbers from 1"),
        ("context", ["--lengths=8,20"], "--lengths begins with 8 and last_tokens is 8"),
        ("needle", ["--kinds=double"], "--kinds has 'double'; each must be one of single, multikey"),
        ("needle", ["--window=9"], "--window is for --task=perplexity; leave it out"),
        (
            "perplexity",
            ["--input=nothing.jsonl"],
            "documents nothing.jsonl cannot be read: it does not exist; name",
        ),
        ("memorization", ["--num_samples=400"], "memorization.num_samples is 400"),
        ("lm_eval", [], "--task=lm_eval needs --lm_tasks"),
    ],
)
def test_a_mistake_is_one_line(task, flags, text, checkpoint, documents, capsys):
    output = evaluate(capsys, checkpoint, task, documents, *flags, status=1)
    (line,) = [line for line in output.err.splitlines() if "error: " in line]
    assert text in line and not output.out


@pytest.mark.parametrize(
    ("field", "text"),
    [
        (
            "tasks=('context',)",
            r"tasks has context, and measures.documents is empty, as config.documents is; name the documents",
        ),
        ("tasks=('contex',)", r"tasks has 'contex'; each must be one of perplexity, context"),
    ],
)
def test_what_cannot_be_measured_is_said_before_training(field, text, data, tmp_path, capsys):
    prefix = "--config.stages.second.evaluation"
    flags = [f"{prefix}.every_steps=20", f"{prefix}.measures.{field}"]
    assert program.main(runs.command(data, tmp_path / "run", "--config.mesh.data=1", *flags)) == 1
    assert text in capsys.readouterr().err and not (tmp_path / "run" / "checkpoints").exists()
    never = runs.command(data, tmp_path / "run", f"{prefix}.measures.tasks=('bytes',)")
    assert program.main(never) == 1 and "but every_steps is 0, which is never" in capsys.readouterr().err


@pytest.mark.slow
def test_a_prompt_of_the_models_own_context_has_room_for_its_answer(checkpoint, documents, capsys, monkeypatch):
    monkeypatch.setattr(hf_config, "context_length", lambda model: 240)
    assert "score" in json.loads(evaluate(capsys, checkpoint, "needle", documents, "--json").out)


def test_a_checkpoint_without_a_tokenizer_cannot_read_text(checkpoint, documents, capsys, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer.model"))
    output = evaluate(capsys, tmp_path / "bare", "perplexity", documents, status=1)
    assert "has no tokenizer, and this task reads text; name one with --tokenizer=FILE" in output.err
