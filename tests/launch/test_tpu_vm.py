"""tpu_vm.sh against a fake cloud: what exists is left as it is; and all verbs on hosts that really run on_host.sh."""

import shutil
import subprocess

import pytest

from tests.launch import pods

CREATE = ("create", *pods.POD, "--accelerator=v5litepod-16", "--bucket=gs://my-bucket")
WORKDIR = "--workdir=gs://my-bucket/runs/1b"
RUN = ("run", *pods.POD, WORKDIR, "--", "--config=experiments/recipe.py:1b", "--config.note=a 'b' $HOME")


@pytest.fixture
def cloud(tmp_path):
    cloud = pods.Cloud(tmp_path)
    cloud.there("ACTIVE")
    yield cloud
    cloud.close()


def is_created(cloud) -> bool:
    return bool(cloud.calls("queued-resources", "create"))


def test_what_exists_is_not_created_again(cloud):
    cloud.there("")
    _, err = cloud.run("tpu_vm.sh", *CREATE)
    assert "g3: requested 1 x v5litepod-16; once 'status' shows" in err and len(cloud.calls("create")) == 1
    cloud.there("WAITING_FOR_RESOURCES")
    _, err = cloud.run("tpu_vm.sh", *CREATE)
    assert "g3 exists already, and is WAITING_FOR_RESOURCES: nothing to create" in err
    assert len(cloud.calls("create")) == 1


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        (("ACTIVE", 2), "g3 exists with 2 x v5litepod-16, but 1 x v5litepod-16 was requested; choose another --name"),
        (
            ("SUSPENDED", 1),
            "g3 exists, and is SUSPENDED; it will not come back by itself: bash launch/tpu_vm.sh",
        ),
        (("FAILED", 1), "g3 exists, and is FAILED"),
    ],
)
def test_a_resource_in_the_way_is_reported_and_not_deleted(cloud, there, expected):
    cloud.there(*there)
    _, err = cloud.run("tpu_vm.sh", *CREATE, status=1)
    assert expected in err and "--yes" in err
    assert not is_created(cloud) and not cloud.calls("delete")


@pytest.mark.parametrize(
    ("words", "text", "status", "expected"),
    [
        ("accelerator-types describe", "", 1, "no v5litepod-16 there, or no access (above); zones that had v5e: us-"),
        ("versions describe", "", 1, "no runtime version v2-alpha-tpuv5-lite (above); --runtime_version=VERSION names"),
        ("buckets describe", "", 1, "gs://my-bucket does not exist, or this account has no access to it (above)"),
        ("buckets describe", "\n", 0, "gs://my-bucket has no hierarchical namespace, so that renaming the directory"),
        ("queued-resources list", "", 1, "the queued resources of my-project in us-central1-a cannot be listed"),
        ("queued-resources create", "", 1, "the cloud refused 1 x v5litepod-16 (above)"),
    ],
)  # fmt: skip
def test_an_error_of_the_cloud_ends_the_verb(cloud, words, text, status, expected):
    cloud.there("")
    cloud.answer(f"storage {words}" if words.startswith("buckets") else words, text, status)
    _, err = cloud.run("tpu_vm.sh", *CREATE, status=1)
    assert expected in err.splitlines()[-1]
    assert is_created(cloud) == (words == "queued-resources create")


def test_only_active_hosts_are_reached(cloud):
    cloud.there("PROVISIONING")
    _, err = cloud.run("tpu_vm.sh", "stop", *pods.POD, status=1)
    assert "g3 is PROVISIONING; its hosts can be reached once it is ACTIVE" in err
    _, err = cloud.run("tpu_vm.sh", "status", *pods.POD)
    assert "g3: 1 x v5litepod-16, PROVISIONING" in err
    cloud.there("")
    for verb in ("status", "stop"):
        _, err = cloud.run("tpu_vm.sh", verb, *pods.POD, status=1)
        assert "there is no g3 in my-project, us-central1-a; 'create' requests it" in err
    assert not cloud.calls("ssh")


def test_run_checks_that_the_slices_are_those_of_the_job(cloud):
    cloud.there("ACTIVE", 2)
    _, err = cloud.run("tpu_vm.sh", "run", *pods.POD, WORKDIR, "--job=1b", *RUN[-3:], status=1)
    assert err == "tpu_vm.sh: error: g3 is 2 x v5litepod-16, not 2 x v5litepod-256\n"
    assert not cloud.calls("ssh")


def test_hosts_that_cannot_be_listed_end_the_verb(cloud):
    cloud.answer("tpus tpu-vm list", "", status=1)
    _, err = cloud.run("tpu_vm.sh", "status", *pods.POD, status=1)
    assert err.splitlines()[-1] == "tpu_vm.sh: error: the hosts of g3 cannot be listed (above)"


def test_a_commit_that_does_not_exist_is_not_copied(cloud):
    _, err = cloud.run("tpu_vm.sh", "setup", *pods.POD, "--bucket=gs://my-bucket", "--commit=no-such", status=1)
    assert "--commit is no-such; this checkout has no such commit" in err
    assert not cloud.calls("cp")


