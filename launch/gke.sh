#!/usr/bin/env bash
# Trains on a GKE cluster of TPUs, through xpk: bash launch/gke.sh VERB --flag=value ...; --help says all.
set -euo pipefail
# shellcheck source=SCRIPTDIR/pods.sh
source "$(dirname "${BASH_SOURCE[0]}")/pods.sh"

usage="usage: bash launch/gke.sh VERB --cluster=CLUSTER --project=PROJECT --zone=ZONE [--flag=value ...]

Trains on a cluster that xpk made ('xpk cluster create --tpu-type=v5litepod-256 --num-slices=2 ... '
'--enable-workload-identity --enable-gcsfuse-csi-driver'). Every verb may be repeated, and takes --dry_run, which prints
all of its commands and runs none.

verbs:
  attach  makes a bucket a storage of the cluster, mounted in pods at $MOUNTS/BUCKET. --bucket=gs://BUCKET
  run     creates the workload: train in every pod, again after 71 (a traceback), 75 (stopped, saved), 124 (hung) and
          whatever a signal ended, at most [--max_restarts=50] times; never after 1 and 70. --name=NAME --workdir=gs://BUCKET/DIRECTORY
          --job=270m|1b|4b|12b|27b (the published layout), or --accelerator=v5litepod-16 [--num_slices=1];
          [--commit=REV] [--base_image=python:3.11] that this checkout is added to, or [--image=IMAGE] that has it as
          its working directory; [--grace_seconds=300] to save in; [--priority=medium] [--libtpu_flags='...']
          -- --config=FILE [other flags of train]
  list    the workloads. [--name=NAME]
  logs    of all pods of a workload, those that were replaced too, in order. --name=NAME [--days=7]
  delete  the workload, not what is in the bucket; only with --yes. --name=NAME

train takes no gs:// itself: the bucket is mounted, and each gs://BUCKET/... given to train becomes the path there. A
workload that is there already is left as it is. xpk is taken from PATH, or is what XPK says.

example:
  pool='--cluster=my-cluster --project=my-project --zone=us-central1-a'
  bash launch/gke.sh attach \$pool --bucket=gs://my-bucket
  bash launch/gke.sh run \$pool --name=gemma3-1b --job=1b --workdir=gs://my-bucket/runs/1b -- \\
      --config=experiments/recipe.py:1b --config.data=gs://my-bucket/data --config.teacher=gs://my-bucket/teacher
  bash launch/gke.sh logs \$pool --name=gemma3-1b
  bash launch/gke.sh delete \$pool --name=gemma3-1b --yes"

readonly RESTART_ON=71,75,124 # beside 42 and 127 to 255, which are xpk's own
xpk="${XPK:-xpk}"
declare -a place arguments # of xpk: where; of train
generation="" bucket="" archive="" revision=""

# prepare SPEC ARGUMENT...: reads the flags, and checks those that every verb has.
prepare() {
  local spec="cluster! project! zone! $1"
  shift
  read_flags "$spec" "$@"
  check_name name
  check_name cluster
  check_project
  check_zone
  place=("--cluster=${flag[cluster]}" "--project=${flag[project]}" "--zone=${flag[zone]}")
}

need_tools() {
  need "$xpk" "pip install xpk, in an environment of its own; XPK=PATH names one that is not on PATH"
  need gcloud "https://cloud.google.com/sdk/docs/install"
}

# first_column WORD: whether a row of the table in `answer` begins with it.
first_column() {
  awk -v word="$1" '$1 == word { found = 1 } END { exit !found }' <<<"$answer"
}

# is_there: whether the cluster has a workload of this name, finished ones too.
is_there() {
  ask "$1" "$xpk" workload list "${place[@]}" "--filter-by-job=${flag[name]}" ||
    fail "the workloads of ${flag[cluster]} cannot be listed (above)"
  first_column "${flag[name]}"
}

# storage_name: of the bucket, as Kubernetes allows it.
storage_name() {
  tr '_.' '--' <<<"$bucket"
}

verb_attach() {
  prepare "bucket!" "$@"
  check_url bucket bucket
  need_tools
  check_bucket_is_there
  local storage
  storage="$(storage_name)"
  ask "" "$xpk" storage list "${place[@]}" || fail "the storages of ${flag[cluster]} cannot be listed (above)"
  first_column "$storage" && { say "$storage is attached already: nothing to do" && return; }
  # Nothing is answered from memory, as hosts write what others read: launch/on_host.sh, mount_bucket. The size is a
  # number that Kubernetes wants, and means nothing.
  run "$xpk" storage attach "$storage" "${place[@]}" --type=gcsfuse "--bucket=$bucket" --size=1 --auto-mount=false \
    "--mount-point=$MOUNTS/$bucket" --readonly=false --no-prefetch-metadata \
    --mount-options=implicit-dirs,metadata-cache:ttl-secs:0,metadata-cache:negative-ttl-secs:0 </dev/null ||
    fail "gs://$bucket could not be attached (above)"
}

