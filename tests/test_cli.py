"""The command line as its users see it: what is printed where, and the exit status."""

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from gemma3_jax import provenance
from gemma3_jax.checkpoint import names, orbax
from gemma3_jax.cli import prepare, program, terminal
from tests import texts, toys
from tests.checkpoint.test_hf import make_directory, same_files


@pytest.fixture
def hf_directory(tmp_path):
    return make_directory(tmp_path / "hf")


def run(capsys, *arguments):
    status = program.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return status, out, err


def fails(capsys, *arguments):
    """The one line of an error of the user."""
    status, out, err = run(capsys, *arguments)
    assert status == 1 and out == "" and "Traceback" not in err
    lines = [line for line in err.splitlines() if line.startswith("gemma3_jax: error: ")]
    assert len(lines) == 1 and err.endswith(lines[0] + "\n")
    return lines[0]


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["help"]])
def test_help_lists_the_verbs_there_are(capsys, arguments):
    status, out, _ = run(capsys, *arguments)
    assert status == 0 and all(verb in out for verb in program.VERBS)


def test_no_verb_prints_the_overview_and_fails(capsys):
    status, out, _ = run(capsys)
    assert status == 1 and "verbs:" in out


@pytest.mark.parametrize("verb", program.VERBS)
def test_help_of_a_verb_has_its_flags_and_an_example_and_loads_nothing_heavy(verb):
    code = f"import sys\nfrom gemma3_jax.cli import program\ntry: program.main(['{verb}', '--help'])\n"
    code += "finally: assert 'jax' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"example:\n  python -m gemma3_jax {verb} --" in done.stdout.replace(
        "echo '[[2, 9259, 1902]]' > ids.json\n  ", ""
    )


def test_convert_goes_round_bit_for_bit(capsys, hf_directory, tmp_path):
    steps = [
        ("hf", "a.orbax", "orbax"),
        ("a.orbax", "b.hf", "hf"),
        ("b.hf", "c.gemma", "gemma"),
        ("c.gemma", "d.hf", "hf"),
    ]
    for source, target, kind in steps:
        more = [f"--model={hf_directory / 'config.json'}"] * source.endswith("gemma")  # a tree says no model
        paths = [f"--source={tmp_path / source}", f"--target={tmp_path / target}"]
        status, out, err = run(capsys, "convert", *paths, f"--format={kind}", *more)
        assert status == 0 and out == "", err
        assert f"wrote {tmp_path / target} ({kind})" in err
    assert same_files(tmp_path / "b.hf", tmp_path / "d.hf")


def test_convert_writes_the_requested_dtype(capsys, hf_directory, tmp_path):
    run(
        capsys,
        "convert",
        f"--source={hf_directory}",
        f"--target={tmp_path / 'out'}",
        "--format=orbax",
        "--dtype=bfloat16",
    )
    assert orbax.read_model(tmp_path / "out")[1]["embedder"]["table"].dtype.name == "bfloat16"


