# shellcheck shell=bash
# shellcheck disable=SC2034  # what is set here is used there
# What the launchers for pods share: flags, checks of what can be checked before anything is made, dry runs, quoting.
# Sourced by tpu_vm.sh and gke.sh, which set `usage`.

((BASH_VERSINFO[0] > 4 || (BASH_VERSINFO[0] == 4 && BASH_VERSINFO[1] >= 4))) || {
  echo "error: this is bash $BASH_VERSION; the launchers need 4.4 or later (macOS: brew install bash)" >&2
  exit 1
}
launch="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(dirname "$launch")"
program="${0##*/}"
# shellcheck source=SCRIPTDIR/tpus.sh
source "$launch/tpus.sh"
# shellcheck source=SCRIPTDIR/tpu_flags.sh
source "$launch/tpu_flags.sh"

readonly MOUNTS="${GEMMA3_JAX_MOUNTS:-/mnt/gcs}" # a bucket is mounted below, by its name, on hosts and in pods
readonly MAX_NAME=40                              # characters; xpk allows no more, and gcloud appends numbers

declare -A flag=() # what was given by name, or its default; a switch is 1 or empty
declare -a after=() # what was given after --
answer=""  # of `ask`
scratch="" # a directory that is gone when the script ends

say() {
  printf '%s: %s\n' "$program" "$*" >&2
}

fail() {
  say "error: $*"
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

# run COMMAND...: does it; in a dry run prints it instead.
run() {
  if is_dry; then
    printf '%s\n' "$(quoted "$@")"
  else
    "$@"
  fi
}

# ask DEFAULT COMMAND...: sets `answer` to what it prints, and returns its status; in a dry run to DEFAULT.
ask() {
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
  is_dry || command -v "$1" >/dev/null || fail "$1 is not installed ($2); with --dry_run nothing is needed"
}

# nearest WORD CHOICE...: the choice that the fewest changes of letters make of it.
nearest() {
  printf '%s\n' "$@" | awk '
    function min(a, b) { return a < b ? a : b }
    NR == 1 { word = $0; next }
    {
      for (j = 0; j <= length(word); j++) row[j] = j
      for (i = 1; i <= length($0); i++) {
        corner = row[0]; row[0] = i
        for (j = 1; j <= length(word); j++) {
          above = row[j]
          row[j] = min(min(row[j], row[j - 1]) + 1, corner + (substr($0, i, 1) != substr(word, j, 1)))
          corner = above
        }
      }
      if (best == "" || row[length(word)] < least) { least = row[length(word)]; best = $0 }
    }
    END { print best }'
}

# dispatch "VERB ..." ARGUMENT...: the function verb_VERB of the first argument; `usage` for help.
dispatch() {
  local verb="${2-}" verbs
  read -ra verbs <<<"$1"
  case "$verb" in
    -h | --help | help | "")
      printf '%s\n' "${usage:?}"
      [[ -n "$verb" ]] && exit 0 || exit 1
      ;;
  esac
  [[ " ${verbs[*]} " == *" $verb "* ]] ||
    fail "there is no verb $(quoted "$verb"); did you mean $(nearest "$verb" "${verbs[@]}")? (there are: ${verbs[*]})"
  shift 2
  "verb_$verb" "$@"
}

# --- flags ---

