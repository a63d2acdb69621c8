#!/usr/bin/env bash
# Lint and the default tests: minutes on two cores, no accelerator, no other framework.
#   bash launch/test.sh [pytest arguments]
# Works from a fresh clone with Python >= 3.11: makes .venv with the newest there is (PYTHON=PATH names another) unless a
# virtual environment is active already.
set -euo pipefail
cd "$(dirname "$0")/.."

if [[ -z "${VIRTUAL_ENV:-}" ]]; then
  if [[ ! -x .venv/bin/python ]]; then
    python="$(bash launch/find_python.sh)"
    "$python" -m venv .venv
  fi
  # shellcheck source=/dev/null
  source .venv/bin/activate
fi
python --version >&2
python -m pip install --quiet --disable-pip-version-check -c launch/constraints.txt -e '.[test]'

ruff check .
ruff format --check .
python -m pytest --numprocesses=auto --maxprocesses=8 --dist=loadscope --durations=10 "$@"