def test_paths_may_be_relative(capsys, hf_directory, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(capsys, "convert", "--source=hf", "--target=out", "--format=orbax")[0] == 0
    assert run(capsys, "convert", "--source=out", "--target=back", "--format=hf")[0] == 0
    assert (tmp_path / "back" / "model.safetensors").is_file()


def test_evaluate_prints_the_same_for_every_kind(capsys, hf_directory, tmp_path):
    ids = tmp_path / "ids.json"
    ids.write_text("[[2, 5, 77], [3], [10, 20, 30, 40]]")
    run(capsys, "convert", f"--source={hf_directory}", f"--target={tmp_path / 'orbax'}", "--format=orbax")
    results = []
    for name, mesh in (("hf", "data=1"), ("orbax", ""), ("orbax", "replica=2,seq=2,model=2")):
        status, out, err = run(
            capsys,
            "evaluate",
            f"--checkpoint={tmp_path / name}",
            "--task=logprobs",
            f"--input={ids}",
            "--json",
            f"--mesh={mesh}",
        )
        assert status == 0, err
        assert ("embedder/table" in err) == (mesh != "data=1")  # shardings are printed if there are several devices
        results.append(json.loads(out)["logprobs"])
    assert [len(row) for row in results[0]] == [2, 0, 3]
    for row in results[1:]:
        np.testing.assert_allclose(sum(row, []), sum(results[0], []), atol=toys.ROUNDING)
    _, out, _ = run(capsys, "evaluate", f"--checkpoint={hf_directory}", "--task=logprobs", f"--input={ids}")
    assert [len(line.split()) for line in out.splitlines()] == [2, 0, 3]
    np.testing.assert_allclose([float(value) for value in out.split()], sum(results[0], []), atol=toys.ROUNDING)


def test_a_model_with_nan_is_an_error_and_prints_no_numbers(capsys, tmp_path):
    params = toys.params(toys.TOY)
    params["final_norm"]["scale"] *= np.nan
    orbax.save(tmp_path / "orbax", toys.TOY, params)
    (tmp_path / "ids.json").write_text("[[2, 5]]")
    line = fails(
        capsys, "evaluate", f"--checkpoint={tmp_path / 'orbax'}", "--task=logprobs", f"--input={tmp_path / 'ids.json'}"
    )
    assert "orbax gives list 0 a log-probability that is not finite" in line


def test_evaluate_in_bfloat16_is_near(capsys, hf_directory, tmp_path):
    (tmp_path / "ids.json").write_text("[[2, 5, 77, 6, 50]]")
    flags = [
        "evaluate",
        f"--checkpoint={hf_directory}",
        "--task=logprobs",
        f"--input={tmp_path / 'ids.json'}",
        "--json",
    ]
    exact, rounded = (json.loads(run(capsys, *flags, *more)[1])["logprobs"][0] for more in ([], ["--dtype=bfloat16"]))
    assert exact != rounded and np.abs(np.subtract(exact, rounded)).max() < 0.5  # 8 bits of logits of size 10


def test_mistakes_on_the_command_line_are_one_line(capsys, hf_directory, tmp_path):
    convert = ["convert", f"--source={hf_directory}", f"--target={tmp_path / 'out'}"]
    assert (
        "there is no verb evalute; did you mean evaluate? (the verbs are: prepare, train, plan, teach, convert, "
        "generate, evaluate, report)" in fails(capsys, "evalute")
    )
    assert "convert has no flag --formt; did you mean --format?" in fails(capsys, *convert, "--formt=hf")
    assert "convert has no flag --zzz (" in fails(capsys, *convert, "--format=hf", "--zzz")
    assert "required: --format" in fails(capsys, *convert)
    assert "invalid choice: 'tf'" in fails(capsys, *convert, "--format=tf")
    assert f"{tmp_path / 'no'} is no directory, and no GGUF file; a checkpoint is one or the other" in fails(
        capsys, "convert", f"--source={tmp_path / 'no'}", f"--target={tmp_path / 'out'}", "--format=hf"
    )
    assert f"{tmp_path} is no known kind of checkpoint; it must be" in fails(
        capsys, "convert", f"--source={tmp_path}", f"--target={tmp_path / 'out'}", "--format=hf"
    )
    (tmp_path / "there").mkdir()
    assert "there exists; choose another --target" in fails(
        capsys, "convert", f"--source={hf_directory}", f"--target={tmp_path / 'there'}", "--format=hf"
    )
    assert "/hf/out is inside --source " in fails(
        capsys, "convert", f"--source={hf_directory}", f"--target={hf_directory / 'out'}", "--format=hf"
    )
    assert "--model is 2b; it must be one of 270m, 1b, 4b, 12b, 27b, or a config.json" in fails(
        capsys, *convert, "--format=hf", "--model=2b"
    )
    assert "--model is for Orbax trees of the gemma library; " in fails(capsys, *convert, "--format=hf", "--model=1b")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "damage", ["params/ocdbt.process_0/d/*", "params/d/*", "params/manifest.ocdbt", "_CHECKPOINT_METADATA"]
)
@pytest.mark.parametrize("size", [0, pytest.param(100, marks=pytest.mark.slow)])
def test_a_damaged_orbax_checkpoint_is_one_line_whatever_orbax_prints(damage, size, tmp_path):
    orbax.save(tmp_path / "orbax", toys.TOY, toys.params(toys.TOY))
    file = max((tmp_path / "orbax").glob(damage), key=lambda file: file.stat().st_size)
    file.write_bytes(file.read_bytes()[:size])
    flags = [f"--source={tmp_path / 'orbax'}", f"--target={tmp_path / 'out'}", "--format=hf"]
    command = [sys.executable, "-m", "gemma3_jax", "convert", *flags]
    done = subprocess.run(command, capture_output=True, text=True, cwd=pathlib.Path(__file__).parents[1])
    assert done.returncode == 1 and "Traceback" not in done.stderr
    *before, line = done.stderr.splitlines()
    assert line.startswith(f"gemma3_jax: error: {tmp_path / 'orbax'} cannot be read: ")
    assert [text.startswith("reading ") for text in before] == [True] * len(before)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["hf", "orbax"])
