"""How options are resolved, tokenizers found, mistakes refused, and files written whole or not at all."""

import dataclasses
import errno
import os
import pathlib

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from gemma3_jax.checkpoint import encoding, export, gguf_file, gguf_header, hf, modelfile, orbax, packed, tensor_file
from gemma3_jax.checkpoint import open as checkpoint_open
from gemma3_jax.tokenizer import pieces, templates
from tests import texts, toys
from tests.checkpoint import saved
from tests.checkpoint.test_gguf_file import MODEL, Q4_0

DIGEST = texts.tokenizer().digest


@pytest.fixture
def source(tmp_path):
    """A checkpoint of the Hugging Face kind, with its tokenizer."""
    (tmp_path / "in").mkdir()
    export.Export("hf", MODEL, tokenizer=texts.tokenizer()).write(tmp_path / "in" / "hf", toys.source(MODEL))
    return checkpoint_open.open_checkpoint(tmp_path / "in" / "hf")


def test_what_is_not_said_is_as_stored_or_as_llama_cpps_files_have_it(source):
    def plan(source=source, kind="gguf", **options):
        return export.resolve(source, kind, **options).plan

    assert plan() == encoding.StoragePlan("float32", "float32")
    assert plan(dtype="bfloat16") == encoding.StoragePlan("bfloat16", "bfloat16")
    assert plan(dtype="float16", embedding="float32") == encoding.StoragePlan("float16", "float32")
    assert plan(quant="q4_0") == encoding.StoragePlan("q4_0", "float16")
    assert plan(quant="int4", embedding="q8_0", kind="hf") == encoding.StoragePlan("int4", "q8_0")
    assert plan(kind="hf") is None and plan(kind="orbax", dtype="bfloat16") is None
    trained = dataclasses.replace(source, kind="orbax", quant={"format": "q4_0", "embedding": "q8_0"})
    assert plan(trained, quant="q4_0") == encoding.StoragePlan("q4_0", "q8_0")
    assert plan(trained, quant="int4") == encoding.StoragePlan("int4", "float16")


def test_weights_are_rounded_from_what_is_stored_whatever_they_are_stored_as_then(source, tmp_path):
    for dtype in ("float32", "bfloat16"):
        export.resolve(source, "hf", quant="int4", dtype=dtype).write(tmp_path / dtype, source.source)
    codes, others = ((tmp_path / dtype / packed.FILE).read_bytes() for dtype in ("float32", "bfloat16"))
    assert codes == others
    weights, narrow = (safetensors.numpy.load_file(tmp_path / dtype / hf.WEIGHTS) for dtype in ("float32", "bfloat16"))
    for name, x in weights.items():
        np.testing.assert_array_equal(narrow[name], x.astype(ml_dtypes.bfloat16))


@pytest.mark.parametrize("kind", ["gguf", "hf"])
@pytest.mark.parametrize(
    ("options", "is_warned"),
    [
        ({"quant": "q4_0"}, False),
        ({"quant": "q4_0", "embedding": "q8_0"}, False),
        ({"quant": "q4_0", "embedding": "float16"}, True),
        ({"quant": "int4"}, True),
        ({}, True),
    ],
)
def test_another_format_than_it_was_trained_for_is_warned_of(options, is_warned, kind, source):
    trained = dataclasses.replace(source, kind="orbax", quant={"format": "q4_0", "embedding": "q8_0"})
    notes = export.resolve(trained, kind, **options).check()
    assert (
        any(
            "was trained for --quant=q4_0 --embedding=q8_0; this writes weights that its training did not see" in note
            for note in notes
        )
        == is_warned
    )


def test_masters_are_for_going_on_without_a_warning(source):
    trained = dataclasses.replace(source, kind="orbax", quant={"format": "q4_0", "embedding": "q8_0"})
    assert export.resolve(trained, "orbax").check() == ()


AGAIN = "this rounds it again, to other weights"
STEP = "rounding again may move weights by a step of float32"


