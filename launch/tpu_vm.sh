#!/usr/bin/env bash
# Trains on TPU VMs: bash launch/tpu_vm.sh VERB --flag=value ...; see --help, and launch/verbs.py.
# shellcheck disable=SC2329  # functions are verbs, called by name
set -euo pipefail
# shellcheck source=SCRIPTDIR/pods.sh
source "$(dirname "${BASH_SOURCE[0]}")/pods.sh"

readonly HOST_SCRIPT=gemma3_jax_host.sh # launch/on_host.sh, in the home directory of a host
queued=(gcloud compute tpus queued-resources)
state="" num_slices="" slice="" # of the queued resource: `look_up`
num_hosts=""                    # `count_hosts`

# look_up [DRY_RUN_ANSWER]: sets `state`, `num_slices` and `slice` (its type); empty without such a queued resource.
look_up() {
  local fields="state.state, tpu.nodeSpec.len(), tpu.nodeSpec[0].node.acceleratorType.basename()" node_count=""
  fields+=", tpu.nodeSpec[0].multisliceParams.nodeCount"
  need_gcloud
  query "${1-ACTIVE 1 v5litepod-16}" "${queued[@]}" list "${where[@]}" "--filter=name ~ /${flag[name]}$" \
    "--format=value($fields)" ||
    fail "the queued resources of ${flag[project]} in ${flag[zone]} cannot be listed (above)"
  read -r state num_slices slice node_count <<<"$answer" || true
  num_slices="${node_count:-$num_slices}" # while it waits for resources, one entry stands for all of its slices
}

look_up_existing() { # as look_up
  look_up "$@"
  [[ -n "$state" ]] || fail "there is no ${flag[name]} in ${flag[project]}, ${flag[zone]}; 'create' requests it"
}

look_up_active() { # as look_up
  look_up_existing "$@"
  [[ "$state" == ACTIVE ]] || fail "${flag[name]} is $state; its hosts can be reached once it is ACTIVE"
}

# --- the machines ---

verb_create() {
  local requested="${flag[num_slices]} x ${flag[accelerator]}" name
  need_gcloud
  check_with_the_cloud
  look_up ""
  [[ -z "$state" ]] || { compare_with_existing "$requested" && return; }
  local command=("${queued[@]}" create "${flag[name]}" "${where[@]}" "--accelerator-type=${flag[accelerator]}"
    "--runtime-version=${flag[runtime_version]}")
  # Nodes are NAME-0, NAME-1, ... for any number of slices: `count_hosts` relies on these names.
  if ((flag[num_slices] == 1)); then
    command+=("--node-id=${flag[name]}-0")
  else
    command+=("--node-count=${flag[num_slices]}" "--node-prefix=${flag[name]}")
  fi
  [[ -z "${flag[spot]}" ]] || command+=(--spot)
  [[ -z "${flag[reserved]}" ]] || command+=(--reserved)
  [[ -z "${flag[valid_until]}" ]] || command+=("--valid-until-duration=${flag[valid_until]}")
  for name in service_account network subnetwork; do
    [[ -z "${flag[$name]}" ]] || command+=("--${name/_/-}=${flag[$name]}")
  done
  [[ -z "${flag[internal_ips]}" ]] || command+=(--internal-ips)
  run "${command[@]}" || fail "the cloud refused $requested (above)"
  is_dry || note "${flag[name]}: requested $requested; once 'status' shows that it is ACTIVE, run 'setup'"
}

# Checks what only the cloud knows, and what costs nothing to look up.
check_with_the_cloud() {
  local zone="${flag[project]}, ${flag[zone]}" version="${flag[runtime_version]}"
  query "" gcloud compute tpus accelerator-types describe "${flag[accelerator]}" "${where[@]}" '--format=value(type)' ||
    fail "$zone: no ${flag[accelerator]} there, or no access (above); zones that had ${flag[chip]}: ${flag[zones]}"
  query "" gcloud compute tpus tpu-vm versions describe "$version" "${where[@]}" '--format=value(version)' ||
    fail "$zone: no runtime version $version (above); --runtime_version=VERSION names another, and 'gcloud compute" \
      "tpus tpu-vm versions list --zone=${flag[zone]}' lists them"
  check_bucket
}

compare_with_existing() { # REQUESTED
  local delete
  delete="$(quoted bash launch/tpu_vm.sh delete "--name=${flag[name]}" "${where[@]}" --yes)"
  [[ "$num_slices x $slice" == "$1" ]] ||
    fail "${flag[name]} exists with $num_slices x $slice, but $1 was requested; choose another --name, or: $delete"
  case "$state" in
    FAILED | SUSPENDED | SUSPENDING | DELETING)
      fail "${flag[name]} exists, and is $state; it will not come back by itself: $delete; then create it again"
      ;;
  esac
  note "${flag[name]} exists already, and is $state: nothing to create"
}

