"""The README and docs/: commands and examples run, and everything they name exists."""

import ast
import pathlib
import re
import shlex
import subprocess

import pytest

from experiments import demo, pods
from gemma3_jax import settings
from gemma3_jax.cli import configs, program
from tests import texts
from tests.checkpoint.test_hf import make_directory

ROOT = pathlib.Path(__file__).parents[1]
PATHS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "experiments" / "ablations" / "README.md"]
PAGES = {str(path.relative_to(ROOT)): path.read_text() for path in PATHS}
README = PAGES["README.md"]
OURS = "python -m gemma3_jax "
# In the order of what they need of each other: the data, the teacher and the run of the demo.
RUN = [f"docs/{name}.md" for name in ("training", "data", "distillation", "inference", "evaluation", "quantization")]
RUN.append("README.md")
# Commands that are not run here, by how they begin, each with the reason.
NOT_RUN = {
    "pip install": "the tests run on what it installs",
    "bash launch/demo.sh": "its commands are those of docs/training.md, which run here in fewer steps",
    "bash launch/ablations.sh": "most of an hour; tests/test_ablations.py runs each ablation in miniature",
    "python experiments/demo_documents.py": "its documents are long; short ones are written here instead",
    f"{OURS}plan": "needs libtpu, and minutes: tests/interop/test_tpu_plan.py",
    f"{OURS}train --config=experiments/starter.py:1b": "trains 1B on 16 chips: tests/test_experiments.py builds it",
    f"{OURS}train --config=experiments/demo.py --stage=qat": "starts at step 220, which fewer steps do not reach",
    f"{OURS}generate --checkpoint=gemma-3-1b-it --chat": "waits for what is typed: tests/test_generate.py",
    f"{OURS}prepare --input=chats.jsonl": "fine-tuning: tests/test_getting_started.py runs it",
    f"{OURS}train --config=experiments/finetune.py": "as above",
    f"{OURS}convert --source=tuned": "as above",
    f"{OURS}convert --source=adapted": "what the starter would have trained: tests/test_getting_started.py, too",
    f"{OURS}convert --source=run --target=served": "tests/interop/test_serving.py runs it",
    "vllm serve": "another program: tests/engines asks it",
    "curl localhost": "asks a server",
    "llama-server": "another program: tests/engines asks it",
    "ollama ": "another program, which is not at hand",
    "lm_eval run": "its tasks need a download: tests/interop/test_serving.py",
    "mlx_lm.": "another program: tests/engines asks it",
    "gcloud ": "needs a cloud",
    "kubectl ": "needs a cluster",
    "sed 's/MY_BUCKET": "for a cloud: tests/interop/test_serving_manifests.py reads the manifests",
    "pytest tests/": "is how to run these tests",
    "pod=": "with the launchers' commands: they run with --dry_run, in a test of their own",
    "bash launch/tpu_vm.sh": "as above",
}


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, flags=re.DOTALL)


def commands(page: str) -> list[str]:
    """Every command of a page, on one line each, without comments."""
    lines = "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [" ".join(line.partition("  #")[0].split()) for line in lines if line.strip()]


def excuses(command: str) -> list[str]:
    return [start for start in NOT_RUN if command.startswith(start)]


def run(command: str, *, more: tuple[str, ...] = ()) -> None:
    """Runs a command of ours in this process, any other one in bash."""
    if command.startswith(OURS):
        status = program.main([*shlex.split(command.removeprefix(OURS)), *more])
    else:
        status = subprocess.run(["bash", "-c", command]).returncode
    assert status == 0, f"{command} ended with status {status}"


