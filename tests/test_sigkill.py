"""25 SIGKILLs of each verb that writes: it ends as if nothing had happened, and nothing is left behind.

Those of `train` are in test_kill.py.
"""

import dataclasses
import pathlib
import random
import time

import pytest

from gemma3_jax.checkpoint import orbax
from gemma3_jax.cli import program
from gemma3_jax.durable import atomic
from tests import forks, runs, texts, toys
from tests.fuzz import families

pytestmark = pytest.mark.slow

NUM_KILLS = 25
MODEL = dataclasses.replace(toys.TOY, vocab_size=texts.TOKENIZER_SIZE)
DISTILL = (
    "--config.stage_order=('first',)",
    "--config.stages.first.loss=distill",
    "--config.stages.first.samples.num_samples=8",
)

data = runs.data  # a fixture


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with forks.serve(2, tmp_path_factory.mktemp("forks") / "log") as server:
        yield server


def straight_of(target: pathlib.Path) -> pathlib.Path:
    """The same of a process that nobody kills."""
    return target.with_name(f"straight{target.suffix}")


def kill_and_finish(
    server: forks.Forks, arguments: list[str], *, target: pathlib.Path, is_whole: bool, num_kills: int = NUM_KILLS
) -> None:
    """Kills the command at so many random moments, each in the time that it takes whole; then lets it end.

    `is_whole`: what it has done by then is lost, so each begins anew. Else a kill comes within an eighth of that time.
    """
    straight = straight_of(target)
    started = time.monotonic()
    assert server.run([argument.replace(str(target), str(straight)) for argument in arguments]) == 0
    seconds, draw, num_killed = time.monotonic() - started, random.Random(0), 0
    for _ in range(8 * num_kills):
        status = server.run(arguments, kill_after=draw.uniform(0, seconds if is_whole else seconds / 8))
        assert status in (0, -9)
        num_killed += status == -9
        if status == 0 or (is_whole and target.exists()):  # killed after its last write
            for path in target.parent.glob(f"{target.stem}*"):  # and the Modelfile of a GGUF file
                atomic.remove(path)
        if num_killed == num_kills:
            break
    assert num_killed == num_kills
    assert server.run(arguments) == 0
    names = sorted(path.name for path in target.parent.iterdir())
    straight_names = [name for name in names if name.startswith("straight")]
    assert names == straight_names + [name.replace("straight", target.stem) for name in straight_names]
    assert [path for path in target.rglob("*") if ".partial-" in path.name or "tmp" in path.name] == []


def contents_of(directory: pathlib.Path) -> dict[str, bytes]:
    return {name: (directory / name).read_bytes() for name in names_in(directory) if (directory / name).is_file()}


def names_in(directory: pathlib.Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


@pytest.mark.parametrize("kind", ["hf", "orbax", "gguf"])
def test_convert(kind, server, tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    out.mkdir()
    orbax.save(source, MODEL, toys.params(MODEL))
    (source / "tokenizer.model").write_bytes(texts.tokenizer_model())
    target = out / ("target.gguf" if kind == "gguf" else "target")
    flags = [f"--source={source}", f"--target={target}", f"--format={kind}"]
    kill_and_finish(server, ["convert", *flags], target=target, is_whole=True, num_kills=9)


def test_prepare(server, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    family, target = families.prepare_inputs(tmp_path / "in"), tmp_path / "out" / "target"
    kill_and_finish(server, family.command(random.Random(0), target), target=target, is_whole=False)
    assert contents_of(target) == contents_of(straight_of(target))


def test_teach(server, data, tmp_path):
    teacher, out = tmp_path / "teacher", tmp_path / "out"
    out.mkdir()
    line = runs.command(data, teacher, DISTILL[0], "--config.mesh.data=2", "--config.stages.first.num_steps=6")
    assert program.main(line) == 0
    line = ["teach", f"--config={data.parent / 'toy_run.py'}:{data}", *DISTILL, f"--checkpoint={teacher}"]
    target = out / "target"
    kill_and_finish(server, [*line, f"--output={target}"], target=target, is_whole=False)
    assert names_in(target) == names_in(straight_of(target))