@pytest.mark.parametrize(
    ("format", "kind", "options", "note"),
    [
        ("int4", "hf", {}, None),
        ("int4", "gguf", {}, None),
        ("int4", "hf", {"dtype": "float32"}, None),
        ("int4", "hf", {"dtype": "bfloat16"}, AGAIN),
        ("int4", "gguf", {"embedding": "bfloat16"}, AGAIN),
        ("int4", "gguf", {"quant": "int4"}, STEP),
        ("sfp8", "hf", {"quant": "sfp8"}, STEP),
        ("int4", "hf", {"quant": "int4", "embedding": "bfloat16"}, AGAIN),
        ("int4", "hf", {"quant": "q4_0"}, AGAIN),
        ("q4_0", "hf", {"quant": "q4_0"}, None),
        ("q4_0", "orbax", {"dtype": "bfloat16"}, None),
    ],
)
def test_what_is_rounded_already_is_told_of_if_it_is_rounded_again(format, kind, options, note, source, tmp_path):
    plan = encoding.StoragePlan(format, "q8_0")
    export.Export("hf", MODEL, plan, tokenizer=texts.tokenizer()).write(tmp_path / "hf", toys.source(MODEL))
    found = checkpoint_open.open_checkpoint(tmp_path / "hf")
    assert found.quant == {"format": format, "embedding": "q8_0"}
    assert export.resolve(found, kind, quant=format).plan == plan  # the table's format is that of the source
    notes = [line for line in export.resolve(found, kind, **options).check() if not line.startswith("tokenizer ")]
    said = f"{tmp_path}/hf is rounded to --quant={format} --embedding=q8_0"
    assert [said in line and note in line for line in notes] == [True] * (note is not None)


def test_a_checkpoint_of_a_run_says_what_it_was_trained_for(tmp_path):
    quant = {"format": "q4_0", "embedding": "float16"}
    runs = saved.in_directory(tmp_path / "run" / "checkpoints", print)
    about = {"model": dataclasses.asdict(MODEL), "tokenizer": DIGEST, "quant": quant}
    runs.save(
        7, toys.params(MODEL), {"step": jnp.int32(7)}, cursor=saved.CURSOR, meta=saved.META, checkpoint_metadata=about
    )
    runs.finish()
    found = checkpoint_open.open_checkpoint(tmp_path / "run")
    assert found.quant == quant and found.tokenizer == DIGEST
    # `train` leaves the tokenizer there.
    (tmp_path / "run" / export.TOKENIZER).write_bytes(texts.tokenizer_model())
    for place in (tmp_path / "run", tmp_path / "run" / "checkpoints" / "7"):
        options = export.resolve(checkpoint_open.open_checkpoint(place), "gguf", quant="q4_0")
        assert options.plan == Q4_0 and options.tokenizer.digest == DIGEST
        assert options.check() == (f"tokenizer {tmp_path}/run/tokenizer.model",)
    orbax.save(tmp_path / "plain", MODEL, toys.params(MODEL))
    assert checkpoint_open.open_checkpoint(tmp_path / "plain").quant == {}


def test_a_tokenizer_is_found_in_the_source_if_it_fits(source):
    file = source.path / export.TOKENIZER
    tokenizer, notes = export.find_tokenizer(None, source)
    assert tokenizer.digest == DIGEST and notes == (f"tokenizer {file}",)
    assert export.resolve(source, "hf").check() == notes and export.resolve(source, "orbax").check() == ()
    assert export.find_tokenizer(None, dataclasses.replace(source, tokenizer="0" * 64)) == (None, ())
    small = dataclasses.replace(MODEL, vocab_size=600)
    (note,) = export.find_tokenizer(None, dataclasses.replace(source, model=small))[1]
    assert note == f"warning: {source.path} has 800 pieces, the table of the model 600 rows; it is left out"
    with pytest.raises(ValueError, match=r"has 800 pieces, .* 600 rows; name another with --tokenizer=FILE"):
        export.find_tokenizer(None, dataclasses.replace(source, model=small), is_needed=True)


