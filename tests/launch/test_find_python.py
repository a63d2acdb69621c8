"""Which Python the scripts make their environment with; the Pythons are stand-ins that print their own path."""

import pathlib
import shutil
import subprocess

import pytest

from tests.launch import pods

NEWEST = """
case "$1" in
  -c) echo "$0" ;;
  -m) mkdir -p .venv/bin
    echo 'PATH="$PWD/.venv/bin:$PATH"' >.venv/bin/activate
    printf '#!/usr/bin/env bash\\n[[ "$1" == --version ]] && echo "Python of %s"\\n' "$0" >.venv/bin/python
    chmod +x .venv/bin/python ;;
esac
"""


def put(path: pathlib.Path, runs: bool = True) -> str:
    """Writes a stand-in of Python; one that does not run is what a version manager puts on the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/usr/bin/env bash\n" + (NEWEST if runs else "echo 'not found' >&2\nexit 127\n"))
    path.chmod(0o755)
    return str(path)


def run(home: pathlib.Path, script: str, *arguments: str, status: int = 0, **env: str) -> tuple[str, str]:
    """Runs a script with the Pythons of home/bin alone on the path, and those in directories of `home`."""
    bin_dir = home / "bin"
    bin_dir.mkdir(parents=True, exist_ok=True)
    for name in ("bash", "cat", "chmod", "dirname", "env", "mkdir"):
        if not (bin_dir / name).exists():
            (bin_dir / name).symlink_to(shutil.which(name))
    line = [str(bin_dir / "bash"), script, *arguments]
    env = {"PATH": str(bin_dir), "HOME": str(home), **env}
    done = subprocess.run(line, env=env, capture_output=True, text=True, cwd=pods.ROOT, timeout=60)
    assert done.returncode == status, done.stderr
    return done.stdout.strip(), done.stderr.strip()


def find(home: pathlib.Path, *versions: str, **env: str) -> str:
    return run(home, "launch/find_python.sh", *versions, **env)[0]


def test_the_newest_that_runs_is_taken(tmp_path):
    put(tmp_path / "bin" / "python3.13", runs=False)
    put(tmp_path / "bin" / "python3")
    old, middle = (put(tmp_path / "bin" / f"python3.{minor}") for minor in (11, 12))
    assert find(tmp_path) == middle
    assert find(tmp_path, "3.11") == old
    of_manager = put(tmp_path / ".manager" / "versions" / "3.13.1" / "bin" / "python")
    assert find(tmp_path) == of_manager
    assert find(tmp_path, PYTHON=old) == old


def test_a_later_one_is_taken_where_no_version_is_named(tmp_path):
    later = put(tmp_path / "bin" / "python3")
    assert find(tmp_path) == later
    err = run(tmp_path, "launch/find_python.sh", "3.11", status=1)[1]
    assert err == (
        "find_python.sh: error: there is no Python 3.11 with the modules venv and ensurepip; PYTHON=PATH names another"
    )


def test_a_python_that_is_named_and_does_not_run_is_refused(tmp_path):
    put(tmp_path / "bin" / "python3.13")
    bad = put(tmp_path / "bin" / "mine", runs=False)
    assert run(tmp_path, "launch/find_python.sh", status=1, PYTHON=bad)[1] == (
        f"find_python.sh: error: PYTHON is {bad}; it must be Python 3.11 or later with the modules venv and ensurepip"
    )


@pytest.mark.parametrize("name", ["test.sh", "demo.sh", "ablations.sh"])
def test_a_script_makes_its_environment_with_it_once_and_says_which_it_has(name, tmp_path):
    """The environment's Python has no pip, at which the script ends."""
    shutil.copytree(pods.ROOT / "launch", tmp_path / "clone" / "launch", ignore=shutil.ignore_patterns("__pycache__"))
    newest, script = put(tmp_path / "bin" / "python3.13"), str(tmp_path / "clone" / "launch" / name)
    assert run(tmp_path, script, status=1)[1].endswith(f"Python of {newest}")
    put(tmp_path / "bin" / "python3.13", runs=False)
    assert run(tmp_path, script, status=1)[1].endswith(f"Python of {newest}")
    shutil.rmtree(tmp_path / "clone" / ".venv")
    assert "find_python.sh: error: there is no Python 3.13 3.12 3.11" in run(tmp_path, script, status=1)[1]
