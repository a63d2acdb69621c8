"""`generate` as it is used: a run with its tokenizer, a directory without one, at a prompt, with tools."""

import argparse
import dataclasses
import io
import json
import signal

import jax
import pytest

from gemma3_jax.checkpoint import orbax
from gemma3_jax.cli import chat, program, terminal
from gemma3_jax.inference import sampler
from tests import texts, toys
from tests.checkpoint import test_hf

MODEL = dataclasses.replace(toys.TOY, vocab_size=texts.TOKENIZER_SIZE, num_layers=2, num_local_per_global=1)
SHORT = "--max_new_tokens=6"
TOOLS = [
    {
        "name": "add",
        "description": "The sum.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}},
            "required": ["a"],
            "additionalProperties": False,
        },
    }
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """One of ours, with its tokenizer inside."""
    return save(tmp_path_factory.mktemp("ours") / "orbax")


def save(path):
    orbax.save(path, MODEL, toys.params(MODEL))
    (path / "tokenizer.model").write_bytes(texts.tokenizer_model())
    return path


@pytest.fixture
def generate(capsys, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)

    def run(*flags, status=0):
        assert program.main(["generate", *map(str, flags)]) == status, capsys.readouterr().err
        return capsys.readouterr()

    return run


def fails(generate, *flags) -> str:
    output = generate(*flags, status=1)
    assert not output.out
    (line,) = [line for line in output.err.splitlines() if "error" in line]
    return line


def test_a_text_is_shown_and_the_same_seed_gives_it_again(generate, checkpoint):
    flags = (f"--checkpoint={checkpoint}", "--prompt=import os", SHORT, "--seed=3")
    shown = generate(*flags).out
    assert terminal.on_stop.note == "the text ends here"
    result = json.loads(generate(*flags, "--json").out)
    assert shown == result["text"] + "\n" and len(result["ids"]) <= 6
    assert result["text"] != json.loads(generate(*flags[:-1], "--seed=4", "--json").out)["text"]


def test_several_prompts_have_answers_each(generate, checkpoint):
    whole = ("--temperature=0", "--ignore_eos")  # what a toy says first depends on the text its tokenizer learned from
    prompts = ("--prompt=import os", "--prompt=class A:", f"--checkpoint={checkpoint}", SHORT, *whole)
    answers = json.loads(generate(*prompts, "--json").out)["answers"]
    assert [len(answer["ids"]) for answer in answers] == [6, 6]
    assert generate(*prompts).out == "\n---\n".join(answer["text"] for answer in answers) + "\n"


def test_ids_need_no_tokenizer(generate, tmp_path):
    test_hf.make_directory(tmp_path / "hf")
    output = generate(f"--checkpoint={tmp_path / 'hf'}", "--prompt_ids=2,9,17", SHORT, "--temperature=0", "--json")
    result = json.loads(output.out)
    assert len(result["ids"]) == 6 and result["text"] is None and result["ended_by"] == "length"
    assert "nothing but --max_new_tokens ends the text" in output.err
    output = generate(f"--checkpoint={tmp_path / 'hf'}", "--prompt_ids=2,9,17", SHORT, "--temperature=0")
    assert output.out == ",".join(map(str, result["ids"])) + "\n"
    assert "no tokenizer; name one with --tokenizer=FILE" in fails(
        generate, f"--checkpoint={tmp_path / 'hf'}", "--prompt=x"
    )


def test_a_talk_goes_on_until_an_empty_line(generate, checkpoint, monkeypatch):
    encoded = []
    encode = sampler.Sampler.encode_turns
    monkeypatch.setattr(
        sampler.Sampler, "encode_turns", lambda gemma, turns: encoded.append(turns) or encode(gemma, turns)
    )
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\nhello\n\nnot asked\n"))
    flags = (f"--checkpoint={checkpoint}", "--chat", SHORT, "--ignore_eos")
    output = generate(*flags)
    assert "type your turn on one line" in output.err
    _, _, turns = encoded  # the first was to check that the model has turns
    assert [turn["content"] for turn in turns[::2]] == ["hello", "hello"] and len(turns) == 4
    one = json.loads(generate(*flags, "--prompt=hello", "--json").out)
    assert output.out == f"{turns[1]['content']}\n{turns[3]['content']}\n" and turns[1]["content"] == one["text"]
    assert one["turns"] == [{"role": "user", "content": "hello"}, {"role": "model", "content": one["text"]}]