def test_out_of_memory_is_one_line(kind, capsys, hf_directory, tmp_path, monkeypatch):
    orbax.save(tmp_path / "orbax", toys.TOY, toys.params(toys.TOY))

    def load(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes.\nand more")

    monkeypatch.setattr(names, "relayout", load)  # of each tensor of a Hugging Face directory
    monkeypatch.setattr(orbax.ocp, "load_checkpointables", load)
    line = fails(capsys, "convert", f"--source={tmp_path / kind}", f"--target={tmp_path / 'out'}", "--format=hf")
    assert "out of memory: RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes.; use more devices" in line


def test_an_error_that_the_user_did_not_cause_has_a_traceback_and_a_status_of_its_own():
    script = "from gemma3_jax.cli import convert, program\nconvert.run = lambda flags: 1 / 0\nprogram.run()"
    command = [sys.executable, "-c", script, "convert", "--source=a", "--target=b", "--format=hf"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == program.INTERNAL_ERROR == 71 and "ZeroDivisionError" in done.stderr


def test_a_model_that_config_json_cannot_hold_is_refused_before_it_is_read(capsys, tmp_path):
    model = dataclasses.replace(toys.TOY, query_scale=0.3)
    orbax.save(tmp_path / "orbax", model, toys.params(model))
    line = fails(capsys, "convert", f"--source={tmp_path / 'orbax'}", f"--target={tmp_path / 'out'}", "--format=hf")
    assert "model.query_scale is 0.3" in line and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "content, mesh, text",
    [
        ("[[2, 500]]", "", "list 0 has token id 500"),
        ("[[2,", "", "is not JSON"),
        (None, "", "ids.json does not exist; it must be a JSON file"),
        ("[" * 100_000, "", "is not JSON"),
        ('[["' + "x" * 1000 + '"]]', "", "token id 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; it must"),
        ("[[2]]", "data=x", "--mesh is data=x; it must be AXIS=N,... with each axis once: replica, data, seq, model"),
        ("[[2]]", "fsdp=2", "--mesh is fsdp=2"),
        ("[[2]]", "data=2,data=2", "--mesh is data=2,data=2"),
        ("[[2]]", "data=64", "= 64 devices, but there are 8"),
    ],
)
def test_evaluate_says_what_is_wrong_with_its_input(capsys, hf_directory, tmp_path, content, mesh, text):
    if content is not None:
        (tmp_path / "ids.json").write_text(content)
    flags = [f"--checkpoint={hf_directory}", "--task=logprobs", f"--input={tmp_path / 'ids.json'}", f"--mesh={mesh}"]
    assert text in fails(capsys, "evaluate", *flags)


def test_a_damaged_source_leaves_no_target(capsys, hf_directory, tmp_path):
    file = hf_directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-7])
    line = fails(capsys, "convert", f"--source={hf_directory}", f"--target={tmp_path / 'out'}", "--format=orbax")
    assert "model.safetensors is cut short" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf"]


