#!/usr/bin/env bash
# What runs on a TPU host, or in a pod: said by tpu_vm.sh and gke.sh, which check what they say. The answer to a verb
# that went well is one line on stdout, "gemma3_jax HOST: ..."; errors go to stderr. Everything lives in ~/gemma3_jax:
# source-REVISION/ and `source` to the one in use, venv/, run/ (log, lock, and state: what the supervisor last wrote).
# shellcheck disable=SC2329  # functions are verbs, called by name
set -euo pipefail

home="$HOME/gemma3_jax"
run="$home/run"
mounts="${GEMMA3_JAX_MOUNTS:-/mnt/gcs}"
restart_seconds="${GEMMA3_JAX_RESTART_SECONDS:-10}" # for chips and ports to come free
readonly PREEMPTED=75 HUNG=124 BROKEN=71

answer() {
  printf 'gemma3_jax %s: %s\n' "$(hostname)" "$*"
}

fail() {
  answer "error: $*" >&2
  exit 1
}

# again COMMAND...: five attempts, as a fresh machine is still busy with its own updates.
again() {
  local attempt
  for attempt in 1 2 3 4 5; do
    "$@" && return
    sleep "$((attempt * restart_seconds))"
  done
  fail "failed five times: $*"
}

# is_running: there is a supervisor, which holds the lock, or a train that has lost its own.
is_running() {
  mkdir -p "$run"
  ! flock --nonblock "$run/lock" true || is_alive train gemma3_jax
}

# is_alive NAME WORD: whether the process of that name in the state is there, and still the one with this word in its
# command: numbers of processes are used again.
is_alive() {
  grep --quiet --no-messages "$2" "/proc/$(state "$1")/cmdline"
}

# state NAME: of the last run: token, supervisor and train (process ids), restarts, said.
state() {
  if [[ -f "$run/state" ]]; then sed -n "s/^$1=//p" "$run/state"; fi
}

# --- setup ---

setup() { # BUCKET ARCHIVE_IN_IT
  local revision="${2##*/source-}"
  revision="${revision%.tar.gz}"
  ! is_running || fail "a run is going on here; 'stop' it first"
  install_gcsfuse
  mount_bucket "$1"
  if [[ ! -d "$home/source-$revision" ]]; then
    mkdir -p "$home/partial-$revision"
    tar --extract --gzip --file="$mounts/$1/$2" --directory="$home/partial-$revision"
    mv "$home/partial-$revision" "$home/source-$revision"
  fi
  ln --symbolic --force --no-dereference "source-$revision" "$home/source"
  make_environment
  answer "set up with $revision"
}

install_gcsfuse() {
  command -v gcsfuse >/dev/null && return
  local key=/usr/share/keyrings/cloud.google.asc packages=https://packages.cloud.google.com/apt
  again curl --fail --silent --show-error --output "$home/key.asc" "$packages/doc/apt-key.gpg"
  sudo cp "$home/key.asc" "$key"
  echo "deb [signed-by=$key] $packages gcsfuse-$(lsb_release --codename --short) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  again sudo apt-get -qq update
  again sudo DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=600 install gcsfuse
}

# Hosts write what others read, so nothing may be answered from memory: on large machines gcsfuse would keep what it
# knows of files for good. Source: gcsfuse, docs/semantics.md (stat caching).
mount_bucket() { # BUCKET
  local place="$mounts/$1"
  mountpoint --quiet "$place" && return
  sudo mkdir -p "$place"
  sudo chown "$(id -u):$(id -g)" "$place"
  again gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 "$1" "$place" >&2
  ls "$place" >/dev/null ||
    fail "gs://$1 is mounted, but cannot be read: its roles do not include this machine's service account"
}

# The images of TPU VMs have Python 3.10.
make_environment() {
  local python
  if ! "$home/venv/bin/python" -m pip --version >/dev/null 2>&1; then # not there, or half made
    for python in python3.11 python3.12 python3; do
      "$python" -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break
      python=""
    done
    if [[ -n "$python" ]]; then
      "$python" -m venv --clear "$home/venv"
    else
      again python3 -m pip install --quiet --user uv
      again python3 -m uv venv --quiet --clear --seed --python=3.11 "$home/venv"
    fi
  fi
  again install_packages "$home/venv/bin/python" "$home/source"
}