def test_ctrl_c_ends_an_answer_and_a_second_one_the_program(generate, checkpoint, monkeypatch):
    shown, encode = terminal.show, sampler.Sampler.encode_turns
    pressed, turns = [], []

    def press_at_first(*texts, **options):
        shown(*texts, **options)
        if not pressed:
            pressed.append(texts)
            signal.raise_signal(signal.SIGINT)

    def note_turns(gemma, given):
        turns[:] = given
        return encode(gemma, given)

    monkeypatch.setattr(terminal, "show", press_at_first)
    monkeypatch.setattr(sampler.Sampler, "encode_turns", note_turns)
    answers = {}
    for name in ("cut", "whole"):  # it is pressed once
        monkeypatch.setattr("sys.stdin", io.StringIO("hello\nhello\nhello\n\n"))
        generate(f"--checkpoint={checkpoint}", "--chat", "--ignore_eos", "--max_new_tokens=64")
        answers[name] = [turn["content"] for turn in turns[1::2]]
    cut, after_cut = map(len, answers["cut"])
    assert 0 < cut < len(answers["whole"][0]) and answers["whole"][0].startswith(answers["cut"][0])
    assert after_cut > cut, "the next answer is whole"

    before = []
    monkeypatch.setattr(signal, "getsignal", lambda number: lambda *_: before.append(number))
    with terminal.interruptible() as is_interrupted:
        assert not is_interrupted()
        signal.raise_signal(signal.SIGINT)
        assert is_interrupted() and not before
        signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)
    assert before == [signal.SIGINT] * 2


def test_text_is_held_to_a_schema(generate, checkpoint, tmp_path):
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    schema |= {"additionalProperties": False}
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    flags = (f"--checkpoint={checkpoint}", "--prompt=x", f"--schema={tmp_path / 'schema.json'}", "--max_new_tokens=200")
    answers = json.loads(generate(*flags, "--prompt=y", "--json", "--seed=2").out)["answers"]
    assert len(answers[0]["ids"]) != len(answers[1]["ids"]), "one is done before the other"
    for answer in answers:
        assert answer["ended_by"] in ("<eos>", "<end_of_turn>")
        assert json.loads(answer["text"]) in ({"ok": True}, {"ok": False})


def test_text_is_held_to_a_regular_expression(generate, checkpoint):
    flags = (f"--checkpoint={checkpoint}", "--prompt=x", "--regex=(ab|cd){2}", "--max_new_tokens=30", "--json")
    assert json.loads(generate(*flags).out)["text"] in ("abab", "abcd", "cdab", "cdcd")


def test_an_answer_can_be_held_to_a_call(generate, checkpoint, tmp_path):
    (tmp_path / "tools.json").write_text(json.dumps(TOOLS))
    flags = (f"--checkpoint={checkpoint}", "--chat", f"--tools={tmp_path / 'tools.json'}", "--prompt=1 + 2?")
    result = json.loads(generate(*flags, "--force_call", "--max_new_tokens=400", "--json", "--seed=1").out)
    assert [call["name"] for call in result["calls"]] == ["add"] and type(result["calls"][0]["arguments"]["a"]) is int


CALL = '{"name": "add", "parameters": {"a": 3}}'


@pytest.fixture
def make_session(tmp_path):
    """Makes a chat with scripted answers and a program that runs calls; returns it and the turns it was given."""
    (tmp_path / "tools.json").write_text(json.dumps(TOOLS))

    def make(replies, script=None, **flags):
        command = tmp_path / "command"
        command.write_text(f"#!/bin/sh\n{script}\n")
        command.chmod(0o755)
        flags = {
            "tools": str(tmp_path / "tools.json"),
            "tool_format": None,
            "tool_command": str(command),
            "tool_timeout": None,
        } | flags
        prompts, answers = [], iter(replies)
        reply = lambda turns: prompts.append([dict(turn) for turn in turns]) or next(answers)  # noqa: E731
        return chat.ChatSession(argparse.Namespace(**flags), reply), prompts

    return make


def test_a_program_gets_the_call_and_what_it_prints_is_fed_back(make_session, tmp_path):
    session, prompts = make_session([CALL, "It is 4."], f"cat > {tmp_path / 'got'}; echo 4")
    turns, calls = session.answer("3 + 1?")
    assert json.loads((tmp_path / "got").read_text()) == {"name": "add", "parameters": {"a": 3}} and not calls
    assert [turn["content"] for turn in turns] == ["3 + 1?", CALL, '{"name": "add", "result": 4}', "It is 4."]
    assert prompts[1][0]["role"] == "system" and "add" in prompts[1][0]["content"]


def test_a_program_that_fails_is_one_line(make_session):
    session, _ = make_session([CALL], "echo broken >&2; exit 3")
    with pytest.raises(ValueError, match=r"--tool_command .*command ended with status 3: broken"):
        session.answer("3 + 1?")


