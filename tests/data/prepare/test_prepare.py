"""Raw text -> a data set: what is in it, that it is always the same, and that nothing is lost when it is stopped."""

import collections
import contextlib
import dataclasses
import hashlib
import io
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import fsspec
import numpy as np
import pytest
import sentencepiece

from gemma3_jax.data import dataset, shards
from gemma3_jax.data import settings as data_settings
from gemma3_jax.data.prepare import jobs, output, pipeline, settings, source_kinds
from gemma3_jax.tokenizer import chat
from tests import texts


def files(directory: pathlib.Path) -> dict[str, str]:
    """The digest of every file there is."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def rows_of(data: dataset.Dataset, seq_len: int = 64):
    for part in data.manifest["parts"].values():
        for file in part["files"][dataset.rows_kind(seq_len)]:
            yield from map(shards.PackedRow.from_bytes, texts.read_all(data.path / file["path"], file["records"]))


def documents_of(data: dataset.Dataset):
    for part in data.manifest["parts"].values():
        for file in part["files"]["documents"]:
            yield from map(
                shards.TokenizedDocument.from_bytes, texts.read_all(data.path / file["path"], file["records"])
            )


def one_source(tmp_path, rows, **changes):
    path = texts.write_lines(tmp_path / "in.jsonl", rows)
    return {"web": settings.SourceConfig(paths=(path,), **changes)}


def test_rows_and_documents_hold_every_token_of_every_text(tmp_path):
    config = texts.config(tmp_path, one_source(tmp_path, texts.library()), documents=True, seq_lens=(64, 1_000))
    texts.run(config, tmp_path / "out")
    data = dataset.open_dataset(tmp_path / "out")
    tokenizer = data.tokenizer()
    found = {document.record_id: document for document in documents_of(data)}
    in_order = [found[record_id] for record_id in sorted(found)]
    assert [document.tokens.tolist() for document in in_order] == [
        tokenizer.document(text).tolist() for text in texts.library()
    ]
    for seq_len in (64, 1_000):
        pieces = collections.defaultdict(dict)
        for row in rows_of(data, seq_len):
            assert len(row.tokens) == row.lengths.sum() <= seq_len
            ends = np.cumsum(row.lengths)
            for (record_id, start), end, length in zip(row.spans, ends, row.lengths, strict=True):
                pieces[record_id][start] = row.tokens[end - length : end]
        for record_id, document in found.items():
            first, *rest = (pieces[record_id][start] for start in sorted(pieces[record_id]))
            joined = np.concatenate([first, *(piece[1:] for piece in rest)])  # each repeats one token of context
            np.testing.assert_array_equal(joined, document.tokens)


def test_the_manifest_says_what_is_there(tmp_path):
    data = texts.toy_dataset(tmp_path, tokens_per_shard=20_000)
    manifest = data.manifest
    assert list(manifest["parts"]) == ["code/c", "text/a", "text/b"]
    assert {name: source["records"] for name, source in manifest["sources"].items()} == {"text": 40, "code": 8}
    assert manifest["tokenizer"]["digest"] == texts.tokenizer().digest == data.tokenizer().digest
    listed = {}
    for part in manifest["parts"].values():
        for file in part["files"]["rows-00064"]:
            path = data.path / file["path"]
            assert path.stat().st_size == file["bytes"]
            listed[file["path"]] = file["sha256"]
    assert len(manifest["parts"]["text/a"]["files"]["rows-00064"]) > 1
    there = files(data.path)
    assert there == listed | {name: there[name] for name in ("manifest.json", "report.json", "tokenizer.model")}
    part = manifest["parts"]["text/b"]
    assert part["documents"] == 16 and part["characters"] == sum(map(len, texts.library()[24:40]))
    assert part["rows"]["64"] == sum(file["records"] for file in part["files"]["rows-00064"])


@pytest.fixture(scope="module")
def messy(tmp_path_factory):
    """A corpus with something for every filter, and settings that switch all of them on."""
    directory = tmp_path_factory.mktemp("messy")
    library = list(texts.library()[:30])
    question = "how many parrots does it take to change one light bulb in a small dark room at night"
    rows = [
        *library,
        library[3],  # twice
        "\n".join(library[5].split("\n")[:-1]),  # hardly changed
        "tiny",
        f"{library[7][:500]} and then he asked {question} and left",
        f"{library[8][:400]} write to jane.doe@example.org",
        f"{library[9][:400]} darnit darnit",
    ]
    evaluation = texts.write_lines(directory / "quiz.jsonl", [question])
    (directory / "words").write_text("darnit\n")
    source = one_source(directory, [*rows, b"{broken"])
    return texts.config(
        directory,
        source,
        length=settings.LengthConfig(min_characters=10),
        safety=settings.SafetyConfig(word_list=str(directory / "words")),
        quality=settings.QualityConfig(score="heuristic", floor=0.9),
        personal_data=settings.PersonalDataConfig(),
        decontamination=settings.DecontaminationConfig(paths=(evaluation,)),
        duplicates=settings.DuplicatesConfig(),
        tokenizer=settings.TokenizerConfig(size=texts.TOKENIZER_SIZE, max_characters=200_000),
        tokens_per_shard=10_000,
    )


@pytest.fixture(scope="module")
def straight(messy, tmp_path_factory):
    output = tmp_path_factory.mktemp("straight") / "out"
    manifest, report = texts.run(messy, output)
    return output, manifest, report


def test_what_was_left_out_is_counted_with_examples(messy, straight):
    output, manifest, report = straight
    [path] = messy.sources["web"].paths
    dropped = {reason: found["count"] for reason, found in report["dropped"].items()}
    low = dropped.pop("low quality", 0)
    assert dropped == {"contaminated": 1, "duplicate": 1, "near duplicate": 1, "too short": 1, "unsafe": 1}
    assert report["records"] == 37 and report["kept"]["documents"] == 37 - 5 - 1 - low
    assert report["broken"]["count"] == 1 and report["broken"]["examples"][0].startswith(f"{path}, line 37: not JSON")
    assert report["changed"] == manifest["sources"]["web"]["changed"] >= 1
    examples = {reason: found["examples"][0] for reason, found in report["dropped"].items()}
    assert examples["duplicate"] == {"record": f"{path}, line 31", "detail": f"like {path}, line 4"}
    assert examples["near duplicate"] == {"record": f"{path}, line 32", "detail": f"like {path}, line 6"}
    assert examples["contaminated"]["detail"].endswith("quiz.jsonl, line 1")
    assert json.loads((output / "report.json").read_text()) == report
    assert json.loads((output / "manifest.json").read_text()) == manifest
    assert sum(manifest["dropped"]["text/en"].values()) == 5 + low


def test_masked_text_is_what_is_written(straight):
    output, _, _ = straight
    tokenizer = dataset.open_dataset(output).tokenizer()
    everything = "".join(tokenizer.decode(row.tokens) for row in rows_of(dataset.open_dataset(output)))
    assert "jane.doe" not in everything and "[EMAIL]" in everything


@pytest.mark.parametrize("num_processes", [0, 2])
def test_the_same_input_gives_the_same_bytes_on_any_number_of_processes(
    messy, straight, tmp_path, num_processes, monkeypatch
):
    texts.run(messy, tmp_path / "again", num_processes)
    assert files(tmp_path / "again") == files(straight[0])
    monkeypatch.setattr(source_kinds, "BYTES_PER_UNIT", 30_000)  # many units for the processes to share
    assert len(jobs.open_job(messy).units) > 5
    manifest, _ = texts.run(messy, tmp_path / "units", num_processes)
    assert manifest["digest"] == straight[1]["digest"]


def test_the_cut_into_units_does_not_show(messy, straight, tmp_path, monkeypatch):
    monkeypatch.setattr(source_kinds, "BYTES_PER_UNIT", 30_000)
    manifest, report = texts.run(messy, tmp_path / "again")
    assert manifest["parts"] == straight[1]["parts"] and manifest["digest"] == straight[1]["digest"]
    assert report["dropped"] == straight[2]["dropped"]


def test_other_settings_give_another_digest(messy, straight, tmp_path):
    less = dataclasses.replace(messy, length=settings.LengthConfig(min_characters=1))
    manifest, _ = texts.run(less, tmp_path / "less")
    assert manifest["digest"] != straight[1]["digest"]


def test_a_run_that_crashes_after_its_nth_write_goes_on_to_the_same_bytes(messy, straight, tmp_path, monkeypatch):
    """Run after run on one directory, each a write further than the one before."""
    monkeypatch.setattr(source_kinds, "BYTES_PER_UNIT", 60_000)
    texts.run(messy, tmp_path / "whole")
    output, num_runs = tmp_path / "out", 0
    left = 0

    def and_crash(write):
        def write_and_crash(self, target):
            nonlocal left
            write(self, target)
            left -= 1
            if left < 0:
                raise KeyboardInterrupt

        return write_and_crash

    for name in ("rename", "replace"):  # of a shard, and of every other file
        monkeypatch.setattr(pathlib.Path, name, and_crash(getattr(pathlib.Path, name)))
    while not (output / "manifest.json").exists():
        left = num_runs
        num_runs += 1
        try:
            texts.run(messy, output)
        except KeyboardInterrupt:
            if not (output / "manifest.json").exists():
                with pytest.raises(ValueError, match="out is not finished; run the same prepare command again"):
                    dataset.open_dataset(output)
    assert num_runs > 4
    there = {name: digest for name, digest in files(output).items() if not name.startswith(".work/")}
    assert there == files(tmp_path / "whole")


def command(tmp_path, *flags):
    config = tmp_path / "config.py"
    rows = [f"{text}\n# {number}" for number, text in enumerate(texts.library() * 4)]
    for number in range(24):
        texts.write(tmp_path / f"{number:02d}.txt", "\n".join(rows[8 * number : 8 * number + 8]).encode())
    config.write_text(
        "def get_config():\n"
        f"    return {{'sources': {{'files': {{'kind': 'text', 'paths': ({str(tmp_path)!r} + '/*.txt',)}}}},\n"
        "            'tokenizer': {'size': 800, 'max_characters': 300000}, 'tokens_per_shard': 30000,\n"
        "            'seq_lens': (64, 512)}\n"
    )
    return [sys.executable, "-m", "gemma3_jax", "prepare", f"--config={config}", "--processes=2", *flags]


@pytest.mark.slow
def test_killed_at_random_moments_its_workers_end_and_it_ends_the_same(tmp_path):
    started = time.monotonic()
    subprocess.run(command(tmp_path, f"--output={tmp_path}/straight"), check=True, capture_output=True)
    seconds = time.monotonic() - started
    draw, num_killed, num_outputs = random.Random(0), 0, 0
    while num_killed < 4:
        num_outputs += 1
        output = tmp_path / f"out{num_outputs}"
        while not (output / "manifest.json").exists():
            process = subprocess.Popen(
                command(tmp_path, f"--output={output}"), stderr=subprocess.PIPE, start_new_session=True
            )
            try:
                process.wait(draw.uniform(0.1, 1.0) * seconds)
                assert process.returncode == 0, process.stderr.read()
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL)  # the parent alone: its workers must end by themselves
                process.wait()
                num_killed += 1
            process.stderr.close()
            assert_group_ends(process.pid)
        shutil.rmtree(output / ".work", ignore_errors=True)  # killed as it cleaned up: the next call removes it
        assert files(output) == files(tmp_path / "straight")


def assert_group_ends(group: int, seconds: float = 60.0) -> None:
    """No process of a group is left after a moment: on a busy machine a worker may still be starting."""
    for _ in range(int(seconds / 0.05)):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    raise AssertionError("worker processes outlive their killed parent")


def test_ctrl_c_keeps_what_is_done_says_so_and_goes_on(tmp_path):
    output = tmp_path / "out"
    process = subprocess.Popen(
        command(tmp_path, f"--output={output}"), stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while not list(output.glob(".work/*.index")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert f"stopped by SIGINT; finished work stays in {output}; run the same command to resume" in err
    assert "Traceback" not in err
    assert_group_ends(process.pid)
    done = subprocess.run(command(tmp_path, f"--output={output}"), capture_output=True, text=True)
    assert done.returncode == 0 and (output / "manifest.json").exists(), done.stderr


def test_chats_become_rows_that_teach_the_models_turns(tmp_path):
    turns = [{"role": "user", "content": "hi"}, {"role": "model", "content": "hello"}]
    bad = [{"role": "model", "content": "no"}]
    rows = [{"messages": turns}, {"messages": bad}]
    config = texts.config(tmp_path, one_source(tmp_path, rows, turns_field="messages"), documents=True)
    _, report = texts.run(config, tmp_path / "out")
    [document] = documents_of(dataset.open_dataset(tmp_path / "out"))
    ids, learned = chat.encode(texts.tokenizer(), turns)
    np.testing.assert_array_equal(document.tokens, ids)
    np.testing.assert_array_equal(document.loss_mask, learned)
    [row] = rows_of(dataset.open_dataset(tmp_path / "out"))
    np.testing.assert_array_equal(row.loss_mask, learned)
    assert "line 2: turn 0 is of role 'model' where 'user' is due" in report["broken"]["examples"][0]


def test_a_tokenizer_is_trained_on_what_passed_the_filters(tmp_path):
    secret = "zyzzyvazyzzyva"
    rows = [*texts.library()[:16], *[f"{secret} darnit " * 50] * 20]
    (tmp_path / "words").write_text("darnit")
    config = texts.config(
        tmp_path,
        one_source(tmp_path, rows),
        safety=settings.SafetyConfig(word_list=str(tmp_path / "words")),
        tokenizer=settings.TokenizerConfig(size=texts.TOKENIZER_SIZE),
    )
    texts.run(config, tmp_path / "out")
    trained = dataset.open_dataset(tmp_path / "out").tokenizer()
    assert trained.size == texts.TOKENIZER_SIZE and len(trained.encode(secret)) > 6


def test_the_mixture_is_kept_with_the_data(tmp_path):
    mixture = {
        "text": data_settings.Bucket(weight=3.0, languages=("a",), max_epochs=2.0),
        "code": data_settings.Bucket(),
    }
    data = texts.toy_dataset(tmp_path, mixture=mixture)
    assert data.mixture() == mixture


# --- errors ---


def test_an_output_that_exists_is_left_alone(tmp_path):
    config = texts.config(tmp_path, one_source(tmp_path, ["some text"]))
    output = tmp_path / "out"
    texts.run(config, output)
    before = files(output)
    with pytest.raises(ValueError, match="out exists and is complete; choose another --output"):
        texts.run(config, output)
    assert files(output) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("dear")
    with pytest.raises(ValueError, match="mine exists and is not an unfinished data set"):
        texts.run(config, tmp_path / "mine")
    assert files(tmp_path / "mine").keys() == {"thesis.txt"}


def begun(config, directory):
    """A data set that was begun and not finished."""
    with contextlib.suppress(KeyboardInterrupt), output.Output(str(directory)).resume(jobs.open_job(config).made_of):
        raise KeyboardInterrupt


def test_a_data_set_begun_otherwise_is_not_gone_on_with(tmp_path):
    config = texts.config(tmp_path, one_source(tmp_path, ["some text!"]))
    begun(config, tmp_path / "out")
    with pytest.raises(
        ValueError,
        match=r"out was begun with another config.seed \(0, now 1\); resume with the old settings, choose",
    ):
        texts.run(dataclasses.replace(config, seed=1), tmp_path / "out")
    for other in ("other text", "another text, longer"):  # of the same length, too
        texts.write_lines(tmp_path / "in.jsonl", [other])
        with pytest.raises(ValueError, match="out was begun with another set of source files"):
            texts.run(config, tmp_path / "out")


def test_two_processes_do_not_write_the_same_data_set(tmp_path):
    config = texts.config(tmp_path, one_source(tmp_path, ["some text"]))
    begun(config, tmp_path / "out")
    with output.Output(str(tmp_path / "out")).directory.locked():
        with pytest.raises(ValueError, match="out is being written by another process"):
            texts.run(config, tmp_path / "out")
    texts.run(config, tmp_path / "out")


@pytest.mark.parametrize("num_processes", [0, 2])
def test_too_many_broken_records_stop_it_and_name_the_first(tmp_path, num_processes):
    source = one_source(tmp_path, ["good", b"{", b"{", b"{"], max_broken=2)
    with pytest.raises(ValueError, match=r"source web has more than 2 records .* the first at .*line 2: not JSON"):
        texts.run(texts.config(tmp_path, source), tmp_path / "out", num_processes)
    source = one_source(tmp_path, ["good", b"{", b"{"], max_broken=2)
    _, report = texts.run(texts.config(tmp_path, source), tmp_path / "out2")
    assert report["broken"]["count"] == 2


def test_broken_records_are_counted_over_all_units_of_a_source(tmp_path, monkeypatch):
    monkeypatch.setattr(source_kinds, "BYTES_PER_UNIT", 4)
    source = one_source(tmp_path, ["good", b"{", "good", b"{"], max_broken=1)
    with pytest.raises(ValueError, match="source web has more than 1 records that cannot be read"):
        texts.run(texts.config(tmp_path, source), tmp_path / "out")
    more = one_source(tmp_path, ["good", b"{", "good", b"{"], max_broken=2)
    _, report = texts.run(texts.config(tmp_path, more), tmp_path / "out")  # it goes on where it stopped
    assert report["broken"]["count"] == 2


def test_an_empty_source_and_one_of_which_nothing_is_left_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"source web is empty: there is nothing in .*in.jsonl"):
        texts.run(texts.config(tmp_path, one_source(tmp_path, [])), tmp_path / "out")
    with pytest.raises(ValueError, match=r"source web is empty: its files hold no record"):
        texts.run(texts.config(tmp_path, one_source(tmp_path, [b"", b""])), tmp_path / "out")
    config = texts.config(tmp_path, one_source(tmp_path, ["a", "b"]), length=settings.LengthConfig(min_characters=5))
    with pytest.raises(ValueError, match="nothing is left of 2 records: too short 2"):
        texts.run(config, tmp_path / "out2")


def test_a_tokenizer_that_is_not_there_is_refused_before_anything_is_read(tmp_path):
    config = texts.config(
        tmp_path, one_source(tmp_path, ["a"]), tokenizer=settings.TokenizerConfig(path=str(tmp_path / "none.model"))
    )
    with pytest.raises(ValueError, match="none.model does not exist; a tokenizer is a SentencePiece model"):
        texts.run(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_tokenizer_of_a_directory_has_its_added_tokens(tmp_path):
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "tokenizer.model").write_bytes(texts.tokenizer_model())
    (tmp_path / "hf" / "added_tokens.json").write_text(json.dumps({"<new>": texts.TOKENIZER_SIZE}))
    named = settings.TokenizerConfig(path=str(tmp_path / "hf"))
    texts.run(texts.config(tmp_path, one_source(tmp_path, ["say <new> " * 9]), tokenizer=named), tmp_path / "out")
    tokenizer = dataset.open_dataset(tmp_path / "out").tokenizer()
    assert tokenizer.encode("<new>") == [texts.TOKENIZER_SIZE]


def test_lists_that_changed_meanwhile_are_noticed(tmp_path):
    (tmp_path / "words").write_text("darnit")
    quiz = texts.write_lines(tmp_path / "quiz.jsonl", ["one two three four five six seven eight"])
    config = texts.config(
        tmp_path,
        one_source(tmp_path, ["some text"]),
        safety=settings.SafetyConfig(word_list=str(tmp_path / "words")),
        decontamination=settings.DecontaminationConfig(paths=(quiz,)),
    )
    begun(config, tmp_path / "out")
    (tmp_path / "words").write_text("dammit")
    texts.write_lines(tmp_path / "quiz.jsonl", ["one two three four five six seven nine"])
    (tmp_path / "toy.model").write_bytes(texts.tokenizer_model() + b"\x12\x00")
    with pytest.raises(ValueError, match="begun with another evaluation set, word list, tokenizer; resume with"):
        texts.run(config, tmp_path / "out")


def test_what_fails_before_a_unit_is_done_leaves_nothing(tmp_path):
    config = texts.config(tmp_path, one_source(tmp_path, [b"{", b"{"], max_broken=1))
    with pytest.raises(ValueError, match="more than 1 records"):
        texts.run(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    trained = texts.config(tmp_path, one_source(tmp_path, ["abc"]), tokenizer=settings.TokenizerConfig(size=5_000))
    with pytest.raises(ValueError, match="no tokenizer of 5000 pieces can be trained"):
        texts.run(trained, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="a tokenizer of 100 pieces has no room"):
        texts.run(dataclasses.replace(trained, tokenizer=settings.TokenizerConfig(size=100)), tmp_path / "out")


def test_a_run_killed_between_its_last_two_steps_is_done_when_called_again(tmp_path):
    config = texts.config(tmp_path, one_source(tmp_path, ["some text"]))
    done = texts.run(config, tmp_path / "out")
    there = files(tmp_path / "out")
    (tmp_path / "out" / ".work").mkdir()
    (tmp_path / "out" / ".work" / "begun-00000").write_text(json.dumps(jobs.open_job(config).made_of))
    assert texts.run(config, tmp_path / "out") == done and files(tmp_path / "out") == there


def test_what_was_there_before_is_not_taken_away(tmp_path):
    """An empty directory, and a link to one, are the user's own."""
    (tmp_path / "scratch").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "scratch")
    broken = texts.config(tmp_path, one_source(tmp_path, [b"{"], max_broken=0))
    with pytest.raises(ValueError, match="more than 0 records"):
        texts.run(broken, tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and not list((tmp_path / "scratch").iterdir())


def test_a_data_set_killed_while_it_was_cleaned_up_is_complete(tmp_path):
    config = texts.config(tmp_path, one_source(tmp_path, ["some text"]))
    texts.run(config, tmp_path / "out")
    (tmp_path / "out" / ".work").mkdir()
    (tmp_path / "out" / ".work" / "unit-000000.index").write_bytes(b"")
    with pytest.raises(ValueError, match="out exists and is complete"):
        texts.run(dataclasses.replace(config, seed=5), tmp_path / "out")
    assert not (tmp_path / "out" / ".work").exists()


def test_no_unfiltered_text_teaches_a_tokenizer(tmp_path):
    rows = [{"text": text, "q": 1.0} for text in texts.library()[:16]] + [{"text": "zyzzyvazyzzyva " * 400}]
    config = texts.config(
        tmp_path,
        one_source(tmp_path, rows),
        quality=settings.QualityConfig(score="field:q"),
        tokenizer=settings.TokenizerConfig(size=texts.TOKENIZER_SIZE),
    )
    _, report = texts.run(config, tmp_path / "out")
    assert len(dataset.open_dataset(tmp_path / "out").tokenizer().encode("zyzzyvazyzzyva")) > 6
    assert report["broken"]["count"] == 1 and "field:q gives None" in report["broken"]["examples"][0]


def test_a_wrong_field_is_told_before_a_tokenizer_is_trained(tmp_path):
    trained = {"tokenizer": settings.TokenizerConfig(size=texts.TOKENIZER_SIZE)}
    source = one_source(tmp_path, ["a", "b", "c"], fields=("nope",), max_broken=1)
    with pytest.raises(ValueError, match="more than 1 records .* line 1: field nope is absent"):
        texts.run(texts.config(tmp_path, source, **trained), tmp_path / "out")
    source = one_source(tmp_path, ["a", "b", "c"], fields=("nope",))
    with pytest.raises(ValueError, match="none of the records of web is left to train a tokenizer on"):
        texts.run(texts.config(tmp_path, source, **trained), tmp_path / "out")


def test_a_bucket_may_be_called_like_what_is_left_of_a_killed_run(tmp_path, monkeypatch):
    source = one_source(tmp_path, texts.library()[:6], bucket="partial-samples")
    config = texts.config(tmp_path, source)
    texts.run(config, tmp_path / "whole")

    def stop(work):
        raise KeyboardInterrupt  # every shard is written

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pipeline.manifest, "summarize", stop)
        texts.run(config, tmp_path / "out")
    (tmp_path / "out" / ".work" / ".x.partial-1").write_bytes(b"")
    (tmp_path / "out" / "rows-00064" / ".x.partial-abc").mkdir()
    monkeypatch.setattr(pipeline.assembly, "write_shard", None)  # what is written is not written again
    texts.run(config, tmp_path / "out")
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert not list((tmp_path / "out").rglob(".*.partial-*"))