def test_a_strangers_tokenizer_beside_a_directory_is_not_taken(source):
    beside = source.path.parent / export.TOKENIZER
    (source.path / export.TOKENIZER).rename(beside)
    (source.path / "tokenizer.json").unlink()
    assert export.find_tokenizer(None, source) == (None, ())
    tokenizer, notes = export.find_tokenizer(None, dataclasses.replace(source, tokenizer=DIGEST))
    assert tokenizer.digest == DIGEST and notes == (f"tokenizer {beside}",)
    assert export.find_tokenizer(None, dataclasses.replace(source, tokenizer="0" * 64)) == (None, ())


def test_the_tokenizer_of_a_gguf_file_is_in_it(tmp_path):
    file = tmp_path / "in" / "a.gguf"
    file.parent.mkdir()
    gguf_file.write(file, MODEL, toys.params(MODEL), Q4_0, texts.tokenizer())
    source = checkpoint_open.open_checkpoint(file)
    (file.parent / export.TOKENIZER).write_bytes(b"of another model")
    tokenizer, notes = export.find_tokenizer(None, source)
    assert pieces.listed(tokenizer) == pieces.listed(texts.tokenizer()) and notes == (f"tokenizer {file}",)
    export.resolve(source, "hf").write(tmp_path / "hf", source.source)
    text = "<start_of_turn>user\nWho are you?<end_of_turn>\n"
    for kind in ("hf", "in/a.gguf"):
        tokenizer, _ = export.find_tokenizer(None, checkpoint_open.open_checkpoint(tmp_path / kind))
        assert tokenizer.encode(text, parse_control=True) == texts.tokenizer().encode(text, parse_control=True)


def test_the_original_of_the_tokenizer_in_a_gguf_file_is_preferred(tmp_path):
    file = tmp_path / "a.gguf"
    gguf_file.write(file, MODEL, toys.params(MODEL), Q4_0, texts.tokenizer())
    beside, source = tmp_path / export.TOKENIZER, checkpoint_open.open_checkpoint(file)
    beside.write_bytes(texts.tokenizer_model())
    tokenizer, notes = export.find_tokenizer(None, source)
    assert tokenizer.digest == DIGEST and notes == (f"tokenizer {beside}",)
    renamed = pieces.VocabularyPiece("<think>", 0.0, pieces.PieceKind.USER_DEFINED)
    other_kind = pieces.VocabularyPiece(tokenizer.piece(600), 0.0, pieces.PieceKind.USER_DEFINED)
    for changes in ({7: renamed}, {600: other_kind}, {texts.TOKENIZER_SIZE: renamed}):
        beside.write_bytes(pieces.replaced(texts.tokenizer_model(), changes))
        tokenizer, notes = export.find_tokenizer(None, source)
        assert pieces.listed(tokenizer) == pieces.listed(texts.tokenizer()) and notes == (f"tokenizer {file}",)


def test_the_tokenizer_beside_a_gguf_file_is_read_if_the_one_in_it_cannot_be(tmp_path):
    file = tmp_path / "in" / "a.gguf"
    file.parent.mkdir()
    gguf_file.write(file, MODEL, toys.params(MODEL), Q4_0, texts.tokenizer())
    file.write_bytes(file.read_bytes().replace(b"tokenizer.ggml.model", b"tokenizer.ggml.mode_"))
    source = checkpoint_open.open_checkpoint(file)
    (tmp_path / export.TOKENIZER).write_bytes(texts.tokenizer_model())
    problem = f"{file} holds no tokenizer that this program reads: tokenizer.ggml.model is None; it must be llama, "
    tokenizer, (note,) = export.find_tokenizer(None, source)
    assert tokenizer is None and note.startswith(f"warning: {problem}") and note.endswith("; it is left out")
    with pytest.raises(ValueError, match=r"tokenizer\.ggml\.model is None; .*; name another with --tokenizer=FILE"):
        export.resolve(source, "gguf")
    (tmp_path / export.TOKENIZER).rename(file.parent / export.TOKENIZER)
    tokenizer, notes = export.find_tokenizer(None, source, is_needed=True)
    assert tokenizer.digest == DIGEST and notes[1:] == (f"tokenizer {file.parent}/tokenizer.model",)


