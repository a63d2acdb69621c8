# shellcheck shell=bash
# shellcheck disable=SC2034  # what is set here is used in the scripts that source this
# Shared by tpu_vm.sh and gke.sh: checked flags, dry runs, quoting, the archive of this checkout.

((BASH_VERSINFO[0] > 4 || (BASH_VERSINFO[0] == 4 && BASH_VERSINFO[1] >= 4))) || {
  echo "error: this is bash $BASH_VERSION; the launchers need 4.4 or later (macOS: brew install bash)" >&2
  exit 1
}
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
program="${0##*/}"
python="${PYTHON:-python3}"

declare -A flag=()       # the value of each flag of the verb, and what follows from them: launch/check.py
declare -a arguments=()  # of train
declare -a where=()      # flags of gcloud and xpk: the project and zone
answer=""                # the output of `query`
scratch=""               # a directory that is deleted when the script ends
archive="" revision=""   # of this checkout: `pack_source`

note() {
  printf '%s: %s\n' "$program" "$*" >&2
}

fail() {
  note "error: $*"
  exit 1
}

# quoted WORD...: as a shell reads them back.
quoted() {
  local word text=""
  for word; do
    [[ "$word" =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]] || word="${word@Q}"
    text+=" $word"
  done
  printf '%s' "${text:1}"
}

is_dry() {
  [[ -n "${flag[dry_run]}" ]]
}

# run COMMAND...: runs it; a dry run prints it instead.
run() {
  if is_dry; then
    printf '%s\n' "$(quoted "$@")"
  else
    "$@"
  fi
}

# query DEFAULT COMMAND...: sets `answer` to the output of the command, in a dry run to DEFAULT; returns its status.
query() {
  answer="$1"
  shift
  if is_dry; then
    run "$@"
  else
    answer="$("$@")"
  fi
}

# need TOOL HOW_TO_GET_IT
need() {
  is_dry || command -v "$1" >/dev/null || fail "$1 is not installed ($2); --dry_run works without it"
}

need_gcloud() {
  need gcloud "https://cloud.google.com/sdk/docs/install"
}

# isolated_python ARGUMENT...: Python without packages, which launch/check.py does not need.
isolated_python() {
  (cd "$root" && "$python" -ES "$@")
}

check() { # as launch/check.py
  isolated_python -m launch.check "$@"
}

# main VERB ARGUMENT...: fills `flag`, `arguments` and `where`, and runs verb_VERB.
main() {
  local lines line status=0
  isolated_python -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null ||
    fail "$python is not Python 3.10 or later; PYTHON=PATH names another"
  lines="$(check "$program" "$@")" || status=$?
  ((status != 2)) || { printf '%s\n' "$lines" && exit "$(($# == 0))"; } # it is the help text
  ((status == 0)) || exit 1
  while IFS= read -r line; do
    if [[ "$line" == argument=* ]]; then
      arguments+=("${line#*=}")
    else
      flag[${line%%=*}]="${line#*=}"
    fi
  done <<<"$lines"
  where=("--project=${flag[project]}" "--zone=${flag[zone]}")
  "verb_${flag[verb]}"
}

# check_bucket: that it exists, and renames a directory in one step, as a checkpoint appears by such a rename.
check_bucket() {
  local bucket="gs://${flag[bucket]}"
  query True gcloud storage buckets describe "$bucket" '--format=value(hierarchicalNamespace.enabled)' --raw ||
    fail "$bucket does not exist, or this account has no access to it (above)"
  [[ "$answer" == True ]] ||
    fail "$bucket has no hierarchical namespace, so that renaming the directory of a checkpoint would not be one step;" \
      "create one that has: gcloud storage buckets create gs://NAME --location=REGION --uniform-bucket-level-access" \
      "--enable-hierarchical-namespace"
}

# pack_source: archives the files that git tracks, as they are, or those of --commit. Sets `archive` and `revision`.
pack_source() {
  local index
  git -C "$root" rev-parse --git-dir >/dev/null 2>&1 ||
    fail "$root is not a git checkout, so the files to copy are not known; clone the repository"
  if is_dry; then
    scratch="${TMPDIR:-/tmp}/gemma3_jax.DRY_RUN"
  else
    scratch="$(mktemp -d)"
    trap 'rm -rf "$scratch"' EXIT
  fi
  archive="$scratch/source.tar.gz"
  if [[ -n "${flag[commit]}" ]]; then
    query "${flag[commit]}" git -C "$root" rev-parse --verify --quiet "${flag[commit]}^{commit}" ||
      fail "--commit is $(quoted "${flag[commit]}"); this checkout has no such commit"
  else
    index=(env "GIT_INDEX_FILE=$scratch/index" git -C "$root")
    run "${index[@]}" read-tree HEAD
    run "${index[@]}" add --update
    query TREE "${index[@]}" write-tree
    note_untracked
  fi
  revision="$answer"
  run git -C "$root" archive --format=tar.gz "--output=$archive" "$revision"
}

note_untracked() {
  local files
  files="$(git -C "$root" ls-files --others --exclude-standard -- '*.py')"
  [[ -z "$files" ]] || note "note: git does not track these files, so they are not copied: ${files//$'\n'/, }"
}