@pytest.mark.parametrize(
    "kill, status", [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
    "kind, moment",
    [
        ("gguf", "writing"),
        ("hf", "importing"),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in (("orbax", "writing"), ("hf", "reading"))),
    ],
)
def test_stopping_a_conversion_leaves_nothing(kill, status, kind, moment, tmp_path):
    """A real process, stopped at different moments; a model large enough to take seconds."""
    model = dataclasses.replace(toys.TOY, embed_dim=512, mlp_dim=4096, num_layers=12, vocab_size=texts.TOKENIZER_SIZE)
    make_directory(tmp_path / "hf", toys.zero_weights(model), model)
    target = tmp_path / ("out.gguf" if kind == "gguf" else "out")
    flags = [f"--source={tmp_path / 'hf'}", f"--target={target}", f"--format={kind}"]
    if kind == "gguf":
        (tmp_path / "hf" / "tokenizer.model").write_bytes(texts.tokenizer_model())
        flags += ["--quant=q4_0"]
    show_imports = ["-X", "importtime"] if moment == "importing" else []  # the verb imports JAX: the program runs
    process = subprocess.Popen(
        [sys.executable, *show_imports, "-m", "gemma3_jax", "convert", *flags],
        stderr=subprocess.PIPE,
        text=True,
        cwd=pathlib.Path(__file__).parents[1],
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    sign = "jaxlib" if moment == "importing" else "reading "
    assert any(sign in line for line in iter(process.stderr.readline, ""))
    deadline = time.monotonic() + 60
    while moment == "writing" and not list(tmp_path.glob(f".{target.name}.partial-*")) and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(kill)
    err = process.communicate()[1]
    assert process.returncode == status, err
    assert "Traceback" not in err and sorted(path.name for path in tmp_path.iterdir()) == ["hf"]


# --- GGUF, and few bits ---

SMALL = dataclasses.replace(
    toys.TOY, num_layers=2, embed_dim=32, mlp_dim=64, head_dim=16, vocab_size=texts.TOKENIZER_SIZE
)


@pytest.fixture
def small_hf(tmp_path):
    path = make_directory(tmp_path / "hf", toys.hf_weights(SMALL), SMALL)
    (path / "tokenizer.model").write_bytes(texts.tokenizer_model())
    return path


def test_few_bits_go_out_and_score_alike_in_every_kind(capsys, small_hf, tmp_path):
    ids, scores = tmp_path / "ids.json", {}
    ids.write_text("[[2, 500, 77], [10, 20, 30, 40]]")
    flags = {"a.gguf": ["--format=gguf"], "a.hf": ["--format=hf"]}
    for name, more in flags.items():
        target = tmp_path / name
        status, out, err = run(capsys, "convert", f"--source={small_hf}", f"--target={target}", "--quant=q4_0", *more)
        assert status == 0 and out == "" and f"wrote {target} ({name[2:]}), 0." in err and "MB/s" in err, err
    assert (tmp_path / "a.hf" / "tokenizer.model").read_bytes() == texts.tokenizer_model()
    status, *_ = run(capsys, "convert", f"--source={tmp_path}/a.gguf", f"--target={tmp_path}/a.orbax", "--format=orbax")
    assert status == 0
    for name in ("a.gguf", "a.hf", "a.orbax", "hf"):
        _, out, err = run(
            capsys, "evaluate", f"--checkpoint={tmp_path / name}", "--task=logprobs", f"--input={ids}", "--json"
        )
        scores[name] = sum(json.loads(out)["logprobs"], [])
        assert ("packed.safetensors is read, which is exact" in err) == (name == "a.hf")
    for name in ("a.hf", "a.orbax"):
        np.testing.assert_allclose(scores[name], scores["a.gguf"], atol=toys.ROUNDING)
    assert np.abs(np.subtract(scores["hf"], scores["a.gguf"])).max() > 0.01  # it is another model


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (
            ["--format=orbax", "--quant=int4"],
            "--quant is for --format=gguf and hf; an Orbax checkpoint holds the unrounded weights",
        ),
        (["--format=orbax", "--tokenizer=x"], "--tokenizer is for --format=gguf and hf"),
        (["--format=gemma", "--tokenizer=x"], "--tokenizer is for --format=gguf and hf"),
        (["--format=gemma", "--quant=int4"], "--quant is for --format=gguf and hf; a gemma tree has floats"),
        (["--format=hf", "--embedding=q8_0"], "--embedding is for --format=gguf, or with --quant"),
        (
            ["--format=gguf", "--quant=int4", "--dtype=float32"],
            "--dtype is for parameters that are not quantized; with --quant, use --embedding",
        ),
        (["--format=hf", "--dtype=float16"], "--dtype=float16 is for --format=gguf"),
        (["--format=gguf"], "out; the name of a GGUF file ends in .gguf"),
        (["--format=gguf", "--target={}.gguf", "--tokenizer=none.model"], "none.model does not exist; a tokenizer is"),
        (["--format=gguf", "--target={}.gguf", "--model=1b"], "--model is for Orbax trees of the gemma library"),
        (["--format=gguf", "--target={}.gguf", "--quant=fp4"], "invalid choice: 'fp4'"),
        (["--format=gguf", "--target={}/none/out.gguf"], "none is not a directory; --target needs an existing parent"),
    ],
)
def test_flags_that_mean_nothing_together_are_one_line(flags, problem, capsys, small_hf, tmp_path):
    flags = [flag.replace("{}", str(tmp_path / "out")) for flag in flags]
    assert problem in fails(capsys, "convert", f"--source={small_hf}", f"--target={tmp_path / 'out'}", *flags)
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_a_damaged_gguf_file_is_one_line(capsys, small_hf, tmp_path):
    file = tmp_path / "a.gguf"
    run(capsys, "convert", f"--source={small_hf}", f"--target={file}", "--format=gguf")
    content = file.read_bytes()
    for damage, problem in (
        (content[:-100], "a.gguf is damaged or cut short: it ends in the middle of tensor output_norm.weight"),
        (content[:20], "a.gguf is damaged or cut short: it ends in the middle of its header"),
        (b"GGUF", "a.gguf is damaged or cut short: it ends in the middle of its header"),
        (b"GGML" + content[4:], "a.gguf is no directory, and no GGUF file"),
        (b"", "a.gguf is no directory, and no GGUF file"),
        (
            content.replace(b"gemma3.block_count", b"gemma3.block_kount"),
            "a.gguf: its metadata lacks gemma3.block_count",
        ),
    ):
        file.write_bytes(damage)
        assert problem in fails(capsys, "convert", f"--source={file}", f"--target={tmp_path / 'out'}", "--format=hf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.Modelfile", "a.gguf", "hf"]