verb_delete() {
  look_up
  [[ -n "$state" ]] || { note "${flag[name]} does not exist: nothing to delete" && return; }
  [[ -n "${flag[yes]}" ]] ||
    fail "this would delete ${flag[name]} ($num_slices x $slice, $state) and its machines, but not what is in the" \
      "bucket; confirm with --yes"
  run "${queued[@]}" delete "${flag[name]}" "${where[@]}" --force --quiet
}

# --- the hosts ---

# connection: the flag of ssh and scp that says how hosts are reached, if there is one.
connection() {
  if [[ -n "${flag[internal_ip]}" ]]; then
    echo --internal-ip
  elif [[ -n "${flag[iap]}" ]]; then
    echo --tunnel-through-iap
  fi
}

# on_all VERB ARGUMENT...: launch/on_host.sh on every host. gcloud leaves out a slice that it cannot prepare, with a
# warning and status 0, so the answers are counted: each host prints a line that begins with "gemma3_jax HOST: ".
on_all() {
  local connection answers output status=0
  mapfile -t connection < <(connection)
  [[ -n "$num_hosts" ]] || count_hosts
  local command=("${queued[@]}" ssh "${flag[name]}" "${where[@]}" --node=all --worker=all
    "--command=$(quoted bash "$HOST_SCRIPT" "$@")" "${connection[@]}")
  is_dry && run "${command[@]}" && return
  exec 3>&1 # shows the output of the hosts as it comes
  output="$("${command[@]}" | tee /dev/fd/3)" || status=$?
  answers="$(grep -c '^gemma3_jax [^ ]*: ' <<<"$output" || true)"
  ((status != 127)) || fail "$1: hosts of ${flag[name]} have not been set up (above); run 'setup' first"
  ((status == 0 && answers >= num_hosts && num_hosts > 0)) ||
    fail "$1: $answers of $num_hosts hosts succeeded, and ssh ended with status $status (the others are above);" \
      "correct the cause and repeat the command (after a 'run' that started on some of them: 'stop' first)"
}

count_hosts() {
  local number
  query "" gcloud compute tpus tpu-vm list "${where[@]}" "--filter=name ~ /${flag[name]}-[0-9]+$" \
    '--format=value(networkEndpoints.len())' || fail "the hosts of ${flag[name]} cannot be listed (above)"
  num_hosts=0
  for number in $answer; do num_hosts=$((num_hosts + number)); done
}

verb_setup() {
  local connection object
  need git "https://git-scm.com"
  mapfile -t connection < <(connection)
  look_up_active
  check_bucket
  pack_source
  object="launch/${flag[name]}/source-$revision.tar.gz"
  run gcloud storage cp "$archive" "gs://${flag[bucket]}/$object"
  run "${queued[@]}" scp "$root/launch/on_host.sh" "${flag[name]}:$HOST_SCRIPT" "${where[@]}" --node=all --worker=all \
    "${connection[@]}"
  on_all setup "${flag[bucket]}" "$object"
}

verb_run() {
  local flags token
  look_up_active "ACTIVE ${flag[num_slices]:-1} ${flag[accelerator]:-v5litepod-16}"
  [[ -z "${flag[accelerator]}" || "$num_slices $slice" == "${flag[num_slices]} ${flag[accelerator]}" ]] ||
    fail "${flag[name]} is $num_slices x $slice, not ${flag[num_slices]} x ${flag[accelerator]}"
  flags="$(check compiler_flags "$num_slices" "${flag[libtpu_flags]}")"
  # gcloud repeats a command on a host whose connection broke: the token distinguishes that from a second run.
  token="$(date -u +%Y%m%dT%H%M%SZ)-$$"
  on_all ready "${flag[bucket]}"
  on_all start "$token" "${flag[max_restarts]}" "${flag[bucket]}" "$flags" "${arguments[@]}"
}

verb_status() {
  look_up_existing
  is_dry || note "${flag[name]}: $num_slices x $slice, $state"
  [[ "$state" != ACTIVE ]] || on_all status
}

verb_stop() {
  look_up_active
  on_all hold
  on_all stop "${flag[wait_seconds]}"
}

verb_logs() {
  local to="${flag[to]:-logs/${flag[name]}}"
  look_up
  # The logs of machines that were taken away are in the bucket as of the end of each attempt.
  if [[ "$state" == ACTIVE ]]; then on_all put_logs "${flag[bucket]}" "${flag[mounted_workdir]}/logs"; fi
  run mkdir -p "$to"
  run gcloud storage rsync "${flag[workdir]}/logs" "$to" --recursive
  is_dry || note "logs are in $to"
}

main "$@"