@pytest.mark.slow
def test_the_commands_of_all_pages_run_and_then_their_python_examples(tmp_path, monkeypatch, capsys):
    make_directory(tmp_path / "gemma-3-1b-pt")
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    (tmp_path / "runs" / "demo" / "student").symlink_to(tmp_path / "run")
    texts.write_lines(tmp_path / "documents.jsonl", ["".join(texts.library()[:4])])
    monkeypatch.chdir(tmp_path)
    short = ("--stage=pretrain", "--config.stages.pretrain.num_steps=2", "--config.mesh.data=1")
    short += ("--config.stages.pretrain.optimizer.warmup_steps=0",)
    toy = ("--config.model.num_layers=2", "--config.model.num_local_per_global=1")
    more = {"prepare": ("--config.sources.library.fraction=0.1",), "train": (*short, *toy), "teach": short}
    more |= {"generate": ("--mesh=data=1",)}
    listed = [command for page in RUN for command in commands(PAGES[page])]
    for command in dict.fromkeys(listed):  # one that several pages show runs once
        if not excuses(command):
            verb = command.removeprefix(OURS).partition(" ")[0] if command.startswith(OURS) else ""
            run(command, more=more.get(verb, ()))
    for page in RUN:
        for example in blocks(PAGES[page], "python"):
            exec(compile(example, page, "exec"), {})
    out = capsys.readouterr().out
    for expected in (r"^\(1, 3, 2048\)$", r"^17 [0-9a-f]{16} \(8, 512\)$", r"\[\d+(, \d+)*\] [<l]\S+$"):
        assert re.search(expected, out, flags=re.MULTILINE), out


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_ours_has_flags_and_fields_that_exist(page):
    for command in commands(PAGES[page]):
        if command.startswith(OURS):
            verb, *rest = shlex.split(command.removeprefix(OURS))
            flags = program.VERBS[verb][0].parser().parse_all(rest)
            file = getattr(flags, "config", None)
            if verb != "prepare" and file and file.startswith("experiments/"):
                configs.read(configs.run_file(str(ROOT / file)), flags.overrides, settings.Train)


def test_every_command_is_run_or_excused_and_every_excuse_is_of_a_command():
    of_pages = {page: commands(text) for page, text in PAGES.items() if page != "docs/getting_started.md"}
    for page, listed in of_pages.items():
        for command in listed:
            assert page in RUN or excuses(command), f"{page}: {command} is not run; say why in NOT_RUN"
            is_known = command.startswith((OURS, "echo ")) or excuses(command)
            assert is_known, f"{page}: {command} is not ours; say in NOT_RUN why it is not run"
    everything = [command for listed in of_pages.values() for command in listed]
    for start in NOT_RUN:
        assert any(command.startswith(start) for command in everything), f"no page has a command {start}"


def test_the_launchers_take_the_commands_of_the_page_about_pods():
    [variables, *launches] = [line for line in commands(PAGES["docs/tpu_pods.md"]) if not line.startswith(OURS)]
    assert len(launches) == 4
    for command in launches:
        line = re.sub(r"^(bash \S+ \S+)", r"\1 --dry_run", command)
        done = subprocess.run(["bash", "-c", f"{variables}\n{line}"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0 and "gcloud" in done.stdout, done.stderr


@pytest.mark.parametrize("page", PAGES)
def test_every_path_and_link_that_a_page_names_exists(page):
    text = PAGES[page]
    named = re.findall(r"\b(?:gemma3_jax|tests|experiments|launch|docs|findings)/[\w./-]*\w", text)
    missing = [path for path in named if not (ROOT / path).exists()]
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    missing += [link for link in links if not (ROOT / page).parent.joinpath(link).exists()]
    assert not missing, f"{page} names {missing}"


def test_the_page_about_pods_has_the_tables_that_its_program_writes():
    page = PAGES["docs/tpu_pods.md"]
    between = page.partition(pods.MARKS[0])[2].partition(pods.MARKS[1])[0]
    assert pods.table([]) in between and pods.maxtext_table({}) in between


def test_the_readme_is_short_and_links_every_page_of_docs():
    assert len(README.encode()) <= 12 * 1024
    for path in (ROOT / "docs").glob("*.md"):
        assert f"(docs/{path.name})" in README, f"the README does not link docs/{path.name}"


def test_the_readme_lists_every_verb():
    section = README.partition("## Verbs")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE) == [*program.VERBS]


def test_the_readme_shows_the_lines_that_the_demo_ends_with():
    assert "\n".join(demo.last_lines("runs/demo")[-4:]) in README
    assert len(demo.last_lines("runs/demo")) == 5


def test_every_function_that_a_newcomer_is_sent_to_is_defined_in_its_file():
    table = re.findall(r"^\|.*\? \| `(\S+\.py)` \| `(\w+)` \|$", PAGES["docs/extending.md"], flags=re.MULTILINE)
    assert len(table) >= 10
    for path, name in table:
        tree = ast.parse((ROOT / path).read_text())
        defined = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        assert name in defined, f"{path} defines no {name}"
