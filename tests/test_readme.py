"""What the README shows runs."""

import pathlib
import re

from gemma3_jax.cli import program
from tests.checkpoint.test_hf import make_directory

README = (pathlib.Path(__file__).parents[1] / "README.md").read_text()


def test_the_python_example_runs(tmp_path, monkeypatch, capsys):
    make_directory(tmp_path / "gemma-3-1b-pt")
    monkeypatch.chdir(tmp_path)
    exec(compile(re.search(r"```python\n(.*?)```", README, flags=re.DOTALL)[1], "README.md", "exec"), {})
    assert capsys.readouterr().out == "(1, 3, 96)\n"


def test_the_commands_run(tmp_path, monkeypatch, capsys):
    make_directory(tmp_path / "gemma-3-1b-pt")
    (tmp_path / "ids.json").write_text("[[2, 92, 19]]")  # the README's ids, within a toy's vocabulary
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"^    python -m gemma3_jax (.*)$", README, flags=re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        assert program.main(command.split()) == 0, capsys.readouterr().err


def test_every_path_it_names_exists():
    root = pathlib.Path(__file__).parents[1]
    for path in re.findall(r"(?:gemma3_jax|tests|experiments|launch)/[\w/]+\.(?:py|sh|txt)", README):
        assert (root / path).exists(), path
