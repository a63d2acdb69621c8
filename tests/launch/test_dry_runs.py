"""The commands that the launchers would run: nothing runs, and no tool of a cloud is needed.

Words count in their order, flags in any; a case names the flags that it is about.
"""

import shlex
from typing import NamedTuple

import pytest

from tests.launch import pods

WHERE = {"--project=my-project", "--zone=us-central1-a"}
CLUSTER = WHERE | {"--cluster=my-cluster"}
QUEUED, TPU_VM = "gcloud compute tpus queued-resources", "gcloud compute tpus tpu-vm"
LOOK_UP, COUNT_HOSTS = f"{QUEUED} list", f"{TPU_VM} list"
LOOK_UP_BUCKET = "gcloud storage buckets describe gs://my-bucket"
ON_HOSTS = f"{QUEUED} ssh g3"
RECIPE = ["--", "--config=experiments/recipe.py:1b", "--config.data=gs://my-bucket/data"]
TRAIN = ["--workdir=/mnt/gcs/my-bucket/runs/1b", "--config=experiments/recipe.py:1b"]
TRAIN += ["--config.data=/mnt/gcs/my-bucket/data"]
DATA_PARALLEL = (
    "--xla_tpu_enable_data_parallel_all_reduce_opt=true --xla_tpu_data_parallel_opt_different_sized_ops=true"
)
# The flags that a launcher may give to a tool, beside --env; any other one is not meant.
MAY_GIVE = {
    "gcloud": "project zone filter format accelerator-type runtime-version node-count node-prefix node-id spot "
    "reserved valid-until-duration service-account network subnetwork internal-ips raw node worker command "
    "tunnel-through-iap force quiet recursive freshness order",
    "xpk": "cluster project zone filter-by-job workload tpu-type num-slices max-restarts restart-on-exit-codes "
    "termination-grace-period-seconds priority storage docker-image base-docker-image script-dir command type "
    "bucket size auto-mount mount-point readonly no-prefetch-metadata mount-options",
}


class Command(NamedTuple):
    words: list[str]
    flags: set[str]

    def value(self, flag: str) -> str | None:
        return next((one.partition("=")[2] for one in self.flags if one.startswith(f"{flag}=")), None)

    def lacks(self, *names: str) -> bool:
        return not {flag.partition("=")[0] for flag in self.flags} & set(names)


def dry_run(script: str, verb: str, *arguments: str) -> list[Command]:
    """Returns the commands. None has an empty word, a flag without its value or twice, or a flag that is not meant."""
    commands = []
    for line in pods.dry_run(script, verb, *arguments):
        flags = [word for word in line if word.startswith("-")]
        names = [flag.partition("=")[0] for flag in flags if not flag.startswith("--env=")]
        assert all(line) and not any(flag.endswith("=") for flag in flags), line
        assert len(names) == len(set(names)), line
        if line[0] in MAY_GIVE:
            assert set(names) <= {f"--{name}" for name in MAY_GIVE[line[0]].split()}, line
        if line[0] == "xpk" or line[:2] == ["gcloud", "compute"]:
            assert (CLUSTER if line[0] == "xpk" else WHERE) <= set(flags), line
        commands.append(Command([word for word in line if word not in flags], set(flags)))
    return commands


def lines(commands: list[Command]) -> list[str]:
    """What each does, and to what: its words."""
    return [" ".join(command.words) for command in commands]


def on_host(command: Command) -> list[str]:
    """Returns the words that the shell of every host reads."""
    assert lines([command]) == [ON_HOSTS] and {"--node=all", "--worker=all"} <= command.flags
    return shlex.split(command.value("--command"))


def archive(commands: list[Command]) -> str:
    """Returns the path of the archive of this checkout that these commands make, through an index of its own."""
    scratch = commands[0].words[1].removeprefix("GIT_INDEX_FILE=").removesuffix("/index")
    git, with_index = f"git {pods.ROOT}", f"env GIT_INDEX_FILE={scratch}/index git {pods.ROOT}"
    assert lines(commands) == [
        *(f"{with_index} {verb}" for verb in ("read-tree HEAD", "add", "write-tree")),
        f"{git} archive TREE",
    ]
    assert all("-C" in command.flags for command in commands) and "--update" in commands[1].flags
    assert {"--format=tar.gz", f"--output={scratch}/source.tar.gz"} <= commands[3].flags
    return f"{scratch}/source.tar.gz"


