#!/usr/bin/env bash
# Runs the report's ablations in miniature and writes one page of their results: under an hour on two cores with other
# work running; no accelerator, no download but packages. Results: experiments/ablations/README.md.
#   bash launch/ablations.sh [DIRECTORY] [--seeds=N ...]       default: runs/ablations; flags go to every ablation
# Works from a fresh clone with Python >= 3.11: makes .venv with the newest there is (PYTHON=PATH names another) unless a
# virtual environment is active already. Stopped at any moment, the same command resumes.
set -euo pipefail
cd "$(dirname "$0")/.."
directory=runs/ablations
if [[ $# -gt 0 && "$1" != --* ]]; then
  directory="$1"
  shift
fi

if [[ -z "${VIRTUAL_ENV:-}" ]]; then
  if [[ ! -x .venv/bin/python ]]; then
    python="$(bash launch/find_python.sh)"
    "$python" -m venv .venv
  fi
  # shellcheck source=/dev/null
  source .venv/bin/activate
fi
python --version >&2
python -m pip install --quiet --disable-pip-version-check -c launch/constraints.txt -e '.[prepare,plots]'
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"

for name in local_global window rope_scale teacher_size estimator qat_format; do
  printf '\n$ python experiments/ablations/%s.py --output=%s %s\n' "$name" "$directory" "$*" >&2
  python "experiments/ablations/$name.py" --output="$directory" "$@"
done
echo
python experiments/ablations/page.py --output="$directory"
