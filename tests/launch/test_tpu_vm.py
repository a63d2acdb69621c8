"""tpu_vm.sh against a cloud of files: what is there is left alone, and a whole life on hosts that really run things."""

import shutil

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


def test_what_is_there_is_not_created_again(cloud):
    cloud.there("")
    _, err = cloud.run("tpu_vm.sh", *CREATE)
    assert "g3: asked for 1 x v5litepod-16" in err and len(cloud.calls("create")) == 1
    cloud.there("WAITING_FOR_RESOURCES")
    _, err = cloud.run("tpu_vm.sh", *CREATE)
    assert "g3 is there already, and is WAITING_FOR_RESOURCES: nothing to create" in err
    assert len(cloud.calls("create")) == 1


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        (("ACTIVE", 2), "g3 is there with 2 x v5litepod-16, and 1 x v5litepod-16 was asked for; choose another --name"),
        (
            ("SUSPENDED", 1),
            "g3 is there, and is SUSPENDED; it will not come back by itself: bash launch/tpu_vm.sh delete",
        ),
        (("FAILED", 1), "g3 is there, and is FAILED"),
    ],
)
def test_what_is_in_the_way_is_said_and_not_deleted(cloud, there, expected):
    cloud.there(*there)
    _, err = cloud.run("tpu_vm.sh", *CREATE, status=1)
    assert expected in err and "--yes" in err
    assert not is_created(cloud) and not cloud.calls("delete")


@pytest.mark.parametrize(
    ("words", "text", "status", "expected"),
    [
        ("accelerator-types describe", "", 1, "no v5litepod-16 there, or no access (above); zones that had v5e: us-"),
        ("versions describe", "", 1, "no runtime version v2-alpha-tpuv5-lite (above); --runtime_version=VERSION names"),
        ("buckets describe", "", 1, "gs://my-bucket is not there, or not for this account (above)"),
        ("buckets describe", "\n", 0, "gs://my-bucket has no hierarchical namespace, so that renaming a checkpoint's"),
        ("queued-resources list", "", 1, "the queued resources of my-project in us-central1-a cannot be listed"),
        ("queued-resources create", "", 1, "the cloud refused 1 x v5litepod-16 (above)"),
    ],
)  # fmt: skip
def test_what_the_cloud_refuses_ends_it(cloud, words, text, status, expected):
    cloud.there("")
    cloud.answer(f"storage {words}" if words.startswith("buckets") else words, text, status)
    _, err = cloud.run("tpu_vm.sh", *CREATE, status=1)
    assert expected in err.splitlines()[-1]
    assert is_created(cloud) == (words == "queued-resources create")


def test_only_what_is_active_is_reached(cloud):
    cloud.there("PROVISIONING")
    _, err = cloud.run("tpu_vm.sh", "stop", *pods.POD, status=1)
    assert "g3 is PROVISIONING; its hosts can be reached once it is ACTIVE" in err
    _, err = cloud.run("tpu_vm.sh", "status", *pods.POD)
    assert "g3: 1 x v5litepod-16, PROVISIONING" in err
    cloud.there("")
    for verb in ("status", "stop"):
        _, err = cloud.run("tpu_vm.sh", verb, *pods.POD, status=1)
        assert "there is no g3 in my-project, us-central1-a; 'create' asks for it" in err
    assert not cloud.calls("ssh")


def test_nothing_is_deleted_without_being_asked(cloud):
    _, err = cloud.run("tpu_vm.sh", "delete", *pods.POD, status=1)
    assert "this would delete g3 (1 x v5litepod-16, ACTIVE) and its machines; say so with --yes" in err
    assert not cloud.calls("delete")
    cloud.run("tpu_vm.sh", "delete", *pods.POD, "--yes")
    assert len(cloud.calls("delete")) == 1
    cloud.there("")
    _, err = cloud.run("tpu_vm.sh", "delete", *pods.POD, "--yes")
    assert "g3 is not there: nothing to delete" in err and len(cloud.calls("delete")) == 1


def test_a_host_that_gcloud_left_out_is_missed(cloud):
    for number in range(2):
        shutil.copy(pods.ROOT / "launch" / "on_host.sh", cloud.home(number) / "gemma3_jax_host.sh")
    cloud.answer("tpus tpu-vm list", "2\n1\n")
    _, err = cloud.run("tpu_vm.sh", "status", *pods.POD, status=1)
    assert "status: 2 of 3 hosts answered that it is well, and ssh ended with 0 (above" in err


def test_a_run_from_its_machines_to_its_logs(cloud):
    """create has been said; the hosts run launch/on_host.sh, and its train waits to be stopped on both."""
    for number in range(2):
        (cloud.home(number) / "statuses").write_text("75\nwait\n")
    _, err = cloud.run("tpu_vm.sh", *RUN, status=1)
    assert "ready: hosts of g3 have nothing set up (above); 'setup' comes first" in err
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
    assert err.count("error: a run is going on here (running since ") == 2 and cloud.ends() == ["75"]
    _, err = cloud.run("tpu_vm.sh", "setup", *pods.POD, "--bucket=gs://my-bucket", status=1)
    assert "a run is going on here; 'stop' it first" in err
    out, _ = cloud.run("tpu_vm.sh", "status", *pods.POD)
    assert out.count("1 restarts; says something of wait") == 2

    out, _ = cloud.run("tpu_vm.sh", "stop", *pods.POD)
    assert out.count("stopped, saved; stopped from outside") == 2
    assert [cloud.ends(number) for number in range(2)] == [["75", "75"]] * 2
    out, _ = cloud.run("tpu_vm.sh", "stop", *pods.POD)
    assert out.count("nothing is running; ended with 75") == 2

    cloud.run("tpu_vm.sh", "logs", *pods.POD, WORKDIR)
    for number in range(2):
        log = (cloud.root / "logs" / "g3" / f"host-{number}.log").read_text()
        assert "says something of 75" in log and "says something of wait" in log


def test_logs_of_machines_that_were_taken_away_are_those_in_the_bucket(cloud):
    logs = cloud.root / "mounts" / "my-bucket" / "runs" / "1b" / "logs"
    logs.mkdir(parents=True)
    (logs / "host-0.log").write_text("before\n")
    cloud.there("SUSPENDED")
    cloud.run("tpu_vm.sh", "logs", *pods.POD, WORKDIR, "--to=got")
    assert (cloud.root / "got" / "host-0.log").read_text() == "before\n" and not cloud.calls("ssh")