install_packages() { # PYTHON SOURCE
  (cd "$2" && "$1" -m pip install --quiet --disable-pip-version-check -c launch/constraints.txt -e '.[tpu,prepare]')
}

# --- run ---

ready() { # BUCKET
  [[ -x "$home/venv/bin/python" && -d "$home/source" ]] || fail "nothing is set up here; 'setup' comes first"
  ! is_running || fail "a run is going on here ($(state said)); 'stop' it first"
  mount_bucket "$1"
  answer "ready"
}

start() { # TOKEN MAX_RESTARTS BUCKET LIBTPU_FLAGS ARGUMENT_OF_TRAIN...
  mkdir -p "$run"
  mount_bucket "$3" # before the lock is opened: gcsfuse would inherit it, and hold it for good
  exec 9>>"$run/lock"
  if ! flock --timeout 5 9 || is_alive train gemma3_jax; then
    [[ "$(state token)" == "$1" ]] || fail "a run is going on here ($(state said)); 'stop' it first"
    answer "started already"
    return
  fi
  write_state "$1" "" "" 0 "starting"
  # Its own session, and no terminal: what ends this connection does not end it. It inherits the lock.
  setsid bash "$0" supervise "$@" </dev/null >>"$run/log" 2>&1 &
  answer "started"
}

write_state() { # TOKEN SUPERVISOR TRAIN RESTARTS SAID
  printf '%s\n' "token=$1" "supervisor=$2" "train=$3" "restarts=$4" "said=$5" >"$run/state.partial"
  mv "$run/state.partial" "$run/state"
}

# supervise: train until it is done, again after what another attempt may mend.
supervise() { # as start
  local token="$1" max_restarts="$2" restarts=0 status said workdir
  export LIBTPU_INIT_ARGS="$4" JAX_PLATFORMS=tpu # without chips an error, not months on a CPU
  shift 4
  workdir="${1#--workdir=}"
  child="" stopping=""
  trap 'stopping=1; [[ -z "$child" ]] || kill -TERM "$child" 2>/dev/null || true' TERM INT
  write_state "$token" "$$" "" 0 "starting"
  cd "$home/source"
  claim "$workdir"
  while true; do
    said="running since $(date -u +%FT%TZ)"
    echo "$said, restarts $restarts: train $*"
    "$home/venv/bin/python" -m gemma3_jax train "$@" 9>&- &
    child=$!
    [[ -z "$stopping" ]] || kill -TERM "$child" # told between the two lines above
    write_state "$token" "$$" "$child" "$restarts" "$said"
    status=0
    await "$child" || status=$?
    child=""
    said="ended with $status at $(date -u +%FT%TZ): $(meaning "$status")"
    [[ -z "$stopping" ]] || said+="; stopped from outside"
    if [[ -n "$stopping" ]] || is_held || ! is_worth_another "$status"; then break; fi
    if ((restarts >= max_restarts)); then
      said+="; not started again after $restarts restarts (--max_restarts)"
      break
    fi
    echo "$said"
    copy_log "$workdir/logs" || true
    restarts=$((restarts + 1))
    write_state "$token" "$$" "" "$restarts" "$said; starting again"
    sleep "$restart_seconds" 9>&- &
    await $! || true
    if [[ -n "$stopping" ]] || is_held; then break; fi
  done
  echo "$said"
  copy_log "$workdir/logs" || echo "the log could not be copied to $workdir/logs"
  write_state "$token" "" "" "$restarts" "$said"
}

# claim WORKDIR: makes its lock file, which train opens on every host: of several that make a file at once, gcsfuse lets
# one and fails the others.
claim() {
  mkdir -p "$1"
  [[ -e "$1/.lock" ]] || : >>"$1/.lock" || true
}