def test_what_is_copied_has_to_be_a_git_checkout(cloud):
    """As with an archive of the repository, that has launch/ and gemma3_jax/ alone."""
    copy = cloud.root / "copy"
    for name in ("launch", "gemma3_jax"):
        shutil.copytree(pods.ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    line = ["bash", str(copy / "launch" / "tpu_vm.sh"), "setup", *pods.POD, "--bucket=gs://my-bucket"]
    environment = {**cloud.environment, "GIT_CEILING_DIRECTORIES": str(cloud.root)}
    done = subprocess.run(line, capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert f"{copy} is not a git checkout, so the files to copy are not known; clone the repository" in done.stderr
    subprocess.run(["git", "init", "--quiet", copy], check=True)
    user = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", copy, *user, "commit", "--quiet", "--allow-empty", "-m", "none"], check=True)
    done = subprocess.run([*line, "--dry_run"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0
    assert "note: git does not track these files, so they are not copied: gemma3_jax/" in done.stderr


def test_nothing_is_deleted_without_yes(cloud):
    _, err = cloud.run("tpu_vm.sh", "delete", *pods.POD, status=1)
    assert (
        "this would delete g3 (1 x v5litepod-16, ACTIVE) and its machines, but not what is in the bucket; confirm"
        in err
    )
    assert not cloud.calls("delete")
    cloud.run("tpu_vm.sh", "delete", *pods.POD, "--yes")
    assert len(cloud.calls("delete")) == 1
    cloud.there("")
    _, err = cloud.run("tpu_vm.sh", "delete", *pods.POD, "--yes")
    assert "g3 does not exist: nothing to delete" in err and len(cloud.calls("delete")) == 1


def test_a_host_that_gcloud_left_out_is_noticed(cloud):
    for number in range(2):
        shutil.copy(pods.ROOT / "launch" / "on_host.sh", cloud.home(number) / "gemma3_jax_host.sh")
    cloud.answer("tpus tpu-vm list", "2\n1\n")
    _, err = cloud.run("tpu_vm.sh", "status", *pods.POD, status=1)
    assert "status: 2 of 3 hosts succeeded, and ssh ended with status 0 (the others are above)" in err


def test_a_run_from_its_machines_to_its_logs(cloud):
    """After create: the hosts run launch/on_host.sh, and train waits to be stopped on both."""
    for number in range(2):
        (cloud.home(number) / "statuses").write_text("75\nwait\n")
    _, err = cloud.run("tpu_vm.sh", *RUN, status=1)
    assert "ready: hosts of g3 have not been set up (above); run 'setup' first" in err
    for _ in range(2):  # setup may be repeated
        out, _ = cloud.run("tpu_vm.sh", "setup", *pods.POD, "--bucket=gs://my-bucket")
        assert out.count(": set up with ") == 2
    source = cloud.home() / "gemma3_jax" / "source"
    assert (source / "setup.cfg").read_bytes() == (pods.ROOT / "setup.cfg").read_bytes()
    options = "--implicit-dirs --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0"
    assert (cloud.home() / "mounts").read_text() == f"{options} my-bucket {cloud.root}/mounts/my-bucket\n"
    installed = "-m pip install --quiet --disable-pip-version-check -c launch/constraints.txt -e .[tpu,prepare]"
    assert f"{source} {installed}" in (cloud.home() / "pip").read_text()

    out, _ = cloud.run("tpu_vm.sh", *RUN)
    assert out.count(": ready") == 2 and out.count(": started") == 2
    pods.wait_until(lambda: all((cloud.home(number) / "waits").exists() for number in range(2)))
    called = (cloud.home() / "train.2").read_text().splitlines()
    assert called[:2] == ["-m", "gemma3_jax"] and called[-1] == "JAX_PLATFORMS=tpu"
    workdir = f"--workdir={cloud.root}/mounts/my-bucket/runs/1b"
    assert called[2:-2] == ["train", workdir, "--config=experiments/recipe.py:1b", "--config.note=a 'b' $HOME"]
    assert called[-2] == "LIBTPU_INIT_ARGS="

    _, err = cloud.run("tpu_vm.sh", *RUN, status=1)
    assert err.count("error: a run is in progress here (running since ") == 2 and cloud.ends() == ["75"]
    _, err = cloud.run("tpu_vm.sh", "setup", *pods.POD, "--bucket=gs://my-bucket", status=1)
    assert "a run is in progress here; 'stop' it first" in err
    out, _ = cloud.run("tpu_vm.sh", "status", *pods.POD)
    assert out.count("1 restarts; output of attempt wait") == 2

    out, _ = cloud.run("tpu_vm.sh", "stop", *pods.POD)
    assert out.count("stopped and saved; stopped from outside") == 2
    assert [cloud.ends(number) for number in range(2)] == [["75", "75"]] * 2
    out, _ = cloud.run("tpu_vm.sh", "stop", *pods.POD)
    assert out.count("nothing is running; ended with 75") == 2

    cloud.run("tpu_vm.sh", "logs", *pods.POD, WORKDIR)
    for number in range(2):
        log = (cloud.root / "logs" / "g3" / f"host-{number}.log").read_text()
        assert "output of attempt 75" in log and "output of attempt wait" in log


def test_logs_of_machines_that_were_taken_away_are_those_in_the_bucket(cloud):
    logs = cloud.root / "mounts" / "my-bucket" / "runs" / "1b" / "logs"
    logs.mkdir(parents=True)
    (logs / "host-0.log").write_text("before\n")
    cloud.there("SUSPENDED")
    cloud.run("tpu_vm.sh", "logs", *pods.POD, WORKDIR, "--to=got")
    assert (cloud.root / "got" / "host-0.log").read_text() == "before\n" and not cloud.calls("ssh")
