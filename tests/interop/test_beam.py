"""The Beam pipeline writes what one process writes, byte for byte, on any runner and any parallelism."""

import dataclasses

import fsspec
import pytest

pytest.importorskip("apache_beam")

from gemma3_jax.cli import program  # noqa: E402
from gemma3_jax.data.prepare import beam, settings, source_kinds  # noqa: E402
from tests import texts  # noqa: E402
from tests.data.prepare.test_prepare import files, messy, straight  # noqa: E402, F401

pytestmark = pytest.mark.interop


def run(config, output, *options):
    return beam.run(config, str(output), "DirectRunner", options)


@pytest.mark.parametrize(
    "options",
    [(), ("--direct_num_workers=2", "--direct_running_mode=multi_threading")],
    ids=["one worker", "two threads"],
)
def test_the_data_set_is_that_of_one_process(messy, straight, tmp_path, options):  # noqa: F811
    manifest, report = run(messy, tmp_path / "out", *options)
    assert files(tmp_path / "out") == files(straight[0])
    assert (manifest, report) == straight[1:]


def test_many_units_and_empty_shards_make_no_difference(messy, straight, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(source_kinds, "BYTES_PER_UNIT", 30_000)
    many = dataclasses.replace(messy, tokens_per_shard=300)  # more shards than documents
    texts.run(many, tmp_path / "one")
    run(many, tmp_path / "beam")
    assert files(tmp_path / "beam") == files(tmp_path / "one")


def test_without_duplicate_removal_too(messy, tmp_path):  # noqa: F811
    plain = dataclasses.replace(messy, duplicates=settings.DuplicatesConfig(exact=False, near=False))
    texts.run(plain, tmp_path / "one")
    run(plain, tmp_path / "beam")
    assert files(tmp_path / "beam") == files(tmp_path / "one")


def test_a_remote_output_has_the_same_files(messy, straight):  # noqa: F811
    run(messy, "memory://beam-out")
    remote = fsspec.filesystem("memory")
    found = {path.removeprefix("/beam-out/"): remote.cat_file(path) for path in remote.find("/beam-out")}
    assert found == {name: (straight[0] / name).read_bytes() for name in files(straight[0])}


def test_what_a_worker_cannot_read_is_one_line_and_can_be_mended(tmp_path):
    path = texts.write_lines(tmp_path / "in.jsonl", ["good", b"{", b"{"])
    config = texts.config(tmp_path, {"web": settings.SourceConfig(paths=(path,), max_broken=1)})
    with pytest.raises(ValueError, match=r"source web has more than 1 records .* the first at .*line 2: not JSON"):
        run(config, tmp_path / "out")
    with pytest.raises(ValueError, match="source web has more than 1 records"):  # and again, not something else
        run(config, tmp_path / "out")
    assert not (tmp_path / "out" / ".work" / "begun-00000").exists() or list((tmp_path / "out").glob("rows*"))
    more = texts.config(tmp_path, {"web": settings.SourceConfig(paths=(path,), max_broken=2)})
    assert run(more, tmp_path / "out")[1]["broken"]["count"] == 2


def test_options_that_the_runner_does_not_take_are_one_line(messy, tmp_path, capsys):  # noqa: F811
    with pytest.raises(ValueError, match="--runner_options=--direct_num_workers=abc is not what DirectRunner takes"):
        run(messy, tmp_path / "out", "--direct_num_workers=abc")
    assert not (tmp_path / "out").exists()


def test_what_was_left_of_a_killed_run_is_cleaned_away(messy, straight, tmp_path):  # noqa: F811
    (tmp_path / "out" / ".work").mkdir(parents=True)
    (tmp_path / "out" / "rows-00064" / ".x.partial-abc").mkdir(parents=True)
    run(messy, tmp_path / "out")
    assert files(tmp_path / "out") == files(straight[0])


def test_the_command_line_names_a_runner(tmp_path, capsys):
    config = tmp_path / "config.py"
    path = texts.write_lines(tmp_path / "in.jsonl", texts.library()[:4])
    texts.config(tmp_path, {})
    config.write_text(
        f"def get_config():\n    return {{'sources': {{'web': {{'paths': ({path!r},)}}}}, 'seq_lens': (64,),\n"
        f"            'tokenizer': {{'path': {str(tmp_path / 'toy.model')!r}}}}}\n"
    )
    flags = [f"--config={config}", f"--output={tmp_path / 'out'}"]
    assert program.main(["prepare", *flags, "--runner=NoSuchRunner"]) == 1
    assert "--runner=NoSuchRunner cannot be had" in capsys.readouterr().err
    assert program.main(["prepare", *flags, "--runner=DirectRunner", "--runner_options=--direct_num_workers=1"]) == 0
    assert "sequences of 64" in capsys.readouterr().err
