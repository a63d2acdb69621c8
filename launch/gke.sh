#!/usr/bin/env bash
# Trains on a GKE cluster of TPUs, through xpk: bash launch/gke.sh VERB --flag=value ...; see --help (launch/verbs.py).
# shellcheck disable=SC2329  # functions are verbs, called by name
set -euo pipefail
# shellcheck source=SCRIPTDIR/pods.sh
source "$(dirname "${BASH_SOURCE[0]}")/pods.sh"

readonly RESTART_ON=71,75,124 # beside 42 and 127 to 255, on which xpk restarts anyway
xpk="${XPK:-xpk}"

need_tools() {
  need "$xpk" "pip install xpk, in an environment of its own; XPK=PATH names one that is not on PATH"
  need_gcloud
  cluster=("--cluster=${flag[cluster]}" "${where[@]}")
}

# in_first_column WORD: whether a row of the table in `answer` begins with it.
in_first_column() {
  awk -v word="$1" '$1 == word { seen = 1 } END { exit !seen }' <<<"$answer"
}

# exists DRY_RUN_ANSWER: whether the cluster has a workload of this name; a finished one counts.
exists() {
  query "$1" "$xpk" workload list "${cluster[@]}" "--filter-by-job=${flag[name]}" ||
    fail "the workloads of ${flag[cluster]} cannot be listed (above)"
  in_first_column "${flag[name]}"
}

verb_attach() {
  need_tools
  check_bucket
  query "" "$xpk" storage list "${cluster[@]}" || fail "the storages of ${flag[cluster]} cannot be listed (above)"
  in_first_column "${flag[storage]}" && { note "${flag[storage]} is attached already: nothing to do" && return; }
  # No metadata is cached, as hosts read what others write: launch/on_host.sh, mount_bucket. Kubernetes requires a size,
  # which means nothing here.
  run "$xpk" storage attach "${flag[storage]}" "${cluster[@]}" --type=gcsfuse "--bucket=${flag[bucket]}" --size=1 \
    --auto-mount=false "--mount-point=${flag[mounted]}" --readonly=false --no-prefetch-metadata \
    --mount-options=implicit-dirs,metadata-cache:ttl-secs:0,metadata-cache:negative-ttl-secs:0 </dev/null ||
    fail "gs://${flag[bucket]} could not be attached (above)"
}

verb_run() {
  need_tools
  if exists ""; then
    note "${flag[name]} exists already, and is left as it is; 'list' shows its state, and 'delete --yes' removes it"
    return
  fi
  local command image
  # xpk runs it as `(COMMAND) &` and signals that shell: exec, so that the signal reaches train. Kubernetes makes
  # $(NAME) a variable's value, and $$ one dollar sign.
  command="$(quoted exec bash launch/on_host.sh pod "${flag[bucket]}" "${arguments[@]}")"
  command="${command//\$/\$\$}"
  if [[ -n "${flag[image]}" ]]; then
    image=("--docker-image=${flag[image]}")
  else
    need git "https://git-scm.com"
    pack_source
    run mkdir "$scratch/source"
    run tar --extract --gzip --file="$archive" --directory="$scratch/source"
    image=("--base-docker-image=${flag[base_image]:-python:3.13}" "--script-dir=$scratch/source")
  fi
  local create=("$xpk" workload create "--workload=${flag[name]}" "${cluster[@]}" "--tpu-type=${flag[accelerator]}"
    "--num-slices=${flag[num_slices]}" "--max-restarts=${flag[max_restarts]}" "--restart-on-exit-codes=$RESTART_ON"
    "--termination-grace-period-seconds=${flag[grace_seconds]}" "--priority=${flag[priority]}"
    "--storage=${flag[storage]}" "${image[@]}" "--env=JAX_PLATFORMS=tpu")
  [[ -z "${flag[libtpu_flags]}" ]] || create+=("--env=LIBTPU_INIT_ARGS=${flag[libtpu_flags]}")
  # If such a workload has appeared meanwhile, xpk would ask whether to delete it: without input it cannot.
  run "${create[@]}" "--command=$command" </dev/null || fail "xpk could not create ${flag[name]} (above)"
}

verb_list() {
  need_tools
  run "$xpk" workload list "${cluster[@]}" ${flag[name]:+"--filter-by-job=${flag[name]}"}
}

verb_logs() {
  need_gcloud
  local filter='resource.type="k8s_container"'
  filter+=" AND resource.labels.cluster_name=\"${flag[cluster]}\""
  filter+=" AND resource.labels.pod_name=~\"^${flag[name]}-slice-job-\""
  run gcloud logging read "$filter" "--project=${flag[project]}" "--freshness=${flag[days]}d" --order=asc \
    '--format=value(timestamp, resource.labels.pod_name, textPayload)'
}

verb_delete() {
  need_tools
  exists "${flag[name]}" || { note "${flag[name]} does not exist: nothing to delete" && return; }
  [[ -n "${flag[yes]}" ]] ||
    fail "this would delete the workload ${flag[name]} of ${flag[cluster]}, but not what is in the bucket; confirm" \
      "with --yes"
  run "$xpk" workload delete "${cluster[@]}" "--workload=${flag[name]}" </dev/null ||
    fail "xpk could not delete ${flag[name]} (above)"
}

main "$@"
