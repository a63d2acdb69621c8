#!/usr/bin/env bash
# The recipe in miniature on real text, and what can be done with the result: text, exports, a page that shows the run.
#   bash launch/demo.sh [DIRECTORY]       default: runs/demo
# Works from a fresh clone with Python >= 3.11: makes .venv with the newest there is (PYTHON=PATH names another) unless a
# virtual environment is active already. Stopped at any moment, the same command resumes.
set -euo pipefail
cd "$(dirname "$0")/.."
directory="${1:-runs/demo}"

cat >&2 <<PLAN
The Gemma 3 recipe in miniature, in $directory: about 15 minutes on two CPU cores, without an accelerator.
  1. install   packages, into .venv unless an environment is active       once, minutes
  2. prepare   text of the Python standard library, tokenized and packed  half a minute
  3. teacher   pretrain, long_context                                     3 minutes
  4. student   pretrain, long_context and qat, with evaluations           10 minutes
  5. results   a sample, memory, exports, the report                      a minute
Stop it at any time; the same command resumes.
PLAN

if [[ -z "${VIRTUAL_ENV:-}" ]]; then
  if [[ ! -x .venv/bin/python ]]; then
    python="$(bash launch/find_python.sh)"
    "$python" -m venv .venv
  fi
  # shellcheck source=/dev/null
  source .venv/bin/activate
fi
printf '\n== 1. install for %s\n' "$(python --version)" >&2
python -m pip install --quiet --disable-pip-version-check -c launch/constraints.txt -e '.[prepare,plots]'
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
mkdir -p "$directory"

run() {
  printf '\n$ python -m gemma3_jax %s\n' "$*" >&2
  python -m gemma3_jax "$@"
}

printf '\n== 2. prepare\n' >&2
[[ -f "$directory/data/manifest.json" ]] || run prepare --config=experiments/demo_data.py --output="$directory/data"
printf '\n== 3. teacher\n' >&2
run train --config=experiments/demo.py:teacher --workdir="$directory/teacher" --config.data="$directory/data"
printf '\n== 4. student\n' >&2
[[ -f "$directory/documents.jsonl" ]] || python experiments/demo_documents.py "$directory/documents.jsonl"
run train --config=experiments/demo.py --workdir="$directory/student" --config.data="$directory/data" \
  --config.teacher="$directory/teacher" --config.documents="$directory/documents.jsonl"

printf '\n== 5. results\n' >&2
student="$directory/student" export="$directory/export"
rm -rf "$export" && mkdir -p "$export"
run generate --checkpoint="$student" --prompt='def main(argv):' --max_new_tokens=64 --seed=1
run evaluate --checkpoint="$student" --task=bytes --context=32768
run convert --source="$student" --target="$export/hf" --format=hf --quant=q4_0
run convert --source="$student" --target="$export/student.gguf" --format=gguf --quant=q4_0
run report --workdir="$student"
echo
python experiments/demo.py "$directory"
