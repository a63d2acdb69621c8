"""The commands that the launchers would run, word by word: nothing runs, and no tool of a cloud is needed."""

import shlex

import pytest

from tests.launch import pods

TPUS = ["gcloud", "compute", "tpus"]
WHERE = ["--project=my-project", "--zone=us-central1-a"]
CLUSTER = ["--cluster=my-cluster", *WHERE]
LOOK_UP = [
    *TPUS,
    *("queued-resources", "list", *WHERE, "--filter=name ~ /g3$"),
    "--format=value(state.state, tpu.nodeSpec.len(), tpu.nodeSpec[0].node.acceleratorType.basename(), "
    "tpu.nodeSpec[0].multisliceParams.nodeCount)",
]
COUNT_HOSTS = [
    *TPUS,
    *("tpu-vm", "list", *WHERE, "--filter=name ~ /g3-[0-9]+$", "--format=value(networkEndpoints.len())"),
]
ALL = ["--node=all", "--worker=all"]
BUCKET = ["gcloud", "storage", "buckets", "describe", "gs://my-bucket"]
BUCKET += ["--format=value(hierarchicalNamespace.enabled)", "--raw"]
RECIPE = ["--", "--config=experiments/recipe.py:1b", "--config.data=gs://my-bucket/data"]
TRAIN = ["--workdir=/mnt/gcs/my-bucket/runs/1b", "--config=experiments/recipe.py:1b"]
TRAIN += ["--config.data=/mnt/gcs/my-bucket/data"]
DATA_PARALLEL = (
    "--xla_tpu_enable_data_parallel_all_reduce_opt=true --xla_tpu_data_parallel_opt_different_sized_ops=true"
)


def on_hosts(command: str) -> list[str]:
    return [*TPUS, "queued-resources", "ssh", "g3", *WHERE, *ALL, f"--command=bash gemma3_jax_host.sh {command}"]


def is_packed(commands: list[list[str]], root=str(pods.ROOT)) -> bool:
    """Returns whether these commands archive this checkout."""
    scratch = commands[0][1].removeprefix("GIT_INDEX_FILE=").removesuffix("/index")
    index = ["env", f"GIT_INDEX_FILE={scratch}/index", "git", "-C", root]
    archive = ["git", "-C", root, "archive", "--format=tar.gz", f"--output={scratch}/source.tar.gz", "TREE"]
    return commands == [[*index, "read-tree", "HEAD"], [*index, "add", "--update"], [*index, "write-tree"], archive]


def test_create_looks_everything_up_before_it_requests_machines():
    flags = ("--job=1b", "--bucket=gs://my-bucket", "--spot", "--valid_until=6h")
    assert pods.dry_run("tpu_vm.sh", "create", *pods.POD, *flags) == [
        [*TPUS, "accelerator-types", "describe", "v5litepod-256", *WHERE, "--format=value(type)"],
        [*TPUS, "tpu-vm", "versions", "describe", "v2-alpha-tpuv5-lite", *WHERE, "--format=value(version)"],
        BUCKET,
        LOOK_UP,
        [
            *TPUS,
            *("queued-resources", "create", "g3", *WHERE, "--accelerator-type=v5litepod-256"),
            *("--runtime-version=v2-alpha-tpuv5-lite", "--node-count=2", "--node-prefix=g3", "--spot"),
            "--valid-until-duration=6h",
        ],
    ]


def test_one_slice_has_the_first_of_the_names_that_several_have():
    flags = ("--accelerator=v5p-128", "--bucket=gs://my-bucket", "--reserved", "--network=n", "--subnetwork=s")
    flags += ("--service_account=me@x.iam", "--internal_ips", "--runtime_version=v3")
    created = pods.dry_run("tpu_vm.sh", "create", *pods.POD, *flags)[-1]
    assert created[5:] == [
        *("g3", *WHERE, "--accelerator-type=v5p-128", "--runtime-version=v3", "--node-id=g3-0", "--reserved"),
        *("--service-account=me@x.iam", "--network=n", "--subnetwork=s", "--internal-ips"),
    ]


