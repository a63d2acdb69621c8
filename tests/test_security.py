"""What comes from others is data: nothing in it is run, fetched, or marked up. (Config files are Python by design.)"""

import ast
import contextlib
import dataclasses
import json
import pathlib
import pickle
import socket
import subprocess
import sys
import urllib.request

import msgpack
import numpy as np
import pytest

import gemma3_jax
from gemma3_jax.checkpoint import open as checkpoint_open
from gemma3_jax.cli import program, tool_process
from gemma3_jax.data import shards
from gemma3_jax.inference.tools import calls, constrained, json_schema, schemas
from tests import texts, toys
from tests.checkpoint import test_hf

PACKAGE = pathlib.Path(gemma3_jax.__file__).parent
MODEL = dataclasses.replace(toys.TOY, vocab_size=texts.TOKENIZER_SIZE)
# Calls that run, import or unpickle what they get, and the modules that may make them.
RUNS_CODE = {
    "eval": (),
    "exec": (),
    "compile": (),
    "__import__": (),
    "exec_module": ("cli/configs.py",),  # a config is Python
    "import_module": ("data/prepare/personal_data.py", "data/prepare/quality.py"),  # constants, and a name in a config
    "system": (),
    "popen": (),
    "from_string": (),  # a template from data
    "getoutput": (),
}
UNPICKLES = {
    "pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "joblib",
    "shelve",
    "marshal",
    "torch",
    "yaml",
    "runpy",
    "code",
}
UNSAFE_OPTIONS = {"shell", "allow_pickle", "trust_remote_code", "strict_map_key"}


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, marker: pathlib.Path):
        self.marker = marker

    def __reduce__(self):
        return pathlib.Path.touch, (self.marker,)


def test_no_module_runs_what_it_reads():
    for path in PACKAGE.rglob("*.py"):
        name = str(path.relative_to(PACKAGE))
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                assert not UNPICKLES & {module.partition(".")[0] for module in modules}, name
            if isinstance(node, ast.Call):
                called = getattr(node.func, "id", None) or getattr(node.func, "attr", "")
                # Methods of these names are of other things, such as re.compile.
                if not (isinstance(node.func, ast.Attribute) and called in ("compile", "eval", "exec")):
                    assert name in RUNS_CODE.get(called, (name,)), f"{name} calls {called}"
                for option in node.keywords:
                    is_off = isinstance(option.value, ast.Constant) and not option.value.value
                    assert option.arg not in UNSAFE_OPTIONS or is_off, f"{name} calls {called} with {option.arg}"


def test_a_checkpoint_brings_no_code(tmp_path, capsys):
    """Pickled weights, modules of its own, and a chat template: none is looked at."""
    markers = [tmp_path / f"ran_{number}" for number in range(3)]
    auto_map = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    path = test_hf.make_directory(
        tmp_path / "hf", toys.hf_weights(MODEL), MODEL, auto_map=auto_map, trust_remote_code=True
    )
    (path / "evil.py").write_text(f"import pathlib\npathlib.Path({str(markers[0])!r}).touch()\n")
    (path / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(markers[1])))
    template = f"{{{{ cycler.__init__.__globals__.os.system('touch {markers[2]}') }}}}"
    (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template, "auto_map": auto_map}))
    (path / "chat_template.jinja").write_text(template)
    (path / "tokenizer.model").write_bytes(texts.tokenizer_model())
    # Everything is opened and the chat is encoded, before it is found that there is no room for an answer.
    assert program.main(["generate", f"--checkpoint={path}", "--chat", "--prompt=hello", "--context=9"]) == 1
    assert "the context is 9 tokens" in capsys.readouterr().err
    assert "evil" not in sys.modules and not any(marker.exists() for marker in markers)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors", "model.gguf"])
def test_pickled_weights_are_no_checkpoint(tmp_path, name):
    path = test_hf.make_directory(tmp_path / "hf")
    (path / "model.safetensors").unlink()
    (path / name).write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    source = path / name if name.endswith(".gguf") else path
    with pytest.raises(ValueError, match=r"safetensors|GGUF"):
        checkpoint_open.open_checkpoint(source).model  # noqa: B018
    assert not (tmp_path / "ran").exists()