@pytest.mark.parametrize("name", ["a\nb", "\x1b[2J", "\udcff"])
def test_a_name_that_a_modelfile_cannot_hold_is_refused(name, source, tmp_path):
    options = export.Export("gguf", MODEL, Q4_0, tokenizer=texts.tokenizer())
    with pytest.raises(ValueError, match=r"--target is '.*\.gguf'; the name .* ends in \.gguf and is printable"):
        options.check_new(tmp_path / f"{name}.gguf", source.shapes)


def test_a_tokenizer_that_is_named_is_taken_or_refused(source, tmp_path):
    (source.path / export.TOKENIZER).rename(tmp_path / "my.model")
    (source.path / "tokenizer.json").unlink()
    named = str(tmp_path / "my.model")
    tokenizer, notes = export.find_tokenizer(named, source)
    assert tokenizer.digest == DIGEST and notes == (f"tokenizer {named}",)
    with pytest.raises(ValueError, match=r"the source has no tokenizer\.model in it or beside it, .* --tokenizer=FILE"):
        export.resolve(source, "gguf").check()
    with pytest.raises(ValueError, match=rf"my\.model is tokenizer {DIGEST[:12]}; .*/hf was trained with 000000000000"):
        export.find_tokenizer(named, dataclasses.replace(source, tokenizer="0" * 64))
    with pytest.raises(ValueError, match=r"none\.model does not exist; a tokenizer is a SentencePiece model file"):
        export.find_tokenizer(str(tmp_path / "none.model"), source)


def test_a_tokenizer_that_was_not_fetched_is_left_out_where_it_is_not_needed(source):
    file = source.path / export.TOKENIZER
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4689074\n")
    options = export.resolve(source, "hf")
    assert options.tokenizer is None
    assert options.check() == (f"warning: {file} is not a SentencePiece model; it is left out",)
    problem = r"tokenizer\.model is not a SentencePiece model; name another with --tokenizer=FILE"
    with pytest.raises(ValueError, match=problem):
        export.resolve(source, "gguf")
    with pytest.raises(ValueError, match=r"tokenizer\.model is not a SentencePiece model"):
        export.resolve(source, "hf", tokenizer=str(file))


def test_a_gguf_file_has_a_modelfile_beside_it(source, tmp_path):
    options = export.resolve(source, "gguf", quant="q4_0")
    options.check_new(tmp_path / "toy.gguf", source.shapes)
    options.write(tmp_path / "toy.gguf", toys.source(MODEL))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "toy.Modelfile", "toy.gguf"]
    assert (tmp_path / "toy.Modelfile").read_text() == (
        f'FROM ./toy.gguf\nTEMPLATE """{templates.GO}"""\nPARAMETER stop "<end_of_turn>"\n'
        "PARAMETER temperature 1.0\nPARAMETER top_k 64\nPARAMETER top_p 0.95\n"
    )
    with pytest.raises(ValueError, match=r"toy\.Modelfile exists; choose another --target"):
        options.check_new(tmp_path / "toy.gguf", source.shapes)
    (tmp_path / "toy.Modelfile").unlink()
    with pytest.raises(ValueError, match=r"toy\.gguf exists; choose another --target"):
        options.check_new(tmp_path / "toy.gguf", source.shapes)
    with pytest.raises(ValueError, match=r"--target is .*/toy; the name of a GGUF file ends in \.gguf"):
        options.check_new(tmp_path / "toy", source.shapes)


def test_what_stops_between_the_two_leaves_the_gguf_file_whole(source, tmp_path, monkeypatch):
    def rename(path, target):
        if target.suffix == ".Modelfile":
            raise KeyboardInterrupt
        os.rename(path, target)

    monkeypatch.setattr(pathlib.Path, "rename", rename)
    with pytest.raises(KeyboardInterrupt):
        export.resolve(source, "gguf").write(tmp_path / "toy.gguf", toys.source(MODEL))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "toy.gguf"]
    assert checkpoint_open.open_checkpoint(tmp_path / "toy.gguf").model == MODEL


