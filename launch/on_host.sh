#!/usr/bin/env bash
# Runs on a TPU host or in a pod. tpu_vm.sh and gke.sh call it, with arguments that they have checked. A verb that
# succeeds prints one line on stdout, "gemma3_jax HOST: ..."; errors go to stderr. All files are in ~/gemma3_jax:
# source-REVISION/, and `source`, a link to the one in use; venv/; run/ (log, lock, and the state that the supervisor
# writes).
# shellcheck disable=SC2329  # functions are verbs, called by name
set -euo pipefail

home="$HOME/gemma3_jax"
run="$home/run"
mounts="${GEMMA3_JAX_MOUNTS:-/mnt/gcs}"
restart_seconds="${GEMMA3_JAX_RESTART_SECONDS:-10}" # until chips and ports are free again
readonly PREEMPTED=75 HUNG=124 BROKEN=71

answer() {
  printf 'gemma3_jax %s: %s\n' "$(hostname)" "$*"
}

fail() {
  answer "error: $*" >&2
  exit 1
}

# retry COMMAND...: makes five attempts, as a new machine is still busy with updates.
retry() {
  local attempt
  for attempt in 1 2 3 4 5; do
    "$@" && return
    sleep "$((attempt * restart_seconds))"
  done
  fail "failed five times: $*"
}

# is_running: whether there is a supervisor, which holds the lock, or a train whose supervisor was killed.
is_running() {
  mkdir -p "$run"
  ! flock --nonblock "$run/lock" true || is_alive train gemma3_jax
}

# is_alive NAME WORD: whether the process that the state has under this name exists and has this word in its command,
# as process IDs are reused.
is_alive() {
  grep --quiet --no-messages "$2" "/proc/$(state "$1")/cmdline"
}

# state NAME: of the last run: token, supervisor and train (process IDs), restarts, message.
state() {
  if [[ -f "$run/state" ]]; then sed -n "s/^$1=//p" "$run/state"; fi
}

# --- setup ---

setup() { # BUCKET ARCHIVE_IN_IT
  local revision="${2##*/source-}"
  revision="${revision%.tar.gz}"
  ! is_running || fail "a run is in progress here; 'stop' it first"
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
  retry curl --fail --silent --show-error --output "$home/key.asc" "$packages/doc/apt-key.gpg"
  sudo cp "$home/key.asc" "$key"
  echo "deb [signed-by=$key] $packages gcsfuse-$(lsb_release --codename --short) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  retry sudo apt-get -qq update
  retry sudo DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=600 install gcsfuse
}

# Hosts read what others write, so metadata must not be cached: on large machines gcsfuse would cache it for good.
# Source: gcsfuse, docs/semantics.md (stat caching).
mount_bucket() { # BUCKET
  local mount="$mounts/$1"
  mountpoint --quiet "$mount" && return
  sudo mkdir -p "$mount"
  sudo chown "$(id -u):$(id -g)" "$mount"
  retry gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 "$1" "$mount" >&2
  ls "$mount" >/dev/null ||
    fail "gs://$1 is mounted, but cannot be read: this machine's service account has no role on it"
}

# Some images of TPU VMs have Python 3.10; gemma3_jax needs 3.11.
make_environment() {
  local python
  if ! "$home/venv/bin/python" -m pip --version >/dev/null 2>&1; then # missing, or incomplete
    for python in python3.13 python3.12 python3.11 python3; do
      "$python" -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break
      python=""
    done
    if [[ -n "$python" ]]; then
      "$python" -m venv --clear "$home/venv"
    else
      retry python3 -m pip install --quiet --user uv
      retry python3 -m uv venv --quiet --clear --seed --python=3.13 "$home/venv"
    fi
  fi
  retry install_packages "$home/venv/bin/python" "$home/source"
}

install_packages() { # PYTHON SOURCE
  (cd "$2" && "$1" -m pip install --quiet --disable-pip-version-check -c launch/constraints.txt -e '.[tpu,prepare]')
}

# --- run ---

ready() { # BUCKET
  [[ -x "$home/venv/bin/python" && -d "$home/source" ]] || fail "this host has not been set up; run 'setup' first"
  ! is_running || fail "a run is in progress here ($(state message)); 'stop' it first"
  mount_bucket "$1"
  answer "ready"
}

start() { # TOKEN MAX_RESTARTS BUCKET LIBTPU_FLAGS ARGUMENT_OF_TRAIN...
  mkdir -p "$run"
  mount_bucket "$3" # before the lock is opened: gcsfuse would inherit it, and never release it
  exec 9>>"$run/lock"
  if ! flock --timeout 5 9 || is_alive train gemma3_jax; then
    [[ "$(state token)" == "$1" ]] || fail "a run is in progress here ($(state message)); 'stop' it first"
    answer "started already"
    return
  fi
  write_state "$1" "" "" 0 "starting"
  # A session of its own, without a terminal, outlives this connection. It inherits the lock.
  setsid bash "$0" supervise "$@" </dev/null >>"$run/log" 2>&1 &
  answer "started"
}

write_state() { # TOKEN SUPERVISOR TRAIN RESTARTS MESSAGE
  printf '%s\n' "token=$1" "supervisor=$2" "train=$3" "restarts=$4" "message=$5" >"$run/state.partial"
  mv "$run/state.partial" "$run/state"
}

