#!/usr/bin/env bash
# Trains on TPU VMs: bash launch/tpu_vm.sh VERB --flag=value ...; --help says all.
set -euo pipefail
# shellcheck source=SCRIPTDIR/pods.sh
source "$(dirname "${BASH_SOURCE[0]}")/pods.sh"

usage="usage: bash launch/tpu_vm.sh VERB --name=NAME --project=PROJECT --zone=ZONE [--flag=value ...]

Trains on Cloud TPU VMs, of one slice or of several. Every verb may be repeated, and takes --dry_run, which prints all
of its commands and runs none.

verbs:
  create  asks for the slices as a queued resource, once all that can be checked is. --bucket=gs://BUCKET and
          --job=270m|1b|4b|12b|27b (the published layout), or --accelerator=v5litepod-16 [--num_slices=1];
          [--spot | --reserved] [--valid_until=6h] [--service_account=EMAIL] [--network=N] [--subnetwork=N]
          [--internal_ips] [--runtime_version=V]
  setup   on all hosts: gcsfuse and the bucket, this checkout (tracked files as they are, or [--commit=REV]), its
          packages. --bucket=gs://BUCKET
  run     on all hosts, detached: train, and train again after 71 (a traceback), 75 (stopped, saved), 124 (hung) or a
          crash, at most [--max_restarts=50] times; never after 1, 70, 130 or 143. Refuses if a run is going on; if it
          came to some hosts only, 'stop', and then again. A host that starts anew does not come back by itself: the same.
          --workdir=gs://BUCKET/DIRECTORY [--libtpu_flags='...'] -- --config=FILE [other flags of train]
  status  of the queued resource, and of the run on every host
  logs    of all hosts, into WORKDIR/logs and from there to [--to=logs/NAME]. --workdir=gs://BUCKET/DIRECTORY
  stop    SIGTERM to the run: it saves, and is not started again. [--wait_seconds=900]
  delete  the queued resource and its machines, not the bucket; only with --yes

Reaching hosts: [--internal_ip | --iap]; for several, gcloud wants the key in an agent: ssh-add
~/.ssh/google_compute_engine. train takes no gs:// itself: every host has the bucket mounted at
$MOUNTS/BUCKET, and each gs://BUCKET/... given to train becomes the path there. Machines that were taken away
(SUSPENDED): delete, create, setup, run, with the same --workdir; train goes on from its last checkpoint.

example:
  pod='--name=gemma3-1b --project=my-project --zone=us-central1-a'
  bash launch/tpu_vm.sh create \$pod --job=1b --bucket=gs://my-bucket --spot
  bash launch/tpu_vm.sh status \$pod                                      # until it is ACTIVE
  bash launch/tpu_vm.sh setup \$pod --bucket=gs://my-bucket
  bash launch/tpu_vm.sh run \$pod --workdir=gs://my-bucket/runs/1b -- --config=experiments/recipe.py:1b \\
      --config.data=gs://my-bucket/data --config.teacher=gs://my-bucket/teacher
  bash launch/tpu_vm.sh delete \$pod --yes"

readonly ON_HOST=gemma3_jax_host.sh # launch/on_host.sh, in the home directory of a host
queued=(gcloud compute tpus queued-resources)
declare -a place arguments # of gcloud: where; of train
generation="" bucket="" archive="" revision="" state="" slices="" slice="" hosts=""

# prepare SPEC ARGUMENT...: reads the flags, and checks those that every verb has.
prepare() {
  local spec="name! project! zone! internal_ip? iap? $1"
  shift
  read_flags "$spec" "$@"
  check_name name
  check_project
  check_zone
  [[ -z "${flag[internal_ip]}" || -z "${flag[iap]}" ]] || fail "give --internal_ip or --iap, not both"
  place=("--project=${flag[project]}" "--zone=${flag[zone]}")
}

need_gcloud() {
  need gcloud "https://cloud.google.com/sdk/docs/install"
}

# look_up DEFAULT: `state`, `slices` (how many) and `slice` (which) of the queued resource; empty if there is none.
look_up() {
  local fields="state.state, tpu.nodeSpec.len(), tpu.nodeSpec[0].node.acceleratorType.basename()" several=""
  fields+=", tpu.nodeSpec[0].multisliceParams.nodeCount"
  ask "$1" "${queued[@]}" list "${place[@]}" "--filter=name ~ /${flag[name]}$" \
    "--format=value($fields)" ||
    fail "the queued resources of ${flag[project]} in ${flag[zone]} cannot be listed (above)"
  read -r state slices slice several <<<"$answer" || true
  slices="${several:-$slices}" # of one that still waits there is one entry for all of its slices
}

delete_command() {
  quoted bash launch/tpu_vm.sh delete "--name=${flag[name]}" "${place[@]}" --yes
}

# --- the machines ---

