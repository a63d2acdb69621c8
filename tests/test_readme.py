"""What the README shows runs."""

import pathlib
import re
import shlex

import pytest

from gemma3_jax.cli import program
from tests import texts
from tests.checkpoint.test_hf import make_directory

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.slow
def test_the_commands_run_and_then_the_python_examples(tmp_path, monkeypatch, capsys):
    make_directory(tmp_path / "gemma-3-1b-pt")
    (tmp_path / "ids.json").write_text("[[2, 92, 19]]")  # the README's ids, within a toy's vocabulary
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"^    python -m gemma3_jax (.*)$", README.replace("\\\n", " "), flags=re.MULTILINE)
    verbs = [command.split()[0] for command in commands]
    of_run = ["generate", "evaluate", "report", *["convert"] * 3]
    assert verbs == ["prepare", "train", "train", *of_run, "evaluate", "convert", "teach", "train"]
    texts.write_lines(tmp_path / "documents.jsonl", ["".join(texts.library()[:4])])
    short = ["--stage=pretrain", "--config.stages.pretrain.num_steps=2", "--config.mesh.data=1"]
    short += ["--config.stages.pretrain.optimizer.warmup_steps=0"]
    toy = ["--config.model.num_layers=2", "--config.model.num_local_per_global=1"]
    fewer = {"prepare": ["--config.sources.library.share=0.1"], "train": [*short, *toy], "teach": short}
    fewer |= {"generate": ["--mesh=data=1"]}
    for verb, command in zip(verbs, commands, strict=True):
        assert program.main([*shlex.split(command), *fewer.get(verb, [])]) == 0, capsys.readouterr().err
    capsys.readouterr()
    names: dict = {}
    for example in re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL):
        exec(compile(example, "README.md", "exec"), names)
    names["rows"].close()
    out = capsys.readouterr().out
    assert re.search(r"\[\d+(, \d+)*\] [<l].*\n\(1, 3, 96\)\n17 [0-9a-f]{16}\n\Z", out), out


def test_every_path_it_names_exists():
    for path in re.findall(r"(?:gemma3_jax|tests|experiments|launch)/[\w/]+\.(?:py|sh|txt)", README):
        assert (ROOT / path).exists(), path