def test_bytes_are_printed_for_a_size_and_for_a_checkpoint(capsys, small_hf):
    status, out, _ = run(capsys, "evaluate", "--task=bytes", "--model=1b", "--context=32768,131072", "--json")
    table = json.loads(out)
    assert status == 0 and table["task"] == "bytes"
    assert table["weights"]["bfloat16"] == 2_000_040_448 and table["report"]["weights_gb"]["q4_0"] == 0.7
    assert table["cache"]["32768"]["full"]["int8"] == 436_207_616 and len(table["cache"]) == 2
    _, out, _ = run(capsys, "evaluate", "--task=bytes", "--model=1b")
    lines = out.splitlines()
    assert lines[0].split() == ["GB", "here", "report"] and "12 sequences would come near" in lines[-1]
    assert [line.split()[-2:] for line in lines if "q4_0" in line or "int8" in line] == [
        ["0.997", "0.7"],
        ["0.073", "0.9"],
        ["tokens", "0.436"],
    ]
    _, out, _ = run(capsys, "evaluate", "--task=bytes", f"--checkpoint={small_hf}")
    assert len(out.splitlines()) == 9 and "report" not in out


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--task=bytes"], "--task=bytes needs --checkpoint or --model"),
        (["--task=bytes", "--model=1b", "--context=1k"], "--context has '1k'; it must be whole numbers from 1"),
        (["--task=bytes", "--model=1b", "--context=0"], "--context has '0'; it must be whole numbers from 1"),
        (
            ["--task=bytes", "--model=1b", "--input=x"],
            "--input is for --task=logprobs, perplexity, context, memorization; leave it out",
        ),
        (
            ["--task=bytes", "--model=1b", "--dtype=bfloat16"],
            "--dtype is for --task=logprobs, perplexity, context, needle, memorization, lm_eval; leave",
        ),
        (["--task=logprobs", "--input=x"], "--task=logprobs needs --checkpoint"),
        (["--task=logprobs", "--checkpoint=x"], "--task=logprobs needs --input"),
        (["--task=logprobs", "--checkpoint=x", "--context=3"], "--context is for --task=bytes; leave it out"),
    ],
)
def test_a_task_takes_its_own_flags(flags, problem, capsys):
    assert problem in fails(capsys, "evaluate", *flags)