verb_create() {
  prepare "accelerator= job= num_slices= bucket! spot? reserved? valid_until= service_account= network= subnetwork=
    internal_ips? runtime_version=" "$@"
  check_slices
  check_url bucket bucket
  [[ -z "${flag[spot]}" || -z "${flag[reserved]}" ]] || fail "give --spot or --reserved, not both"
  [[ -z "${flag[valid_until]}" || "${flag[valid_until]}" =~ ^[1-9][0-9]*[smhd]$ ]] ||
    fail "--valid_until is $(quoted "${flag[valid_until]}"); it must be a duration, such as 6h"
  need_gcloud
  local version="${flag[runtime_version]:-$(column "$GENERATIONS" "$generation" 2)}"
  check_with_the_cloud "$version"
  look_up ""
  [[ -z "$state" ]] || { meet_what_is_there && return; }
  local command=("${queued[@]}" create "${flag[name]}" "${place[@]}" "--accelerator-type=${flag[accelerator]}"
    "--runtime-version=$version")
  # Nodes are NAME-0, NAME-1, ... however many there are: `count_hosts` goes by these names.
  if ((flag[num_slices] == 1)); then
    command+=("--node-id=${flag[name]}-0")
  else
    command+=("--node-count=${flag[num_slices]}" "--node-prefix=${flag[name]}")
  fi
  [[ -z "${flag[spot]}" ]] || command+=(--spot)
  [[ -z "${flag[reserved]}" ]] || command+=(--reserved)
  [[ -z "${flag[valid_until]}" ]] || command+=("--valid-until-duration=${flag[valid_until]}")
  [[ -z "${flag[service_account]}" ]] || command+=("--service-account=${flag[service_account]}")
  [[ -z "${flag[network]}" ]] || command+=("--network=${flag[network]}")
  [[ -z "${flag[subnetwork]}" ]] || command+=("--subnetwork=${flag[subnetwork]}")
  [[ -z "${flag[internal_ips]}" ]] || command+=(--internal-ips)
  run "${command[@]}" || fail "the cloud refused ${flag[num_slices]} x ${flag[accelerator]} (above)"
  is_dry ||
    say "${flag[name]}: asked for ${flag[num_slices]} x ${flag[accelerator]}; 'status' says when it is ACTIVE, then" \
      "comes 'setup'"
}

# What only the cloud knows, and what costs nothing to ask.
check_with_the_cloud() {
  local where="${flag[project]}, ${flag[zone]}"
  ask "" gcloud compute tpus accelerator-types describe "${flag[accelerator]}" "${place[@]}" '--format=value(type)' ||
    fail "$where: no ${flag[accelerator]} there, or no access (above); zones that had $generation:" \
      "$(column "$GENERATIONS" "$generation" 3)"
  ask "" gcloud compute tpus tpu-vm versions describe "$1" "${place[@]}" '--format=value(version)' ||
    fail "$where: no runtime version $1 (above); --runtime_version=VERSION names another, and 'gcloud compute tpus" \
      "tpu-vm versions list --zone=${flag[zone]}' lists them"
  check_bucket_is_there
}

meet_what_is_there() {
  [[ "$slices $slice" == "${flag[num_slices]} ${flag[accelerator]}" ]] ||
    fail "${flag[name]} is there with $slices x $slice, and ${flag[num_slices]} x ${flag[accelerator]} was asked" \
      "for; choose another --name, or: $(delete_command)"
  case "$state" in
    FAILED | SUSPENDED | SUSPENDING | DELETING)
      fail "${flag[name]} is there, and is $state; it will not come back by itself: $(delete_command); then create" \
        "it again"
      ;;
  esac
  say "${flag[name]} is there already, and is $state: nothing to create"
}

verb_delete() {
  prepare "yes?" "$@"
  need_gcloud
  look_up "ACTIVE 1 v5litepod-16"
  [[ -n "$state" ]] || { say "${flag[name]} is not there: nothing to delete" && return; }
  [[ -n "${flag[yes]}" ]] ||
    fail "this would delete ${flag[name]} ($slices x $slice, $state) and its machines; say so with --yes. What is in" \
      "the bucket stays"
  run "${queued[@]}" delete "${flag[name]}" "${place[@]}" --force --quiet
}

# --- the hosts ---

# need_active: goes on only if the machines are there.
need_active() {
  look_up "ACTIVE ${1:-1} ${2:-v5litepod-16}"
  [[ -n "$state" ]] || fail "there is no ${flag[name]} in ${flag[project]}, ${flag[zone]}; 'create' asks for it"
  [[ "$state" == ACTIVE ]] || fail "${flag[name]} is $state; its hosts can be reached once it is ACTIVE"
}

reach() {
  if [[ -n "${flag[internal_ip]}" ]]; then
    echo --internal-ip
  elif [[ -n "${flag[iap]}" ]]; then
    echo --tunnel-through-iap
  fi
}