def test_a_record_is_read_without_its_extensions(tmp_path):
    """Types of msgpack that a reader may be told to make objects of."""
    payload = msgpack.ExtType(7, pickle.dumps(Payload(tmp_path / "ran")))
    good = {"tokens": np.arange(3, dtype="<i4").tobytes(), "lengths": np.asarray([3], "<i4").tobytes()}
    good |= {"learned": None, "pieces": []}
    assert shards.PackedRow.from_bytes(msgpack.packb(good)).tokens.tolist() == [0, 1, 2]
    for key in good:
        with pytest.raises(Exception, match="ExtType|bytes|list|unpack"):
            shards.PackedRow.from_bytes(msgpack.packb(good | {key: payload}))
    assert not (tmp_path / "ran").exists()


# --- tools ---


def test_a_call_in_python_is_parsed_and_not_run(tmp_path):
    tool = schemas.Tool(name="f", parameters={"type": "object", "properties": {"a": True}})
    touch = f"__import__('pathlib').Path({str(tmp_path / 'ran')!r}).touch()"
    for text in (f"[f(a={touch})]", f"print({touch})", f"```tool_code\n{touch}\n```", f"[f(a=f'{{{touch}}}')]"):
        with contextlib.suppress(ValueError):
            assert calls.parse(text, [tool], "python") is None
    assert not (tmp_path / "ran").exists()


def test_no_shell_sees_a_call_or_the_name_of_a_tool(tmp_path, monkeypatch):
    commands = []
    popen = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda line, **options: commands.append((line, options)) or popen(line, **options)
    )
    tool = tmp_path / "tool; touch ran #$(touch ran)"
    tool.write_text("#!/bin/cat -\n")
    tool.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    call = json.dumps({"name": "f", "parameters": {"a": "`touch ran`; touch ran"}})
    assert tool_process.run(tool.name, call, 10).startswith(call)
    ((line, options),) = commands
    assert line == [tool] and not options.get("shell") and not (tmp_path / "ran").exists()


REFERENCES = (
    "http://127.0.0.1:9/a",
    "https://example.com/a",
    "file:///etc/passwd",
    "other.json",
    "ftp://a/b",
    "//a/b",
    "urn:a",
)


@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("keyword", ["$ref", "$dynamicRef"])
def test_a_reference_to_elsewhere_is_refused_and_never_fetched(reference, keyword, monkeypatch):
    def refuse(*arguments, **options):
        pytest.fail(f"it was fetched: {arguments}")

    for module, name in ((urllib.request, "urlopen"), (socket, "create_connection"), (socket, "getaddrinfo")):
        monkeypatch.setattr(module, name, refuse)
    monkeypatch.setattr(pathlib.Path, "read_text", refuse)
    monkeypatch.setattr(pathlib.Path, "open", refuse)
    schema = {"type": "object", "properties": {"a": {keyword: reference}}}
    grammars = constrained.Grammars(texts.tokenizer(), texts.TOKENIZER_SIZE)
    for where in (
        schema,
        {"$id": "http://127.0.0.1:9/base", **schema},
        {"$schema": "http://127.0.0.1:9/meta", **schema},
    ):
        for check in (
            json_schema.check,
            grammars.schema,
            lambda schema: schemas.read([{"name": "a", "parameters": schema}]),
        ):
            with pytest.raises(ValueError, match="which is not in it; put it under"):
                check(where)
        with contextlib.suppress(Exception):  # not checked before, it may raise; it may not fetch
            json_schema.violation(where, {"a": 3})


# --- HTML: tests/report/test_page.py has a page whose names, texts, config and commands are all hostile ---


def test_a_template_escapes_by_default():
    from gemma3_jax.report import template

    assert template.ENVIRONMENT.autoescape is True
    for file in (PACKAGE / "report" / "templates").iterdir():
        assert "|safe" not in file.read_text().replace(" ", "") or file.name == "macros.html.jinja"  # of drawings