verb_run() {
  prepare "name! workdir! accelerator= job= num_slices= max_restarts=50 grace_seconds=300 priority=medium libtpu_flags=
    commit= base_image= image=" "$@"
  check_slices
  check_url workdir
  check_count max_restarts 0 100000
  check_count grace_seconds 30 3600
  [[ -z "${flag[image]}" || -z "${flag[base_image]}${flag[commit]}" ]] ||
    fail "--image has the code already; leave out --base_image and --commit"
  [[ "${flag[image]}${flag[base_image]}" =~ ^[A-Za-z0-9._/:@-]*$ ]] ||
    fail "the image is $(quoted "${flag[image]}${flag[base_image]}"); it must look like REGISTRY/NAME:TAG"
  [[ "${flag[priority]}" =~ ^(very-low|low|medium|high|very-high)$ ]] ||
    fail "--priority is $(quoted "${flag[priority]}"); it must be very-low, low, medium, high or very-high"
  train_arguments
  need_tools
  if is_there ""; then
    say "${flag[name]} is there already, and is left as it is; 'list' shows how it does, and 'delete --yes' makes room"
    return
  fi
  local flags command image
  flags="$(libtpu_flags "$generation" "${flag[num_slices]}")${flag[libtpu_flags]:+ ${flag[libtpu_flags]}}"
  [[ "$flags" != *[\"\\\$]* ]] ||
    fail "--libtpu_flags has a quote, a backslash or a dollar sign in it, which xpk would write into YAML as it is"
  # xpk runs it as `(COMMAND) &` and signals that shell: exec, so that the signal reaches train. Kubernetes makes
  # $(NAME) a variable's value, and $$ one dollar sign.
  command="$(quoted exec bash launch/on_host.sh pod "$bucket" "${arguments[@]}")"
  command="${command//\$/\$\$}"
  if [[ -n "${flag[image]}" ]]; then
    image=("--docker-image=${flag[image]}")
  else
    need git "https://git-scm.com"
    pack_source
    run mkdir "$scratch/source"
    run tar --extract --gzip --file="$archive" --directory="$scratch/source"
    image=("--base-docker-image=${flag[base_image]:-python:3.11}" "--script-dir=$scratch/source")
  fi
  local create=("$xpk" workload create "--workload=${flag[name]}" "${place[@]}" "--tpu-type=${flag[accelerator]}"
    "--num-slices=${flag[num_slices]}" "--max-restarts=${flag[max_restarts]}" "--restart-on-exit-codes=$RESTART_ON"
    "--termination-grace-period-seconds=${flag[grace_seconds]}" "--priority=${flag[priority]}"
    "--storage=$(storage_name)" "${image[@]}" "--env=JAX_PLATFORMS=tpu")
  [[ -z "$flags" ]] || create+=("--env=LIBTPU_INIT_ARGS=$flags")
  # Of a workload that has come up since, xpk would ask whether to delete it: it finds nobody to answer.
  run "${create[@]}" "--command=$command" </dev/null || fail "xpk could not create ${flag[name]} (above)"
}

verb_list() {
  prepare "name=" "$@"
  need_tools
  run "$xpk" workload list "${place[@]}" ${flag[name]:+"--filter-by-job=${flag[name]}"}
}

verb_logs() {
  prepare "name! days=7" "$@"
  check_count days 1 3650
  need gcloud "https://cloud.google.com/sdk/docs/install"
  local which='resource.type="k8s_container"'
  which+=" AND resource.labels.cluster_name=\"${flag[cluster]}\""
  which+=" AND resource.labels.pod_name=~\"^${flag[name]}-slice-job-\""
  run gcloud logging read "$which" "--project=${flag[project]}" "--freshness=${flag[days]}d" --order=asc \
    '--format=value(timestamp, resource.labels.pod_name, textPayload)'
}

verb_delete() {
  prepare "name! yes?" "$@"
  need_tools
  is_there "${flag[name]}" || { say "${flag[name]} is not there: nothing to delete" && return; }
  [[ -n "${flag[yes]}" ]] ||
    fail "this would delete the workload ${flag[name]} of ${flag[cluster]}; say so with --yes. What is in the bucket" \
      "stays"
  run "$xpk" workload delete "${place[@]}" "--workload=${flag[name]}" </dev/null ||
    fail "xpk could not delete ${flag[name]} (above)"
}

dispatch "attach run list logs delete" "$@"