def prepare_flags(tmp_path, rows, *more):
    """Flags of a `prepare` over a few rows, with the toy tokenizer."""
    (tmp_path / "toy.model").write_bytes(texts.tokenizer_model())
    path = texts.write_lines(tmp_path / "in.jsonl", rows)
    (tmp_path / "config.py").write_text(
        f"def get_config():\n    return {{'sources': {{'web': {{'paths': ({path!r},)}}}}, 'seq_lens': (64,),\n"
        f"            'tokenizer': {{'path': {str(tmp_path / 'toy.model')!r}}}}}\n"
    )
    return [f"--config={tmp_path / 'config.py'}", f"--output={tmp_path / 'out'}", "--processes=0", *more]


def test_the_table_of_prepare_has_room_for_long_sequences():
    part = {"documents": 2, "tokens": 400_000, "rows": {32_768: 12, 131_072: 3}}
    report = {
        "records": 2,
        "broken": {"count": 0},
        "dropped": {},
        "changed": 0,
        "fill": {32_768: 0.99, 131_072: 0.98},
        "parts": {"text": part},
        "kept": part,
    }
    head, *rows = prepare.summary("out", {"digest": "0" * 64}, report).splitlines()[1:4]
    assert head.split() == "part documents tokens of training sequences of 32768 sequences of 131072".split()
    assert {len(row) for row in rows} == {len(head)} and rows[0].split() == ["text", "2", "400,000", "12", "3"]


def test_prepare_tells_what_it_kept_and_what_not(capsys, tmp_path):
    rows = [*texts.library()[:4], texts.library()[0], "", "mail a@b.org now", b"{"]
    status, out, err = run(capsys, "prepare", *prepare_flags(tmp_path, rows))
    assert status == 0 and out == ""
    for line in (
        "8 records read",
        f"1  could not be read, such as: {tmp_path}/in.jsonl, line 8: not JSON",
        f"1  duplicate, such as: {tmp_path}/in.jsonl, line 5 (like {tmp_path}/in.jsonl, line 1)",
        "1  too short, such as",
        "1  changed: something was masked or cut out",
        "part ",
        "in all ",
        "sequences of 64 are ",
        f"wrote {tmp_path}/out, digest ",
    ):
        assert line in err
    assert (tmp_path / "out" / "manifest.json").exists() and not (tmp_path / "out" / ".work").exists()


