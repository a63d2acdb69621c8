"""The form of `findings/`: heads, pinned packages, no import of this package. Nothing is installed or run here."""

import ast
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
FINDINGS = ROOT / "findings"
SCRIPTS = sorted(FINDINGS.glob("*.sh"))
LABELS = ("Natural guess", "Version", "Seen", "Here")
ROW = re.compile(r"^\| \[`(\w+)`\]\((\w+)\.sh\) \| (.+) \| (.+) \| (.+) \|$", re.MULTILINE)

each_script = pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)


def head(path: pathlib.Path) -> str:
    """The comment at the top, without the first line and the signs."""
    comment = path.read_text().partition("set -euo pipefail\n")[0].splitlines()[1:]
    assert all(line == "#" or line.startswith("# ") for line in comment), "the head is one comment"
    return "".join(f"{line[2:]}\n" for line in comment)


def section(path: pathlib.Path, label: str) -> str:
    (text,) = re.findall(rf"(?ms)^{label}: (.*?)(?=^(?:{'|'.join(LABELS)}): |\Z)", head(path))
    return text


def code(path: pathlib.Path) -> str:
    """What is run, with continued lines joined."""
    return path.read_text().partition("set -euo pipefail\n")[2].replace("\\\n", " ")


def programs(path: pathlib.Path) -> list[str]:
    return re.findall(r"(?ms)<<'PYTHON'$\n(.*?)^PYTHON$", path.read_text())


def packages(path: pathlib.Path) -> list[str]:
    """The requirements that pip gets."""
    lines = [line for line in code(path).splitlines() if 'pip" install' in line or "pip install" in line]
    words = [word.strip('"') for line in lines for word in line.partition(" install ")[2].split()]
    return [word for word in words if not word.startswith("-")]


@each_script
def test_it_is_an_executable_bash_script_that_stops_at_errors(path):
    assert path.stat().st_mode & 0o111 == 0o111
    assert path.read_text().startswith("#!/usr/bin/env bash\n")
    assert len(path.read_text().splitlines()) <= 150
    assert max(map(len, path.read_text().splitlines())) <= 120
    subprocess.run(["bash", "-n", str(path)], check=True)


@each_script
def test_its_head_has_the_guess_the_version_what_was_seen_and_where_it_matters_here(path):
    text = head(path)
    assert re.match(r"[^\n]+\.\n\n", text), "one sentence in one line comes first"
    assert [line.partition(":")[0] for line in text.splitlines() if line.startswith(LABELS)] == list(LABELS)


@each_script
def test_the_files_that_its_head_names_exist(path):
    names = re.findall(r"\b(?:gemma3_jax|tests|launch|experiments|docs)/[\w./]*\w", section(path, "Here"))
    assert names, "Here names the file that deals with it"
    assert [name for name in names if not (ROOT / name).exists()] == []


@each_script
def test_it_pins_what_it_installs_and_says_which(path):
    assert packages(path)
    assert [package for package in packages(path) if not re.fullmatch(r"[\w-]+==[\w.$]+", package)] == []
    versions = re.findall(r"([a-z_-]+) (\d+\.[\d.]*\d)", section(path, "Version").partition("(")[0])
    assert versions
    for name, version in versions:
        assert name in code(path) and version in code(path), f"{name} {version} is not what it installs"


@each_script
def test_it_works_in_a_temporary_folder_without_this_package(path):
    assert 'work="$(mktemp -d)"\ntrap \'rm -rf "$work"\' EXIT\npython3 -m venv "$work/venv"\n' in code(path)
    assert not re.search(r"(import|from) gemma3_jax|\bgemma3[-_]jax\b *==|-e \.", code(path))
    assert all(re.search(r" -I\b", line) for line in code(path).splitlines() if "venv/bin/python " in line)


@each_script
def test_its_program_fails_with_one_sentence_if_the_behavior_has_changed(path):
    assert programs(path)
    for program in programs(path):
        ast.parse(program)
    assert "changed: " in code(path)
    assert re.search(r'raise SystemExit\(\s*f?"changed: |exit 1\b|os\._exit\(', code(path))


def test_the_readme_lists_every_finding_with_its_version():
    rows = ROW.findall((FINDINGS / "README.md").read_text())
    assert [name for name, _, _, _, _ in rows] == [link for _, link, _, _, _ in rows]
    assert sorted(name for name, _, _, _, _ in rows) == [path.stem for path in SCRIPTS]
    for name, _, _, version, here in rows:
        path = FINDINGS / f"{name}.sh"
        assert all(number in section(path, "Version") for number in re.findall(r"\d+\.[\d.]*\d", version)), name
        assert all(file in section(path, "Here") for file in re.findall(r"`([\w./]+)`", here)), name


def test_there_is_nothing_else_in_the_folder():
    names = {path.name for path in FINDINGS.iterdir()}
    assert names == {"README.md", *(path.name for path in SCRIPTS)}


def test_shellcheck_finds_nothing():
    program = shutil.which("shellcheck", path=pathlib.Path(sys.executable).parent) or shutil.which("shellcheck")
    if not program:
        pytest.skip("shellcheck is not installed; it comes with the extra [test]")
    line = [program, *(str(path.relative_to(ROOT)) for path in SCRIPTS)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
