"""Asks an engine about a toy that was exported: python -m tests.engines ENGINE [--run=DIR] [--python=PROGRAM].

The engine is installed in an environment of its own, in a temporary directory, or is that of --python; the toy is
trained here, or is --run. Prints one line for docs/serving.md, and ends with status 1 if an answer is not ours.
"""

import argparse
import dataclasses
import datetime
import json
import os
import pathlib
import subprocess
import sys
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"

from gemma3_jax.checkpoint import open as checkpoint_open  # noqa: E402
from gemma3_jax.inference import open_sampler, sampling  # noqa: E402
from tests.engines import engines, toy  # noqa: E402

ROOT = pathlib.Path(__file__).parents[2]
NUM_TOKENS = 12  # the toy's answers are shorter
TEXT = "What is 3 + 4?"


def install(engine: engines.Engine, place: pathlib.Path) -> pathlib.Path:
    """Returns the Python of a new environment that has the engine."""
    find = ["bash", ROOT / "launch" / "find_python.sh", engine.python]
    found = subprocess.run(find, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    subprocess.run([found, "-m", "venv", place], check=True)
    python = place / "bin" / "python"
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*command, "--upgrade", "pip"], check=True)  # older ones try releases of a large set for hours
    subprocess.run([*command, "--requirement", engine.folder / "requirements.txt"], check=True)
    if engine.without:
        subprocess.run([python, "-m", "pip", "uninstall", "--quiet", "--yes", *engine.without], check=True)
    return python


def our_answers(run: pathlib.Path) -> dict[str, list]:
    """What an engine should say, as engines.Engine lists it."""
    gemma = open_sampler.open_sampler(run)
    options = {"max_new_tokens": NUM_TOKENS, "sampling_options": sampling.Sampling(temperature=0)}
    answers = [gemma.reply(turns, **options) for turns in toy.QUESTIONS]
    if any(answer.ended_by == "length" for answer in answers):
        raise SystemExit(f"the toy has not learned to end its turn: {answers}")
    return {
        "prompt_ids": [gemma.encode_turns(turns) for turns in toy.QUESTIONS],
        "text_ids": gemma.encode(TEXT),
        "answer_ids": [answer.ids[:-1] for answer in answers],
        "texts": [answer.text for answer in answers],
        "ended": [True] * len(answers),
    }


def ask(engine: engines.Engine, python: pathlib.Path, model: pathlib.Path, run: pathlib.Path) -> dict:
    """Returns what the engine says of `model`, which was exported from `run`."""
    place, checkpoint = model.parent, checkpoint_open.open_checkpoint(run)
    question = {"model": str(model), "questions": toy.QUESTIONS, "num_tokens": NUM_TOKENS, "text": TEXT}
    # For those to whom an export does not say it.
    question["config"] = dataclasses.asdict(checkpoint.model)
    question["tokenizer"] = str((run / "tokenizer.model").absolute())
    (place / "question.json").write_text(json.dumps(question))
    command = [python, engine.folder / "ask.py", place / "question.json", place / "answer.json"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{done.stderr[-8000:]}\n{engine.name} ended with status {done.returncode}")
    return json.loads((place / "answer.json").read_text())


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", choices=engines.ENGINES)
    parser.add_argument("--run", type=pathlib.Path)
    parser.add_argument("--python", type=pathlib.Path)
    options = parser.parse_args(arguments)
    engine = engines.ENGINES[options.engine]
    with tempfile.TemporaryDirectory() as directory:
        place = pathlib.Path(directory)
        python = options.python or install(engine, place / "environment")
        run = options.run or toy.train(place)
        model = place / engine.target
        toy.ours("convert", f"--source={run}", f"--target={model}", f"--format={engine.format}")
        found, expected = ask(engine, python, model, run), our_answers(run)
    different = [name for name in engine.compared if found[name] != expected[name]]
    for name in different:
        print(f"{name}: {found[name]!r}\n  ours: {expected[name]!r}", file=sys.stderr)
    equal = [name for name in engine.compared if name not in different]
    verdict = f"not equal: {', '.join(different)}; " if different else ""
    print(f"{found['version']}, {datetime.date.today()}: {verdict}equal: {', '.join(equal)}")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