# --- TPU VMs ---


def test_create_looks_everything_up_before_it_requests_machines():
    flags = ("--job=1b", "--bucket=gs://my-bucket", "--spot", "--valid_until=6h")
    commands = dry_run("tpu_vm.sh", "create", *pods.POD, *flags)
    assert lines(commands) == [
        "gcloud compute tpus accelerator-types describe v5litepod-256",
        f"{TPU_VM} versions describe v2-alpha-tpuv5-lite",
        LOOK_UP_BUCKET,
        LOOK_UP,
        f"{QUEUED} create g3",
    ]
    created = commands[-1]
    assert {"--accelerator-type=v5litepod-256", "--runtime-version=v2-alpha-tpuv5-lite"} <= created.flags
    assert {"--node-count=2", "--node-prefix=g3", "--spot", "--valid-until-duration=6h"} <= created.flags
    assert created.lacks("--node-id", "--reserved", "--network", "--subnetwork", "--service-account", "--internal-ips")


def test_one_slice_has_the_first_of_the_names_that_several_have():
    flags = ("--accelerator=v5p-128", "--bucket=gs://my-bucket", "--reserved", "--network=n", "--subnetwork=s")
    flags += ("--service_account=me@x.iam", "--internal_ips", "--runtime_version=v3")
    created = dry_run("tpu_vm.sh", "create", *pods.POD, *flags)[-1]
    assert lines([created]) == [f"{QUEUED} create g3"]
    assert {"--accelerator-type=v5p-128", "--runtime-version=v3", "--node-id=g3-0", "--reserved"} <= created.flags
    assert {"--service-account=me@x.iam", "--network=n", "--subnetwork=s", "--internal-ips"} <= created.flags
    assert created.lacks("--node-count", "--node-prefix", "--spot", "--valid-until-duration")


def test_look_ups_print_the_fields_that_the_launcher_reads_of_this_name_alone():
    look_up, count_hosts, _ = dry_run("tpu_vm.sh", "status", *pods.POD)
    assert (look_up.value("--filter"), count_hosts.value("--filter")) == ("name ~ /g3$", "name ~ /g3-[0-9]+$")
    spec = "tpu.nodeSpec"
    assert look_up.value("--format") == (  # read in this order
        f"value(state.state, {spec}.len(), {spec}[0].node.acceleratorType.basename(), "
        f"{spec}[0].multisliceParams.nodeCount)"
    )
    assert count_hosts.value("--format") == "value(networkEndpoints.len())"
    bucket = dry_run("tpu_vm.sh", "setup", *pods.POD, "--bucket=gs://my-bucket")[1]
    assert bucket.flags == {"--format=value(hierarchicalNamespace.enabled)", "--raw"}


def test_setup_copies_this_checkout_and_sets_up_all_hosts():
    commands = dry_run("tpu_vm.sh", "setup", *pods.POD, "--bucket=gs://my-bucket")
    assert lines(commands[:2]) == [LOOK_UP, LOOK_UP_BUCKET]
    assert lines(commands[6:]) == [
        f"gcloud storage cp {archive(commands[2:6])} gs://my-bucket/launch/g3/source-TREE.tar.gz",
        f"{QUEUED} scp {pods.ROOT}/launch/on_host.sh g3:gemma3_jax_host.sh",
        COUNT_HOSTS,
        ON_HOSTS,
    ]
    assert {"--node=all", "--worker=all"} <= commands[7].flags
    assert on_host(commands[-1]) == "bash gemma3_jax_host.sh setup my-bucket launch/g3/source-TREE.tar.gz".split()


def test_setup_can_take_a_commit_instead():
    commands = dry_run("tpu_vm.sh", "setup", *pods.POD, "--bucket=gs://my-bucket", "--commit=v1")
    assert {f"git {pods.ROOT} rev-parse v1^{{commit}}", f"git {pods.ROOT} archive v1"} < set(lines(commands))
    assert not any("TREE" in word or "read-tree" in word for command in commands for word in command.words)
    assert on_host(commands[-1])[2:] == ["setup", "my-bucket", "launch/g3/source-v1.tar.gz"]


