"""`prepare --input`: a data set from files alone, with what was recognized in the report, and its errors."""

import json
import re

import numpy as np
import pytest

from gemma3_jax.cli import program
from gemma3_jax.data import dataset
from gemma3_jax.data.prepare import assembly
from gemma3_jax.tokenizer import chat, tokenizer_json
from tests import texts
from tests.checkpoint.test_hf import make_directory
from tests.data.prepare.test_prepare import rows_of
from tests.test_cli import fails, run

CHATS = [
    [
        {"role": "system", "content": "Answer in one word."},
        {"role": "user", "content": f"What is {number} + 1?"},
        {"role": "assistant", "content": f"It is {number + 1}."},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "Yes."},
    ]
    for number in range(8)
]


@pytest.fixture
def hf_directory(tmp_path):
    directory = make_directory(tmp_path / "checkpoint")
    (directory / "tokenizer.model").write_bytes(texts.tokenizer_model())
    return directory


def test_chats_and_texts_become_a_data_set_without_a_config(capsys, tmp_path, hf_directory):
    (tmp_path / "chats.json").write_text(json.dumps([{"messages": turns} for turns in CHATS]))
    texts.write_lines(tmp_path / "documents.jsonl", texts.library()[:3])
    flags = [f"--input={tmp_path}/chats.json", f"--input={tmp_path}/documents.jsonl", f"--tokenizer={hf_directory}"]
    flags += ["--config.seq_lens=(256,)", "--config.duplicates.near=False", "--processes=0"]
    status, out, err = run(capsys, "prepare", *flags, f"--output={tmp_path}/data", "--json")
    assert status == 0
    assert f"json_messages: a JSON array, chats in messages ({tmp_path}/chats.json)" in err
    assert f"jsonl_text: JSON lines, texts in text ({tmp_path}/documents.jsonl)" in err and "--tokenizer" not in err
    report = json.loads(out)
    formats = {name: (source["format"], source["records"]) for name, source in report["sources"].items()}
    assert formats == {
        "json_messages": ("a JSON array, chats in messages", 8),
        "jsonl_text": ("JSON lines, texts in text", 3),
    }
    data = dataset.open_dataset(tmp_path / "data")
    assert data.tokenizer().digest == texts.tokenizer().digest and set(data.manifest["parts"]) == {"chat/en", "text/en"}
    tokenizer, learned = texts.tokenizer(), []
    for row in rows_of(data, 256):  # no chat is cut
        if row.loss_mask is not None:
            learned += row.tokens[np.asarray(row.loss_mask, bool)].tolist()
    expected = [chat.encode(tokenizer, turns) for turns in CHATS]
    assert sorted(learned) == sorted(token for ids, mask in expected for token in ids[mask].tolist())


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.json", ""])
def test_the_tokenizer_is_a_file_or_a_directory(capsys, tmp_path, hf_directory, name):
    if name == "tokenizer.json":
        pytest.importorskip("tokenizers")
        (hf_directory / name).write_text(tokenizer_json.write(texts.tokenizer()))
    path = texts.write_lines(tmp_path / "a.jsonl", texts.library()[:2])
    flags = [f"--input={path}", f"--tokenizer={hf_directory / name}", "--config.seq_lens=(64,)", "--processes=0"]
    assert run(capsys, "prepare", *flags, f"--output={tmp_path}/data")[0] == 0
    assert dataset.open_dataset(tmp_path / "data").tokenizer().size == texts.TOKENIZER_SIZE


def test_a_tokenizer_that_is_not_named_is_trained_and_that_is_said(capsys, tmp_path):
    path = texts.write_lines(tmp_path / "a.jsonl", texts.library()[:16])
    flags = [f"--input={path}", "--config.tokenizer.size=800", "--config.seq_lens=(64,)", "--processes=0"]
    status, _, err = run(capsys, "prepare", *flags, f"--output={tmp_path}/data")
    assert status == 0 and "--tokenizer is not set: one of 800 pieces is trained on these files" in err


def test_texts_that_are_too_few_for_a_tokenizer_have_a_way_out(capsys, tmp_path):
    path = texts.write_lines(tmp_path / "a.jsonl", ["one text"])
    line = fails(capsys, "prepare", f"--input={path}", f"--output={tmp_path}/data", "--processes=0")
    assert re.search("they fill [0-9]+ at most; set config.tokenizer.size, or name a tokenizer with --tokenizer", line)


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (
            [],
            "prepare has neither --input nor --config; it takes one: --input=FILE for your text or chats, or --config",
        ),
        (["--input=a.jsonl", "--config=a.py"], "prepare has both --input and --config; it takes one"),
        (["--input=none.jsonl"], "none.jsonl cannot be read: it does not exist"),
        (["--input=here.jsonl", "--tokenizer="], "--tokenizer is empty; name a tokenizer.model, a tokenizer.json or"),
        (
            ["--input=here.jsonl", "--tokenizer=a.model", "--config.tokenizer.path=b.model"],
            "--tokenizer is a.model, and config.tokenizer.path is b.model; set one",
        ),
        (["--input=here.jsonl", "--tokenizer=none.model"], "none.model does not exist; a tokenizer is a SentencePiece"),
        (
            ["--input=here.jsonl", "--config.sources.web.fraction=1"],
            "there is no config.sources.web; did you mean config.sources.jsonl_text.fraction?",
        ),
        (
            ["--input=other.jsonl"],
            "other.jsonl, line 1 has 'prompt', 'completion'; a record has its text in 'text', or",
        ),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(capsys, tmp_path, monkeypatch, flags, problem):
    monkeypatch.chdir(tmp_path)
    texts.write_lines(tmp_path / "here.jsonl", ["one"])
    texts.write_lines(tmp_path / "other.jsonl", [{"prompt": "a", "completion": "b"}])
    assert problem in fails(capsys, "prepare", *flags, "--output=data")
    assert not (tmp_path / "data").exists()


def test_a_stopped_one_resumes_and_refuses_a_changed_file(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.model").write_bytes(texts.tokenizer_model())
    texts.write_lines(tmp_path / "a.jsonl", texts.library()[:3])
    flags = ["--input=a.jsonl", "--tokenizer=toy.model", "--config.seq_lens=(64,)", "--processes=0"]
    for output in ("same", "other"):
        with monkeypatch.context() as patch:
            patch.setattr(assembly, "write_shard", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                program.main(["prepare", *flags, f"--output={output}"])
    assert run(capsys, "prepare", *flags, "--output=same")[0] == 0
    texts.write_lines(tmp_path / "a.jsonl", [{"messages": CHATS[0]}])
    assert "config.sources" in fails(capsys, "prepare", *flags, "--output=other")