# await PID: its exit status, although signals to this shell interrupt `wait`.
await() {
  local status
  while true; do
    status=0
    wait "$1" || status=$?
    kill -0 "$1" 2>/dev/null || break
  done
  return "$status"
}

# is_worth_another STATUS. 128 and more: killed, as by the kernel (137), or by JAX when another host is lost (134); but
# a second Ctrl-C or SIGTERM (130, 143) is somebody's wish.
is_worth_another() {
  (($1 == PREEMPTED || $1 == HUNG || $1 == BROKEN)) || (($1 >= 128 && $1 != 130 && $1 != 143))
}

meaning() { # STATUS
  case "$1" in
    0) echo "done" ;;
    1) echo "a mistake in what was asked; not started again" ;;
    70) echo "training went non-finite; not started again" ;;
    "$PREEMPTED") echo "stopped, saved" ;;
    "$HUNG") echo "hung" ;;
    "$BROKEN") echo "broke off with a traceback" ;;
    130 | 143) echo "stopped at once; not started again" ;;
    *) echo "crashed" ;;
  esac
}

status() {
  if is_running; then
    answer "$(state said), $(state restarts) restarts; $(tail -n 1 "$run/log")"
  elif [[ -f "$run/state" ]]; then
    # A supervisor that did not write its last word was killed, or the machine was started anew.
    answer "$([[ -z "$(state supervisor)" ]] || echo "lost while ")$(state said), $(state restarts) restarts"
  else
    answer "no run yet"
  fi
}

# hold: no more attempts. Said on all hosts before `stop`: once one of them is told to stop, all do, and those that
# gcloud has not come to yet would start again.
hold() {
  local how=""
  is_running || how="not running; "
  state token >"$run/held"
  answer "$how$(state said)"
}

is_held() {
  [[ -n "$(state token)" && "$(cat "$run/held" 2>/dev/null)" == "$(state token)" ]]
}

stop() { # SECONDS
  local seconds
  is_running || { answer "nothing is running; $(state said)" && return; }
  # Once: a second signal would end train without saving, and gcloud repeats what it could not say.
  if [[ "$(cat "$run/stopped" 2>/dev/null)" != "$(state token)" ]]; then
    for seconds in 1 2 3 4 5; do # a run that has just been started may not have said who it is
      if is_alive supervisor supervise; then
        kill -TERM "$(state supervisor)"
        break
      elif is_alive train gemma3_jax; then
        kill -TERM "$(state train)"
        break
      fi
      sleep 1
    done
    state token >"$run/stopped"
  fi
  for ((seconds = 0; seconds < $1; seconds++)); do
    is_running || break
    sleep 1
  done
  ! is_running || fail "told to save and stop, and not done after $1 s; 'status' says when it has ended"
  answer "$(state said)"
}

put_logs() { # BUCKET DIRECTORY
  mount_bucket "$1"
  copy_log "$2" || fail "the log cannot be copied to $2"
  answer "log copied"
}

copy_log() { # DIRECTORY
  [[ -f "$run/log" ]] || return 0
  mkdir -p "$1" && cp "$run/log" "$1/$(hostname).log"
}

# --- in a pod ---

# pod: train once, in place of this shell, so that the signals of Kubernetes reach it; the JobSet does the restarts.
pod() { # BUCKET ARGUMENT_OF_TRAIN...
  local bucket="$1"
  shift
  mountpoint --quiet "$mounts/$bucket" ||
    fail "gs://$bucket is not mounted at $mounts/$bucket; 'attach' makes it a storage of the cluster"
  claim "${1#--workdir=}"
  if ! python -c 'import importlib.util, sys; sys.exit(not importlib.util.find_spec("libtpu"))'; then
    install_packages python . || exit "$PREEMPTED" # an index that is out of reach may be there again
  fi
  exec python -m gemma3_jax train "$@"
}

main() {
  case "${1-}" in
    setup | ready | start | supervise | status | hold | stop | put_logs | pod) "$@" ;;
    *) fail "there is no verb ${1-}" ;;
  esac
}

# On one line: bash reads a script as it goes, and `setup` of another commit replaces this one while it runs.
main "$@"; exit