def test_prepare_prints_its_report_as_json_and_nothing_else(capsys, tmp_path):
    status, out, _ = run(capsys, "prepare", *prepare_flags(tmp_path, texts.library()[:4], "--json"))
    assert status == 0 and json.loads(out) == json.loads((tmp_path / "out" / "report.json").read_text())


def test_prepare_takes_overrides_of_its_config(capsys, tmp_path):
    flags = prepare_flags(tmp_path, texts.library()[:4], "--config.seq_lens=(32,)", "--config.sources.web.fraction=1.0")
    status, _, err = run(capsys, "prepare", *flags)
    assert status == 0 and "sequences of 32 are" in err and "sequences of 64" not in err


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (["--config.seq_len=(32,)"], r"there is no config.seq_len; did you mean config.seq_lens?"),
        (["--confg.seed=1"], "has no flag --confg.seed; did you mean --config?"),
        (["--ouput=x"], "has no flag --ouput; did you mean --output?"),
        (["--processes=-1"], "--processes is -1; it must be >= 0"),
        (["--runner_options=--x=1"], "--runner_options needs --runner"),
        (["--config=none.py"], "--config is none.py, which is not a file"),
        (
            ["--config.sources.web.paths=('none.jsonl',)"],
            "none.jsonl cannot be read: it does not exist (config.sources.web)",
        ),
    ],
)
def test_prepare_names_a_mistake_in_one_line_and_writes_nothing(capsys, tmp_path, more, problem):
    assert problem in fails(capsys, "prepare", *prepare_flags(tmp_path, ["text"], *more))
    assert not (tmp_path / "out").exists()


def test_prepare_twice_leaves_the_first_alone(capsys, tmp_path):
    flags = prepare_flags(tmp_path, ["some text"])
    assert run(capsys, "prepare", *flags)[0] == 0
    assert "exists and is complete; choose another --output" in fails(capsys, "prepare", *flags)


def test_a_library_of_an_extra_that_is_not_there_is_named_with_its_extra(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasketch", None)
    line = fails(capsys, "prepare", *prepare_flags(tmp_path, ["some text"]))
    assert "datasketch is not installed; pip install 'gemma3_jax[prepare]'" in line


def test_a_report_without_a_template_engine_names_its_extra(tmp_path):
    code = """
import sys
sys.modules["jinja2"] = None
from gemma3_jax.cli import program
sys.exit(program.main(["report", "--workdir=" + sys.argv[1]]))
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "gemma3_jax: error: jinja2 is not installed; pip install 'gemma3_jax[plots]'\n"


def test_where_stderr_is_a_file_a_bar_is_lines(capsys, monkeypatch):
    with terminal.bar("A [pass]", 3, unit="steps") as shown:
        shown.mininterval, shown.delay = 0.0, 0.0
        for _ in range(3):
            shown.update(1)
            shown.refresh()
    lines = capsys.readouterr().err.split("\n")
    assert lines[-1] == "" and len(lines) > 3
    assert all(line.startswith("A [pass]: ") and "\r" not in line for line in lines[:-1])


def test_a_thread_that_waits_for_good_does_not_keep_a_process_that_is_done():
    code = """
import sys, threading
from gemma3_jax.cli import program
program.SECONDS_TO_END = 0.2
threading.Thread(target=threading.Event().wait).start()
sys.argv = ["gemma3_jax", "--help"]
program.run()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "usage: " in done.stdout and not done.stderr


def test_the_version_names_what_results_depend_on(capsys):
    assert program.main(["--version"]) == 0
    lines = dict(line.split(" ", 1) for line in capsys.readouterr().out.splitlines())
    assert lines["python"] == platform.python_version() and lines["jax"] == importlib.metadata.version("jax")
    assert lines.get("commit") == provenance.commit()