def test_setup_copies_this_checkout_and_sets_up_all_hosts():
    commands = pods.dry_run("tpu_vm.sh", "setup", *pods.POD, "--bucket=gs://my-bucket")
    assert commands[:2] == [LOOK_UP, BUCKET]
    assert is_packed(commands[2:6])
    archive = commands[5][5].removeprefix("--output=")
    assert commands[6:] == [
        ["gcloud", "storage", "cp", archive, "gs://my-bucket/launch/g3/source-TREE.tar.gz"],
        [
            *(*TPUS, "queued-resources", "scp", str(pods.ROOT / "launch" / "on_host.sh"), "g3:gemma3_jax_host.sh"),
            *(*WHERE, *ALL),
        ],
        COUNT_HOSTS,
        on_hosts("setup my-bucket launch/g3/source-TREE.tar.gz"),
    ]


def test_setup_can_take_a_commit_instead():
    commands = pods.dry_run("tpu_vm.sh", "setup", *pods.POD, "--bucket=gs://my-bucket", "--commit=v1")
    assert ["git", "-C", str(pods.ROOT), "rev-parse", "--verify", "--quiet", "v1^{commit}"] in commands
    assert commands[-1] == on_hosts("setup my-bucket launch/g3/source-v1.tar.gz")


def test_run_is_refused_by_hosts_before_it_is_started_on_any():
    flags = ("--job=1b", "--workdir=gs://my-bucket/runs/1b", "--max_restarts=7", "--iap", *RECIPE)
    commands = pods.dry_run("tpu_vm.sh", "run", *pods.POD, *flags)
    assert commands[:2] == [LOOK_UP, COUNT_HOSTS]
    ready, start = commands[2:]
    assert ready == [*on_hosts("ready my-bucket"), "--tunnel-through-iap"]
    assert (start[:-2], start[-1]) == (ready[:-2], ready[-1])
    words = shlex.split(start[-2].removeprefix("--command="))
    assert words[:3] == ["bash", "gemma3_jax_host.sh", "start"]
    assert words[4:] == ["7", "my-bucket", DATA_PARALLEL, *TRAIN]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--accelerator=v5litepod-16"], ""),
        (["--accelerator=v5litepod-16", "--num_slices=2"], DATA_PARALLEL),
        (["--accelerator=v6e-16", "--num_slices=2"], DATA_PARALLEL),
        (["--accelerator=v4-32", "--libtpu_flags=--a=1 --b=2"], "--a=1 --b=2"),
    ],
)
def test_flags_of_the_compiler_go_by_slices(flags, expected):
    commands = pods.dry_run("tpu_vm.sh", "run", *pods.POD, *flags, "--workdir=gs://my-bucket/runs/1b", *RECIPE)
    assert shlex.split(commands[-1][-1].removeprefix("--command="))[6] == expected
    workload = create(*flags)
    flags = [word.removeprefix("--env=LIBTPU_INIT_ARGS=") for word in workload if "LIBTPU_INIT_ARGS" in word]
    assert flags == ([expected] if expected else [])


def test_status_stop_and_logs_reach_all_hosts():
    assert pods.dry_run("tpu_vm.sh", "status", *pods.POD) == [LOOK_UP, COUNT_HOSTS, on_hosts("status")]
    assert pods.dry_run("tpu_vm.sh", "stop", *pods.POD, "--wait_seconds=60") == [
        LOOK_UP,
        COUNT_HOSTS,
        on_hosts("hold"),
        on_hosts("stop 60"),
    ]
    assert pods.dry_run("tpu_vm.sh", "logs", *pods.POD, "--workdir=gs://my-bucket/runs/1b", "--to=a b") == [
        LOOK_UP,
        COUNT_HOSTS,
        on_hosts("put_logs my-bucket /mnt/gcs/my-bucket/runs/1b/logs"),
        ["mkdir", "-p", "a b"],
        ["gcloud", "storage", "rsync", "gs://my-bucket/runs/1b/logs", "a b", "--recursive"],
    ]


def test_delete_runs_with_yes():
    assert pods.dry_run("tpu_vm.sh", "delete", *pods.POD, "--yes") == [
        LOOK_UP,
        [*TPUS, "queued-resources", "delete", "g3", *WHERE, "--force", "--quiet"],
    ]
    assert pods.dry_run("gke.sh", "delete", *pods.POOL, "--name=g3", "--yes") == [
        ["xpk", "workload", "list", *CLUSTER, "--filter-by-job=g3"],
        ["xpk", "workload", "delete", *CLUSTER, "--workload=g3"],
    ]


def create(*flags: str) -> list[str]:
    """Returns the command that creates a workload."""
    commands = pods.dry_run(
        "gke.sh", "run", *pods.POOL, "--name=g3", "--workdir=gs://my-bucket/runs/1b", *flags, *RECIPE
    )
    assert commands[0] == ["xpk", "workload", "list", *CLUSTER, "--filter-by-job=g3"]
    return commands[-1]


