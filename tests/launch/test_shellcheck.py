"""The scripts by shellcheck, and their size."""

import pathlib
import shutil
import subprocess
import sys

import pytest

from tests.launch import pods

SCRIPTS = sorted((pods.ROOT / "launch").glob("*.sh"))


def test_shellcheck_finds_nothing():
    shellcheck = shutil.which("shellcheck", path=pathlib.Path(sys.executable).parent) or shutil.which("shellcheck")
    if not shellcheck:
        pytest.skip("shellcheck is not installed; it comes with the extra [test]")
    line = [shellcheck, "--external-sources", *(str(path.relative_to(pods.ROOT)) for path in SCRIPTS)]
    done = subprocess.run(line, cwd=pods.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_stay_small_and_evaluate_nothing(path):
    text = path.read_text()
    assert text.count("\n") <= 400, f"{path.name} passes 400 lines: split it by idea"
    assert "eval " not in text
    assert text.startswith("#!/usr/bin/env bash\n") == ("set -euo pipefail\n" in text), "run, or sourced by one that is"