def test_run_is_refused_by_hosts_before_it_is_started_on_any():
    flags = ("--job=1b", "--workdir=gs://my-bucket/runs/1b", "--max_restarts=7", "--iap", *RECIPE)
    commands = dry_run("tpu_vm.sh", "run", *pods.POD, *flags)
    assert lines(commands) == [LOOK_UP, COUNT_HOSTS, ON_HOSTS, ON_HOSTS]
    assert all("--tunnel-through-iap" in command.flags for command in commands[2:])
    assert on_host(commands[2]) == "bash gemma3_jax_host.sh ready my-bucket".split()
    words = on_host(commands[3])
    assert words[:3] == "bash gemma3_jax_host.sh start".split()
    assert words[4:7] == ["7", "my-bucket", DATA_PARALLEL]
    assert sorted(words[7:]) == sorted(TRAIN)


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
    commands = dry_run("tpu_vm.sh", "run", *pods.POD, *flags, "--workdir=gs://my-bucket/runs/1b", *RECIPE)
    assert on_host(commands[-1])[6] == expected
    given = [flag for flag in create(*flags).flags if "LIBTPU_INIT_ARGS" in flag]
    assert given == ([f"--env=LIBTPU_INIT_ARGS={expected}"] if expected else [])


def test_status_stop_and_logs_reach_all_hosts():
    on_pod = "bash gemma3_jax_host.sh"
    commands = dry_run("tpu_vm.sh", "status", *pods.POD)
    assert lines(commands) == [LOOK_UP, COUNT_HOSTS, ON_HOSTS]
    assert on_host(commands[2]) == f"{on_pod} status".split()
    commands = dry_run("tpu_vm.sh", "stop", *pods.POD, "--wait_seconds=60")
    assert lines(commands) == [LOOK_UP, COUNT_HOSTS, ON_HOSTS, ON_HOSTS]
    assert [on_host(command) for command in commands[2:]] == [f"{on_pod} hold".split(), f"{on_pod} stop 60".split()]
    commands = dry_run("tpu_vm.sh", "logs", *pods.POD, "--workdir=gs://my-bucket/runs/1b", "--to=a b")
    assert lines(commands[:3]) == [LOOK_UP, COUNT_HOSTS, ON_HOSTS]
    assert on_host(commands[2]) == f"{on_pod} put_logs my-bucket /mnt/gcs/my-bucket/runs/1b/logs".split()
    made, copied = commands[3:]
    assert made.words == ["mkdir", "a b"] and "-p" in made.flags
    assert copied.words == ["gcloud", "storage", "rsync", "gs://my-bucket/runs/1b/logs", "a b"]
    assert "--recursive" in copied.flags


def test_delete_runs_with_yes():
    commands = dry_run("tpu_vm.sh", "delete", *pods.POD, "--yes")
    assert lines(commands) == [LOOK_UP, f"{QUEUED} delete g3"]
    assert {"--force", "--quiet"} <= commands[1].flags
    commands = dry_run("gke.sh", "delete", *pods.POOL, "--name=g3", "--yes")
    assert lines(commands) == ["xpk workload list", "xpk workload delete"]
    assert "--filter-by-job=g3" in commands[0].flags and "--workload=g3" in commands[1].flags


# --- workloads of a cluster ---


def create(*flags: str) -> Command:
    """Returns the command that creates a workload."""
    commands = dry_run("gke.sh", "run", *pods.POOL, "--name=g3", "--workdir=gs://my-bucket/runs/1b", *flags, *RECIPE)
    assert lines(commands[:1]) == ["xpk workload list"] and "--filter-by-job=g3" in commands[0].flags
    assert lines(commands[-1:]) == ["xpk workload create"] and "--workload=g3" in commands[-1].flags
    return commands[-1]


def test_a_workload_restarts_after_errors_that_may_not_occur_again():
    created = create("--job=4b", "--max_restarts=9")
    assert {"--max-restarts=9", "--restart-on-exit-codes=71,75,124"} <= created.flags
    assert "--termination-grace-period-seconds=300" in created.flags