def test_a_workload_restarts_after_errors_that_may_not_occur_again():
    assert create("--job=4b", "--max_restarts=9", "--image=my.pkg.dev/x/y:1") == [
        *("xpk", "workload", "create", "--workload=g3", *CLUSTER, "--tpu-type=v5litepod-256", "--num-slices=8"),
        *("--max-restarts=9", "--restart-on-exit-codes=71,75,124", "--termination-grace-period-seconds=300"),
        *("--priority=medium", "--storage=my-bucket", "--docker-image=my.pkg.dev/x/y:1", "--env=JAX_PLATFORMS=tpu"),
        f"--env=LIBTPU_INIT_ARGS={DATA_PARALLEL}",
        f"--command=exec bash launch/on_host.sh pod my-bucket {shlex.join(TRAIN)}",
    ]


def test_a_workload_carries_this_checkout_on_a_python_image():
    flags = ("--name=g3", "--workdir=gs://my-bucket/runs/1b", "--accelerator=v5litepod-16", *RECIPE)
    commands = pods.dry_run("gke.sh", "run", *pods.POOL, *flags)
    assert is_packed(commands[1:5])
    archive = commands[4][5].removeprefix("--output=")
    source = archive.replace("source.tar.gz", "source")
    assert commands[5:7] == [
        ["mkdir", source],
        ["tar", "--extract", "--gzip", f"--file={archive}", f"--directory={source}"],
    ]
    assert {"--base-docker-image=python:3.13", f"--script-dir={source}"} < set(commands[7])


def test_a_bucket_is_attached_where_its_paths_lead():
    listed, attached = pods.dry_run("gke.sh", "attach", *pods.POOL, "--bucket=gs://my_bucket.x")[1:]
    assert listed == ["xpk", "storage", "list", *CLUSTER]
    assert attached == [
        *("xpk", "storage", "attach", "my-bucket-x", *CLUSTER, "--type=gcsfuse", "--bucket=my_bucket.x", "--size=1"),
        *("--auto-mount=false", "--mount-point=/mnt/gcs/my_bucket.x", "--readonly=false", "--no-prefetch-metadata"),
        "--mount-options=implicit-dirs,metadata-cache:ttl-secs:0,metadata-cache:negative-ttl-secs:0",
    ]


def test_workloads_are_listed_and_their_logs_read():
    assert pods.dry_run("gke.sh", "list", *pods.POOL) == [["xpk", "workload", "list", *CLUSTER]]
    assert pods.dry_run("gke.sh", "list", *pods.POOL, "--name=g3")[0][-1] == "--filter-by-job=g3"
    [command] = pods.dry_run("gke.sh", "logs", *pods.POOL, "--name=g3", "--days=2")
    conditions = 'resource.type="k8s_container" AND resource.labels.cluster_name="my-cluster"'
    assert command == [
        *("gcloud", "logging", "read", f'{conditions} AND resource.labels.pod_name=~"^g3-slice-job-"'),
        *("--project=my-project", "--freshness=2d", "--order=asc"),
        "--format=value(timestamp, resource.labels.pod_name, textPayload)",
    ]


NASTY = [
    "a b",
    "it's",
    'say "hi"',
    "$HOME $(id) $$ `id`",
    "back\\slash",
    "*",
    "-n",
    "; rm -rf /",
    "{x}",
    "gs://my-bucket/a b",
]


def test_arguments_of_train_survive_every_shell_on_their_way():
    flags = [f"--config.note={text}" for text in NASTY]
    expected = [f"--config.note={text}".replace("gs:/", "/mnt/gcs") for text in NASTY]
    workdir = "--workdir=gs://my-bucket/runs/1b"
    start = pods.dry_run("tpu_vm.sh", "run", *pods.POD, workdir, *RECIPE, *flags)[-1]
    assert shlex.split(start[-1].removeprefix("--command="))[10:] == expected  # as the host's shell reads it
    job = ("--name=g3", workdir, "--accelerator=v5litepod-16", "--image=x", *RECIPE, *flags)
    workload = pods.dry_run("gke.sh", "run", *pods.POOL, *job)[-1]
    command = pods.expanded(workload[-1].removeprefix("--command="), {"id": "a variable of the pod"})
    assert shlex.split(command)[8:] == expected