def test_a_run_killed_as_it_began_can_be_called_again(tmp_path):
    config = texts.config(tmp_path, one_source(tmp_path, ["some text"]))
    (tmp_path / "out" / ".work").mkdir(parents=True)
    texts.run(config, tmp_path / "out")


def test_a_worker_that_is_killed_is_one_line(tmp_path):
    config = texts.config(
        tmp_path,
        one_source(tmp_path, ["some text"]),
        quality=settings.QualityConfig(score="tests.data.prepare.test_prepare:kill_me"),
    )
    with pytest.raises(
        ValueError, match="a worker process was killed, most often because memory ran out; run the same command"
    ):
        texts.run(config, tmp_path / "out", 1)


def kill_me(record):
    os.kill(os.getpid(), signal.SIGKILL)


def test_copies_are_not_compared_with_each_other(tmp_path):
    config = texts.config(
        tmp_path, one_source(tmp_path, [texts.library()[0]] * 1_000), duplicates=settings.DuplicatesConfig(exact=False)
    )
    _, report = texts.run(config, tmp_path / "out")
    assert report["kept"]["documents"] == 1 and report["dropped"]["duplicate"]["count"] == 999


def test_a_tokenizer_that_cannot_make_the_records_is_refused(tmp_path):
    rows = [{"messages": [{"role": "user", "content": "hi"}, {"role": "model", "content": "yes"}]}]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts.library()[:4]), model_writer=model, vocab_size=400, minloglevel=2,
        max_sentence_length=1 << 20,
    )  # fmt: skip
    (tmp_path / "plain.model").write_bytes(model.getvalue())
    config = texts.config(
        tmp_path,
        one_source(tmp_path, rows, turns_field="messages"),
        tokenizer=settings.TokenizerConfig(path=str(tmp_path / "plain.model")),
    )
    with pytest.raises(ValueError, match="the tokenizer has no .*<start_of_turn>.*; chats need all three"):
        texts.run(config, tmp_path / "out")


def test_one_process_writes_local_directories_only(tmp_path):
    config = texts.config(tmp_path, one_source(tmp_path, ["some text"]))
    with pytest.raises(ValueError, match="--output memory://out is not a local directory; only a --runner writes"):
        pipeline.run(config, "memory://out")
    assert not fsspec.filesystem("memory").exists("/out")
    with pytest.raises(ValueError, match="--output nosuch://out cannot be reached: Protocol not known"):
        pipeline.run(config, "nosuch://out")


def test_a_mixture_is_checked_against_the_languages_there_are_and_can_be_mended(tmp_path):
    with pytest.raises(
        ValueError, match=r"config\.mixture\.text\.languages names xx; this bucket of the data has: a, b"
    ):
        texts.toy_dataset(tmp_path, mixture={"text": data_settings.Bucket(languages=("xx",))})
    texts.toy_dataset(tmp_path, mixture={"text": data_settings.Bucket(languages=("a",))})  # goes on where it was