def test_a_workload_has_the_slices_of_its_job_the_bucket_and_its_command():
    created = create("--job=4b", "--image=my.pkg.dev/x/y:1")
    assert {"--tpu-type=v5litepod-256", "--num-slices=8", "--priority=medium", "--storage=my-bucket"} <= created.flags
    assert {"--env=JAX_PLATFORMS=tpu", f"--env=LIBTPU_INIT_ARGS={DATA_PARALLEL}"} <= created.flags
    assert "--docker-image=my.pkg.dev/x/y:1" in created.flags
    assert created.lacks("--base-docker-image", "--script-dir")
    words = shlex.split(created.value("--command"))
    assert words[:5] == "exec bash launch/on_host.sh pod my-bucket".split() and sorted(words[5:]) == sorted(TRAIN)


def test_a_workload_carries_this_checkout_on_a_python_image():
    flags = ("--name=g3", "--workdir=gs://my-bucket/runs/1b", "--accelerator=v5litepod-16", *RECIPE)
    commands = dry_run("gke.sh", "run", *pods.POOL, *flags)
    file = archive(commands[1:5])
    source = file.replace("source.tar.gz", "source")
    assert lines(commands[5:7]) == [f"mkdir {source}", "tar"]
    assert {"--extract", "--gzip", f"--file={file}", f"--directory={source}"} <= commands[6].flags
    assert {"--base-docker-image=python:3.13", f"--script-dir={source}"} <= commands[7].flags
    assert commands[7].lacks("--docker-image")


def test_a_bucket_is_attached_where_its_paths_lead():
    listed, attached = dry_run("gke.sh", "attach", *pods.POOL, "--bucket=gs://my_bucket.x")[1:]
    assert lines([listed, attached]) == ["xpk storage list", "xpk storage attach my-bucket-x"]
    assert {"--type=gcsfuse", "--bucket=my_bucket.x", "--mount-point=/mnt/gcs/my_bucket.x"} <= attached.flags
    assert {"--readonly=false", "--auto-mount=false", "--size=1"} <= attached.flags


def test_an_attached_bucket_keeps_no_metadata():
    """Hosts read what others write."""
    attached = dry_run("gke.sh", "attach", *pods.POOL, "--bucket=gs://my_bucket.x")[-1]
    assert "--no-prefetch-metadata" in attached.flags
    assert set(attached.value("--mount-options").split(",")) == {
        "implicit-dirs",
        "metadata-cache:ttl-secs:0",
        "metadata-cache:negative-ttl-secs:0",
    }


def test_workloads_are_listed_and_their_logs_read():
    [every], [one] = (dry_run("gke.sh", "list", *pods.POOL, *flags) for flags in ((), ("--name=g3",)))
    assert lines([every, one]) == ["xpk workload list"] * 2
    assert every.lacks("--filter-by-job") and "--filter-by-job=g3" in one.flags
    [command] = dry_run("gke.sh", "logs", *pods.POOL, "--name=g3", "--days=2")
    assert command.words[:3] == ["gcloud", "logging", "read"]
    [conditions] = command.words[3:]
    assert set(conditions.split(" AND ")) == {
        'resource.type="k8s_container"',
        'resource.labels.cluster_name="my-cluster"',
        'resource.labels.pod_name=~"^g3-slice-job-"',
    }
    assert {"--project=my-project", "--freshness=2d", "--order=asc"} <= command.flags
    assert command.value("--format") == "value(timestamp, resource.labels.pod_name, textPayload)"


# --- arguments of train ---


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
    start = dry_run("tpu_vm.sh", "run", *pods.POD, workdir, *RECIPE, *flags)[-1]
    assert [word for word in on_host(start) if "note" in word] == expected  # as the host's shell reads it
    job = ("--name=g3", workdir, "--accelerator=v5litepod-16", "--image=x", *RECIPE, *flags)
    workload = dry_run("gke.sh", "run", *pods.POOL, *job)[-1]
    command = pods.expanded(workload.value("--command"), {"id": "a variable of the pod"})
    assert [word for word in shlex.split(command) if "note" in word] == expected