@pytest.mark.parametrize(
    ("script", "result"),
    [
        ("echo '{\"sum\": [4]}'", '{"sum": [4]}'),
        ("echo 4 apples", '"4 apples"'),
        ("echo NaN", '"NaN"'),  # Python's, not JSON's
        ('echo \'{"a": 1, "a": 2}\'', json.dumps('{"a": 1, "a": 2}')),
        ("yes [ | head -50000 | tr -d '\\n'", json.dumps("[" * 50_000)),  # nested too deeply for JSON
        ("printf ''", '""'),
    ],
)
def test_what_a_program_prints_is_json_or_text(make_session, script, result):
    session, _ = make_session([CALL, "It is 4."], script)
    turns, _ = session.answer("3 + 1?")
    assert turns[2]["content"] == f'{{"name": "add", "result": {result}}}'


def test_a_program_that_hangs_is_one_line(make_session):
    session, _ = make_session([CALL], "sleep 1000", tool_timeout=0.1)
    with pytest.raises(ValueError, match=r"command took over 0.1 s, and was killed; --tool_timeout sets the limit"):
        session.answer("3 + 1?")


def test_an_unknown_tool_is_one_line(make_session):
    session, _ = make_session(['{"name": "sub", "parameters": {"a": 3}}'], tool_command=None)
    with pytest.raises(ValueError, match=r"sub.*add"):
        session.answer("3 - 1?")


def test_at_a_prompt_the_user_says_what_a_call_gives(make_session, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("3 + 1?\n4\n\n"))
    session, prompts = make_session([CALL, "It is 4."], tool_command=None)
    session.run_at_prompt()
    assert prompts[1][-1]["content"] == '{"name": "add", "result": 4}'


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ([], "there is no prompt; give --prompt, --prompt_ids or --chat"),
        (["--prompt="], "--prompt is empty"),
        (["--prompt_ids=2,x"], "--prompt_ids is '2,x'; it must be token ids"),
        (["--prompt_ids=2," + "9" * 5_000], "--prompt_ids is '2,999"),
        (["--prompt_ids=2,800"], "the prompt has id 800; ids are from 0 to 799"),
        (["--prompt=x", "--prompt_ids=2"], "--prompt_ids is the whole prompt"),
        (["--prompt=x", "--context=4"], "and max_new_tokens is 256; the context is 4 tokens"),
        (["--prompt=x", "--context=-1"], "--context is -1; it must be at least 1"),
        (["--prompt=x", "--top_p=2"], "top_p is 2.0; it must be over 0 and at most 1 (--top_p)"),
        (["--prompt=x", "--top_k=a"], "argument --top_k: invalid int value: 'a'"),
        (["--chat", "--json"], "--json is for one answer"),
        (["--prompt=x", "--tools=t.json"], "--tools is for --chat with --tools"),
        (["--chat", "--tools=none.json", "--prompt=x"], "none.json does not exist"),
        (["--prompt=x", "--tool_timeout=3"], "--tool_timeout is for --chat with --tools"),
        (["--chat", "--tools=t", "--tool_timeout=3"], "--tool_timeout is for --tool_command; give both"),
        (
            ["--chat", "--tools=t", "--tool_command=t", "--tool_timeout=0"],
            "--tool_timeout is 0; it must be a number of",
        ),
        (["--chat", "--tools=t", "--tool_command=t", "--tool_timeout=inf"], "--tool_timeout is inf; it must be a"),
        (["--prompt=x", "--schema=none.json"], "none.json does not exist"),
        (
            ["--prompt=x", "--schema=s", "--ignore_eos"],
            "--schema determines where the text ends; leave out --ignore_eos",
        ),
        (["--prompt=x", "--schema=s", "--regex=a"], "--schema and --regex both constrain the text; give one"),
        (["--prompt=x", "--regex=("], "the regular expression '(' cannot be enforced"),
        (["--prompt=x", "--chat", "--prompt=y"], "--chat answers one --prompt"),
        (["--prompt=x", "--temprature=1"], "has no flag --temprature; did you mean --temperature?"),
    ],
)
def test_a_mistake_is_one_line(generate, checkpoint, flags, text):
    assert text in fails(generate, f"--checkpoint={checkpoint}", *flags)


def test_a_checkpoint_must_be_named_and_be_there(generate):
    assert "--checkpoint is missing" in fails(generate, "--prompt=x")
    assert "nowhere is no directory" in fails(generate, "--checkpoint=nowhere", "--prompt=x")