def test_a_gguf_file_goes_by_the_name_it_will_have(source, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    export.resolve(source, "gguf").write(tmp_path / "toy.gguf", toys.source(MODEL))
    metadata, _ = gguf_header.read(tmp_path / "toy.gguf")
    assert metadata["general.name"] == "toy"
    monkeypatch.setattr(tensor_file.TensorFile, "write", full)
    with pytest.raises(OSError, match=rf"{tmp_path}/other\.gguf cannot be written: No space left on device$"):
        export.resolve(source, "gguf").write(tmp_path / "other.gguf", toys.source(MODEL))


def test_a_tokenizer_without_turns_has_a_bare_template():
    tokenizer = texts.tokenizer()
    tokenizer = type(tokenizer)(tokenizer.model.replace(b"<start_of_turn>", b"<start-of-turn>"))
    content = modelfile.content(pathlib.Path("a.gguf"), tokenizer)
    assert 'TEMPLATE """{{ .Prompt }}"""\nPARAMETER temperature' in content


def test_the_context_length_of_the_source_is_carried_into_every_kind(tmp_path):
    model = dataclasses.replace(MODEL, context_length=8192)
    for number, kind in enumerate(("hf", "orbax", "hf", "gguf")):
        file = tmp_path / f"{number}.{kind}"
        plan = Q4_0 if kind == "gguf" else None
        export.Export(kind, model, plan, tokenizer=texts.tokenizer()).write(file, toys.source(model))
        if kind == "gguf":
            metadata, _ = gguf_header.read(file)
            assert metadata["gemma3.context_length"] == 8192
        else:
            model = checkpoint_open.open_checkpoint(file).model
            assert model.context_length == 8192


@pytest.mark.parametrize("kind", ["gguf", "hf"])
@pytest.mark.parametrize("error", [OSError("no"), KeyboardInterrupt()])
def test_what_stops_half_way_leaves_nothing(kind, error, source, tmp_path):
    def progress(num_bytes):
        done.append(num_bytes)
        if len(done) == 2 - (kind == "hf"):
            raise error

    done = []
    with pytest.raises(type(error)):
        export.resolve(source, kind, quant="q4_0").write(tmp_path / "out.gguf", toys.source(MODEL), progress)
    assert done and [path.name for path in tmp_path.iterdir()] == ["in"]


def test_progress_is_told_in_bytes_of_what_is_written(source, tmp_path):
    for kind in ("gguf", "hf"):
        done, options = [], export.resolve(source, kind, quant="q4_0")
        options.write(tmp_path / f"out.{kind}", toys.source(MODEL), done.append)
        assert sum(done) == options.num_bytes(source.shapes)
    assert sum(done) == packed.num_bytes(MODEL, Q4_0) + sum(x.nbytes for x in toys.hf_weights(MODEL).values())


def test_a_gguf_file_has_a_fingerprint_wherever_it_lies(source, tmp_path):
    def fingerprint(name):
        gguf_file.write(tmp_path / name, MODEL, params, Q4_0, texts.tokenizer(), target=tmp_path / "toy.gguf")
        return checkpoint_open.open_checkpoint(tmp_path / name).fingerprint()

    params = toys.params(MODEL)
    one, other = map(fingerprint, ("a.gguf", "b.gguf"))
    params["final_norm"]["scale"] += np.float32(1)
    assert one == other != fingerprint("c.gguf")


def test_a_tokenizer_json_that_was_not_fetched_is_left_out_beside_a_model(source, tmp_path):
    file = source.path / "tokenizer.json"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 33384568\n")
    problem = (
        f"warning: {file} is the pointer of Git LFS to a file, not the file; fetch it: git lfs pull; it is left out"
    )
    for kind in ("gguf", "hf"):
        options = export.resolve(source, kind)
        assert options.check() == (problem, f"tokenizer {source.path}/tokenizer.model")
        assert options.tokenizer.digest == DIGEST
    options.write(tmp_path / "out", toys.source(MODEL))
    assert (tmp_path / "out" / "tokenizer.json").read_text().startswith("{")
    (source.path / export.TOKENIZER).unlink()
    with pytest.raises(ValueError, match=r"tokenizer\.json is the pointer of Git LFS .*; name another with --tok"):
        export.resolve(source, "gguf")
    options = export.resolve(source, "hf")
    assert options.tokenizer is None and options.check()[0] == problem