# supervise: runs train until it is done, and restarts it after an error that may not occur again.
supervise() { # as start
  local token="$1" max_restarts="$2" restarts=0 status message workdir
  export LIBTPU_INIT_ARGS="$4" JAX_PLATFORMS=tpu # without chips it fails, rather than train on the CPU
  shift 4
  workdir="${1#--workdir=}"
  child="" stopping=""
  trap 'stopping=1; [[ -z "$child" ]] || kill -TERM "$child" 2>/dev/null || true' TERM INT
  write_state "$token" "$$" "" 0 "starting"
  cd "$home/source"
  claim "$workdir"
  while true; do
    message="running since $(date -u +%FT%TZ)"
    echo "$message, restarts $restarts: train $*"
    "$home/venv/bin/python" -m gemma3_jax train "$@" 9>&- &
    child=$!
    [[ -z "$stopping" ]] || kill -TERM "$child" # SIGTERM came between the two lines above
    write_state "$token" "$$" "$child" "$restarts" "$message"
    status=0
    await "$child" || status=$?
    child=""
    message="ended with $status at $(date -u +%FT%TZ): $(meaning "$status")"
    [[ -z "$stopping" ]] || message+="; stopped from outside"
    if [[ -n "$stopping" ]] || is_held || ! should_restart "$status"; then break; fi
    if ((restarts >= max_restarts)); then
      message+="; not restarted after $restarts restarts (--max_restarts)"
      break
    fi
    echo "$message"
    copy_log "$workdir/logs" || true
    restarts=$((restarts + 1))
    write_state "$token" "$$" "" "$restarts" "$message; restarting"
    sleep "$restart_seconds" 9>&- &
    await $! || true
    if [[ -n "$stopping" ]] || is_held; then break; fi
  done
  echo "$message"
  copy_log "$workdir/logs" || echo "the log could not be copied to $workdir/logs"
  write_state "$token" "" "" "$restarts" "$message"
}

# claim WORKDIR: creates its lock file, which train opens on every host: when several create a file at once, gcsfuse
# fails all but one.
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

# should_restart STATUS. 128 and more: killed, as by the kernel (137), or by JAX when another host is lost (134); but
# a second Ctrl-C or SIGTERM (130, 143) is intended.
should_restart() {
  (($1 == PREEMPTED || $1 == HUNG || $1 == BROKEN)) || (($1 >= 128 && $1 != 130 && $1 != 143))
}

meaning() { # STATUS
  case "$1" in
    0) echo "done" ;;
    1) echo "invalid input; not restarted" ;;
    70) echo "the loss became non-finite; not restarted" ;;
    "$PREEMPTED") echo "stopped and saved" ;;
    "$HUNG") echo "hung" ;;
    "$BROKEN") echo "failed with a traceback" ;;
    130 | 143) echo "stopped at once, without saving; not restarted" ;;
    *) echo "crashed" ;;
  esac
}

status() {
  if is_running; then
    answer "$(state message), $(state restarts) restarts; $(tail -n 1 "$run/log")"
  elif [[ -f "$run/state" ]]; then
    # A supervisor that did not write how the run ended was killed, or the machine was rebooted.
    answer "$([[ -z "$(state supervisor)" ]] || echo "lost while ")$(state message), $(state restarts) restarts"
  else
    answer "no run yet"
  fi
}

# hold: no more restarts. Called on all hosts before `stop`: once train is stopped on one of them it stops on all, and
# hosts that gcloud has not reached yet would restart it.
hold() {
  local prefix=""
  is_running || prefix="not running; "
  state token >"$run/held"
  answer "$prefix$(state message)"
}

is_held() {
  [[ -n "$(state token)" && "$(cat "$run/held" 2>/dev/null)" == "$(state token)" ]]
}

stop() { # SECONDS
  local seconds
  is_running || { answer "nothing is running; $(state message)" && return; }
  # Once: a second signal would end train without saving, and gcloud repeats a command after a lost connection.
  if [[ "$(cat "$run/stopped" 2>/dev/null)" != "$(state token)" ]]; then
    for seconds in 1 2 3 4 5; do # a run that has just started may not have written its process IDs
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
  ! is_running || fail "SIGTERM was sent, and train has not ended after $1 s; 'status' shows when it has"
  answer "$(state message)"
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

# pod: replaces this shell with train, so that signals of Kubernetes reach it; the JobSet restarts it.
pod() { # BUCKET ARGUMENT_OF_TRAIN...
  local bucket="$1"
  shift
  mountpoint --quiet "$mounts/$bucket" ||
    fail "gs://$bucket is not mounted at $mounts/$bucket; run 'attach' for this bucket first"
  claim "${1#--workdir=}"
  if ! python -c 'import importlib.util, sys; sys.exit(not importlib.util.find_spec("libtpu"))'; then
    install_packages python . || exit "$PREEMPTED" # the package index may be reachable again
  fi
  exec python -m gemma3_jax train "$@"
}

main() {
  case "${1-}" in
    setup | ready | start | supervise | status | hold | stop | put_logs | pod) "$@" ;;
    *) fail "there is no verb ${1-}" ;;
  esac
}

# On one line: bash reads a script while it runs it, and `setup` of another commit replaces this file meanwhile.
main "$@"; exit