# read_flags "NAME! NAME=DEFAULT NAME? ..." ARGUMENT...: fills `flag` and `after`. ! is needed, ? is a switch.
read_flags() {
  local -a words
  local -A kind=() given=()
  local word name value
  read -ra words <<<"${1//$'\n'/ } dry_run? help?"
  shift
  for word in "${words[@]}"; do
    name="${word%%[!a-z_]*}"
    kind[$name]="${word:${#name}:1}"
    flag[$name]=""
    [[ "$word" == *=* ]] && flag[$name]="${word#*=}"
  done
  while (($#)); do
    word="$1"
    shift
    [[ "$word" == -- ]] && after=("$@") && break
    [[ "$word" == --* ]] ||
      fail "$(quoted "$word") is no flag: flags look like --name=value; what train gets comes after --"
    name="${word#--}"
    name="${name%%=*}"
    [[ -n "${kind[$name]-}" ]] ||
      fail "there is no flag --$name here; did you mean --$(nearest "$name" "${!kind[@]}")? (--help shows all)"
    [[ -z "${given[$name]-}" ]] || fail "--$name is given twice"
    given[$name]=1
    if [[ "${kind[$name]}" == "?" ]]; then
      [[ "$word" == "--$name" ]] || fail "--$name is a switch, and takes no value"
      flag[$name]=1
    else
      value="${word#*=}"
      [[ "$word" == --*=* && -n "$value" ]] || fail "--$name needs a value: --$name=VALUE"
      flag[$name]="$value"
    fi
  done
  [[ -z "${flag[help]}" ]] || { printf '%s\n' "${usage:?}" && exit 0; }
  for word in "${words[@]}"; do
    name="${word%!}"
    [[ "$word" != *! || -n "${flag[$name]}" ]] || fail "--$name is needed: --$name=VALUE (--help shows an example)"
  done
  for value in "${flag[@]}" "${after[@]}"; do
    [[ "$value" != *[[:cntrl:]]* ]] || fail "$(quoted "$value") has a line break or another control character in it"
  done
}

# --- checks ---

# check_name FLAG: of a name that may be left out, nothing.
check_name() {
  local name="${flag[$1]-}" legal
  [[ -z "$name" ]] && return
  [[ "$name" =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ && ${#name} -le $MAX_NAME ]] && return
  legal="${name,,}"
  legal="${legal//[_. ]/-}"
  legal="${legal//[!a-z0-9-]/}"
  while [[ "$legal" == [!a-z]* ]]; do legal="${legal#?}"; done
  legal="${legal:0:$MAX_NAME}"
  while [[ "$legal" == *- ]]; do legal="${legal%-}"; done
  fail "--$1 is $(quoted "$name"); it must be at most $MAX_NAME lower-case letters, digits and -, a letter first and" \
    "no - last, such as ${legal:-gemma3}"
}

check_project() {
  [[ "${flag[project]}" =~ ^([a-z0-9.-]+:)?[a-z][-a-z0-9]{4,28}[a-z0-9]$ ]] ||
    fail "--project is $(quoted "${flag[project]}"); it must be the id of a project (not its name or number): 6 to" \
      "30 lower-case letters, digits and -; 'gcloud projects list' shows them"
}

check_zone() {
  local zone="${flag[zone]}" hint="us-central1-a"
  [[ "$zone" =~ ^[a-z]+-[a-z]+[0-9]+-(ai[0-9]+)?[a-z]$ ]] && return
  [[ "$zone" =~ ^[a-z]+-[a-z]+[0-9]+$ ]] &&
    fail "--zone is $zone, which is a region; its zones end in a letter, such as $zone-a"
  # shellcheck disable=SC2046
  hint="$(nearest "$zone" $(awk '{ print $3 }' <<<"$GENERATIONS" | tr ',' ' '))"
  fail "--zone is $(quoted "$zone"); it must look like $hint ('gcloud compute tpus locations list' shows all)"
}

# check_count NAME LEAST MOST
check_count() {
  if [[ "${flag[$1]}" =~ ^(0|[1-9][0-9]{0,6})$ ]] && ((flag[$1] >= $2 && flag[$1] <= $3)); then return; fi
  fail "--$1 is $(quoted "${flag[$1]}"); it must be a whole number from $2 to $3"
}

# check_slices: --job, or --accelerator and --num_slices; afterwards the latter two and `generation` are set.
check_slices() {
  local job="${flag[job]}" near
  if [[ -n "$job" ]]; then
    [[ -z "${flag[accelerator]}${flag[num_slices]}" ]] ||
      fail "--job=$job means --accelerator=$(column "$JOBS" "$job" 2) --num_slices=$(column "$JOBS" "$job" 3); leave" \
        "these out, or --job"
    flag[accelerator]="$(column "$JOBS" "$job" 2)"
    flag[num_slices]="$(column "$JOBS" "$job" 3)"
    [[ -n "${flag[accelerator]}" ]] ||
      fail "--job is $(quoted "$job"); the published jobs are $(keys "$JOBS")"
  fi
  flag[num_slices]="${flag[num_slices]:-1}"
  [[ -n "${flag[accelerator]}" ]] ||
    fail "--accelerator is needed, such as --accelerator=v5litepod-16, or --job, such as --job=1b"
  generation="$(column "$SLICES" "${flag[accelerator]}" 2)"
  if [[ -z "$generation" ]]; then
    near="$(nearest_slices "${flag[accelerator]}")"
    [[ -n "$near" ]] || near="$(listed "$(awk '$3 == 16 { print $1 }' <<<"$SLICES")")"
    fail "--accelerator is $(quoted "${flag[accelerator]}"); no such slice is in launch/tpus.sh; the nearest: $near"
  fi
  check_count num_slices 1 256
}

# check_url FLAG: gs://BUCKET/PATH; sets `bucket`. With "bucket" after it: gs://BUCKET alone.
check_url() {
  local url="${flag[$1]}" form='gs://BUCKET/DIRECTORY'
  [[ "${2-}" == bucket ]] && form='gs://BUCKET'
  [[ "$url" == gs://* ]] || fail "--$1 is $(quoted "$url"); it must look like $form: gs://${url##/}"
  url="${url%/}"
  bucket="${url#gs://}"
  bucket="${bucket%%/*}"
  [[ "$bucket" =~ ^[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]$ ]] ||
    fail "--$1 names the bucket $(quoted "$bucket"); buckets are 3 to 63 lower-case letters, digits, - _ and ."
  if [[ "$form" == gs://BUCKET ]]; then
    [[ "$url" == "gs://$bucket" ]] || fail "--$1 is $(quoted "${flag[$1]}"); it must be a bucket alone: gs://$bucket"
  else
    [[ "$url" =~ ^gs://[^/]+(/[A-Za-z0-9._=+@,-]+)+$ && ! "$url" =~ /\.\.?(/|$) ]] ||
      fail "--$1 is $(quoted "${flag[$1]}"); it must be a directory in a bucket, of letters, digits and . _ = + @ ," \
        "-: gs://$bucket/runs/${flag[name]}"
  fi
  flag[$1]="$url"
}

# check_bucket_is_there: and renames a directory in one step, as checkpoints appear by that.
check_bucket_is_there() {
  ask True gcloud storage buckets describe "gs://$bucket" '--format=value(hierarchicalNamespace.enabled)' --raw ||
    fail "gs://$bucket is not there, or not for this account (above)"
  [[ "$answer" == True ]] ||
    fail "gs://$bucket has no hierarchical namespace, so that renaming a checkpoint's directory would not be one" \
      "step; make one: gcloud storage buckets create gs://NAME --location=REGION --uniform-bucket-level-access" \
      "--enable-hierarchical-namespace"
}

# --- what train gets ---

# mounted TEXT: with the path under MOUNTS for each gs:// of `bucket`, which is the only one that is mounted.
mounted() {
  local text="$1" other
  while [[ "$text" =~ gs://([^/:,=[:space:]]*) ]]; do
    other="${BASH_REMATCH[1]}"
    [[ "$other" == "$bucket" ]] ||
      fail "$(quoted "$1") is in the bucket $(quoted "$other"), and only that of --workdir is mounted: $bucket"
    text="${text/"gs://$bucket"/"$MOUNTS/$bucket"}"
  done
  printf '%s' "$text"
}

# train_arguments: sets `arguments` to those of train, with mounted paths, out of --workdir and what comes after --.
train_arguments() {
  local word path has_config="" text
  ((${#after[@]})) ||
    fail "nothing says what to train: $program run ... -- --config=experiments/recipe.py:1b" \
      "--config.data=gs://$bucket/data"
  text="$(mounted "${flag[workdir]}")"
  arguments=("--workdir=$text")
  for word in "${after[@]}"; do
    [[ "$word" == --workdir* ]] && fail "--workdir comes before --, as gs://BUCKET/DIRECTORY"
    if [[ "$word" == --config=* ]]; then
      has_config=1 path="${word#--config=}"
      path="${path%%:*}"
      [[ "$path" == /* || -f "$root/$path" ]] ||
        fail "$(quoted "$word"): there is no file $(quoted "$path") in this checkout"
    fi
    text="$(mounted "$word")" # on a line of its own: a failure within an array would go unnoticed
    arguments+=("$text")
  done
  [[ -n "$has_config" ]] || fail "what comes after -- has no --config=FILE; such as --config=experiments/recipe.py:1b"
}

# --- this checkout ---

# pack_source: the files that git tracks, as they are now, or those of --commit, as the archive `archive`; `revision`
# names it.
pack_source() {
  local index
  git -C "$root" rev-parse --git-dir >/dev/null 2>&1 ||
    fail "$root is no git checkout, so what to copy is not known; clone the repository"
  if is_dry; then
    scratch="${TMPDIR:-/tmp}/gemma3_jax.DRY_RUN"
  else
    scratch="$(mktemp -d)"
    trap 'rm -rf "$scratch"' EXIT
  fi
  archive="$scratch/source.tar.gz"
  if [[ -n "${flag[commit]}" ]]; then
    ask "${flag[commit]}" git -C "$root" rev-parse --verify --quiet "${flag[commit]}^{commit}" ||
      fail "--commit is $(quoted "${flag[commit]}"); this checkout has no such commit"
  else
    index=(env "GIT_INDEX_FILE=$scratch/index" git -C "$root")
    run "${index[@]}" read-tree HEAD
    run "${index[@]}" add --update
    ask TREE "${index[@]}" write-tree
    warn_of_untracked
  fi
  revision="$answer"
  run git -C "$root" archive --format=tar.gz "--output=$archive" "$revision"
}

warn_of_untracked() {
  local files
  files="$(git -C "$root" ls-files --others --exclude-standard -- '*.py')"
  [[ -z "$files" ]] || say "note: git does not track these, so they are not copied: $(listed "$files")"
}