# on_all VERB ARGUMENT...: launch/on_host.sh on every host. gcloud leaves out a slice that it cannot prepare, with a
# warning and status 0, so the answers are counted: a line of each host that begins with "gemma3_jax HOST: ".
on_all() {
  local way answers status=0 said
  mapfile -t way < <(reach)
  [[ -n "$hosts" ]] || count_hosts
  local command=("${queued[@]}" ssh "${flag[name]}" "${place[@]}" --node=all --worker=all
    "--command=$(quoted bash "$ON_HOST" "$@")" "${way[@]}")
  is_dry && run "${command[@]}" && return
  exec 3>&1 # so that what they say is seen while it is said
  said="$("${command[@]}" | tee /dev/fd/3)" || status=$?
  answers="$(grep -c '^gemma3_jax [^ ]*: ' <<<"$said" || true)"
  ((status != 127)) || fail "$1: hosts of ${flag[name]} have nothing set up (above); 'setup' comes first"
  ((status == 0 && answers >= hosts && hosts > 0)) ||
    fail "$1: $answers of $hosts hosts answered that it is well, and ssh ended with $status (above has the others);" \
      "mend what is wrong, and say it again (a 'run' that came to some of them: 'stop' first)"
}

count_hosts() {
  local number
  ask "" gcloud compute tpus tpu-vm list "${place[@]}" "--filter=name ~ /${flag[name]}-[0-9]+$" \
    '--format=value(networkEndpoints.len())' || fail "the hosts of ${flag[name]} cannot be listed (above)"
  hosts=0
  for number in $answer; do hosts=$((hosts + number)); done
}

verb_setup() {
  prepare "bucket! commit=" "$@"
  check_url bucket bucket
  need_gcloud
  need git "https://git-scm.com"
  local way place_of_archive
  mapfile -t way < <(reach)
  need_active
  check_bucket_is_there
  pack_source
  place_of_archive="launch/${flag[name]}/source-$revision.tar.gz"
  run gcloud storage cp "$archive" "gs://$bucket/$place_of_archive"
  run "${queued[@]}" scp "$launch/on_host.sh" "${flag[name]}:$ON_HOST" "${place[@]}" --node=all --worker=all "${way[@]}"
  on_all setup "$bucket" "$place_of_archive"
}

verb_run() {
  prepare "workdir! max_restarts=50 libtpu_flags= accelerator= job= num_slices=" "$@"
  check_url workdir
  check_count max_restarts 0 100000
  train_arguments
  if [[ -n "${flag[job]}${flag[accelerator]}" ]]; then check_slices; fi
  need_gcloud
  need_active "${flag[num_slices]:-1}" "${flag[accelerator]:-v5litepod-16}"
  [[ -z "${flag[accelerator]}" || "$slices $slice" == "${flag[num_slices]} ${flag[accelerator]}" ]] ||
    fail "${flag[name]} is $slices x $slice, not ${flag[num_slices]} x ${flag[accelerator]}"
  generation="$(column "$SLICES" "$slice" 2)"
  local flags token
  flags="$(libtpu_flags "$generation" "$slices")${flag[libtpu_flags]:+ ${flag[libtpu_flags]}}"
  # gcloud says a command again to a host whose connection broke: the token tells that from a second run.
  token="$(date -u +%Y%m%dT%H%M%SZ)-$$"
  on_all ready "$bucket"
  on_all start "$token" "${flag[max_restarts]}" "$bucket" "$flags" "${arguments[@]}"
}

verb_status() {
  prepare "" "$@"
  need_gcloud
  look_up "ACTIVE 1 v5litepod-16"
  [[ -n "$state" ]] || fail "there is no ${flag[name]} in ${flag[project]}, ${flag[zone]}; 'create' asks for it"
  is_dry || say "${flag[name]}: $slices x $slice, $state"
  [[ "$state" != ACTIVE ]] || on_all status
}

verb_stop() {
  prepare "wait_seconds=900" "$@"
  check_count wait_seconds 0 100000
  need_gcloud
  need_active
  on_all hold
  on_all stop "${flag[wait_seconds]}"
}

verb_logs() {
  prepare "workdir! to=" "$@"
  check_url workdir
  need_gcloud
  local to="${flag[to]:-logs/${flag[name]}}" from
  from="$(mounted "${flag[workdir]}")/logs"
  look_up "ACTIVE 1 v5litepod-16"
  # Of machines that were taken away there is what they left in the bucket at the end of each attempt.
  if [[ "$state" == ACTIVE ]]; then on_all put_logs "$bucket" "$from"; fi
  run mkdir -p "$to"
  run gcloud storage rsync "${flag[workdir]}/logs" "$to" --recursive
  is_dry || say "logs are in $to"
}

dispatch "create setup run status logs stop delete" "$@"
