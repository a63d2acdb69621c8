#!/usr/bin/env bash
# The recipe in miniature, on real text, in some ten minutes on two cores: no accelerator, no download but packages. Then
# what comes of it: a sample, measures, files for other programs, and one page that shows the run.
#   bash launch/demo.sh [DIRECTORY]       default: runs/demo
# Works from a fresh clone with Python >= 3.11: makes .venv unless a virtual environment is active already. Stopped at any
# moment, the same command goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
directory="${1:-runs/demo}"

if [[ -z "${VIRTUAL_ENV:-}" ]]; then
  [[ -x .venv/bin/python ]] || "${PYTHON:-python3}" -m venv .venv
  # shellcheck source=/dev/null
  source .venv/bin/activate
fi
python -m pip install --quiet --disable-pip-version-check -c launch/constraints.txt -e '.[prepare,plots]'
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
mkdir -p "$directory"

run() {
  printf '\n$ python -m gemma3_jax %s\n' "$*" >&2
  python -m gemma3_jax "$@"
}

[[ -f "$directory/data/manifest.json" ]] || run prepare --config=experiments/demo_data.py --output="$directory/data"
run train --config=experiments/demo.py:teacher --workdir="$directory/teacher" --config.data="$directory/data"
[[ -f "$directory/documents.jsonl" ]] || python experiments/demo_documents.py "$directory/documents.jsonl"
run train --config=experiments/demo.py --workdir="$directory/student" --config.data="$directory/data" \
  --config.teacher="$directory/teacher" --config.documents="$directory/documents.jsonl"

student="$directory/student" export="$directory/export"
rm -rf "$export" && mkdir -p "$export"
run generate --checkpoint="$student" --prompt='def main(argv):' --max_new_tokens=64 --seed=1
run evaluate --checkpoint="$student" --task=bytes --context=32768
run convert --source="$student" --target="$export/hf" --format=hf --quant=q4_0
run convert --source="$student" --target="$export/student.gguf" --format=gguf --quant=q4_0
run report --workdir="$student"
echo
python experiments/demo.py "$directory"
