"""What runs on a host: train is started again after what another attempt may mend, and only then."""

import os
import re
import shutil
import signal
import subprocess
import time

import pytest

from tests.launch import pods


@pytest.fixture
def cloud(tmp_path):
    """One host that is set up; run() starts a run on it."""
    cloud = pods.Cloud(tmp_path, num_hosts=1)
    (tmp_path / "mounts" / "my-bucket").mkdir()
    source = tmp_path / "source-1.tar.gz"
    subprocess.run(["tar", "-czf", source, "-C", pods.ROOT, "setup.cfg"], check=True)
    shutil.move(source, tmp_path / "mounts" / "my-bucket")
    cloud.on_host(0, "setup", "my-bucket", "source-1.tar.gz")
    yield cloud
    cloud.close()


def run(cloud, *statuses, max_restarts=5, token="one"):
    (cloud.home() / "statuses").write_text("".join(f"{status}\n" for status in statuses))
    workdir = f"--workdir={cloud.root}/mounts/my-bucket/run"
    return cloud.on_host(0, "start", token, str(max_restarts), "my-bucket", "--a=1", workdir)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (0, "done"),
        (1, "a mistake in what was asked; not started again"),
        (70, "training went non-finite; not started again"),
        (130, "stopped at once; not started again"),
        (143, "stopped at once; not started again"),
    ],
)
def test_some_ends_are_the_last(cloud, status, expected):
    run(cloud, status, 0)
    said = cloud.wait_until_ended()
    assert said.startswith(f"ended with {status} at ") and said.endswith(expected)
    assert cloud.ends() == [str(status)] and cloud.state()["restarts"] == "0"


@pytest.mark.parametrize("status", [71, 75, 124, 134, 137])
def test_after_others_it_is_started_again(cloud, status):
    run(cloud, status, status, 0)
    assert cloud.wait_until_ended().endswith("done")
    assert cloud.ends() == [str(status), str(status), "0"] and cloud.state()["restarts"] == "2"


def test_restarts_have_a_bound(cloud):
    run(cloud, *[75] * 9, max_restarts=2)
    said = cloud.wait_until_ended()
    assert said.endswith("stopped, saved; not started again after 2 restarts (--max_restarts)")
    assert cloud.ends() == ["75"] * 3


def waits(cloud) -> bool:
    return (cloud.home() / "waits").exists() and bool(cloud.state()["train"])


def test_a_signal_to_the_supervisor_reaches_train_once_and_is_the_end(cloud):
    """As when the machine is taken away: every process is told."""
    run(cloud, "wait", 0)
    pods.wait_until(lambda: waits(cloud))
    os.kill(int(cloud.state()["supervisor"]), signal.SIGTERM)
    assert cloud.wait_until_ended().endswith("stopped, saved; stopped from outside")
    assert cloud.ends() == ["75"]


def test_who_is_held_does_not_start_again(cloud):
    """All hosts are held before one is stopped: train on the others then ends with 75 too."""
    run(cloud, "wait", 0)
    pods.wait_until(lambda: waits(cloud))
    out, _ = cloud.on_host(0, "hold")
    assert out.startswith("gemma3_jax host-0: running since ")
    os.kill(int(cloud.state()["train"]), signal.SIGTERM)  # not the supervisor
    assert cloud.wait_until_ended().endswith("stopped, saved")
    assert cloud.ends() == ["75"]
    run(cloud, "wait", 124, 0, token="another")  # what held one run does not hold the next
    pods.wait_until(lambda: cloud.ends() == ["75", "124", "0"])


def test_stop_tells_train_once_however_often_it_is_said(cloud):
    run(cloud, "wait")
    pods.wait_until(lambda: waits(cloud))
    _, err = cloud.on_host(0, "stop", "0", status=1)
    assert "told to save and stop, and not done after 0 s" in err
    out, _ = cloud.on_host(0, "stop", "60")
    assert "stopped, saved" in out and cloud.ends() == ["75"]


def test_a_second_run_is_refused_and_the_same_one_is_not(cloud):
    run(cloud, "wait")
    pods.wait_until(lambda: waits(cloud))
    out, _ = run(cloud, "wait")  # gcloud says it again where a connection broke
    assert out == "gemma3_jax host-0: started already\n"
    workdir = f"--workdir={cloud.root}/mounts/my-bucket/run"
    _, err = cloud.on_host(0, "start", "two", "5", "my-bucket", "", workdir, status=1)
    assert "a run is going on here (running since " in err
    assert not cloud.ends()


def test_a_supervisor_that_was_killed_leaves_a_train_that_still_counts(cloud):
    run(cloud, "wait")
    pods.wait_until(lambda: waits(cloud))
    os.kill(int(cloud.state()["supervisor"]), signal.SIGKILL)
    time.sleep(0.1)
    _, err = cloud.on_host(0, "ready", "my-bucket", status=1)
    assert "a run is going on here" in err
    cloud.on_host(0, "stop", "60")
    assert cloud.ends() == ["75"]
    out, _ = cloud.on_host(0, "status")
    assert out.startswith("gemma3_jax host-0: lost while running since ")
    cloud.on_host(0, "ready", "my-bucket")


def test_the_log_is_in_the_bucket_when_it_has_ended(cloud):
    run(cloud, 124, 0)
    cloud.wait_until_ended()
    log = (cloud.root / "mounts" / "my-bucket" / "run" / "logs" / "host-0.log").read_text()
    assert "says something of 124" in log and "hung" in log and log.rstrip().endswith("done")
    assert (cloud.root / "mounts" / "my-bucket" / "run" / ".lock").exists()


def test_a_run_that_cannot_begin_is_said_to_be_lost(cloud):
    (cloud.root / "mounts" / "my-bucket" / "run").touch()  # in the place of the run directory
    run(cloud, 0)
    pods.wait_until(lambda: "lost while starting" in cloud.on_host(0, "status")[0])
    log = (cloud.home() / "gemma3_jax" / "run" / "log").read_text()
    assert "File exists" in log and not cloud.ends()


def test_a_host_without_a_run_has_nothing_to_stop(cloud):
    out = [cloud.on_host(0, *said)[0] for said in (["status"], ["hold"], ["stop", "5"])]
    assert out[0].endswith(": no run yet\n") and ": not running" in out[1] and ": nothing is running" in out[2]


def test_setup_can_be_repeated_and_keeps_what_it_has_unpacked(cloud):
    source = cloud.home() / "gemma3_jax" / "source"
    (source / "mark").touch()
    cloud.on_host(0, "setup", "my-bucket", "source-1.tar.gz")
    assert (source / "mark").exists()
    assert len((cloud.home() / "mounts").read_text().splitlines()) == 1  # mounted already


def test_what_a_busy_machine_refuses_is_tried_again(cloud):
    refusing = '[[ -e "$HOME/asked" ]] || { touch "$HOME/asked"; exit 1; }'
    cloud.program("gcsfuse", f"#!/usr/bin/env bash\n{refusing}\n{pods.HOST['gcsfuse']}\n")
    (cloud.root / "mounts" / "my-bucket" / ".mounted").unlink()
    cloud.on_host(0, "ready", "my-bucket")
    assert (cloud.root / "mounts" / "my-bucket" / ".mounted").exists()


def test_in_a_pod_train_takes_the_place_of_the_shell(cloud):
    """So it gets the signals of Kubernetes, and its status is the container's."""
    cloud.program("python", '#!/usr/bin/env bash\n[[ "$1" == -c ]] && exit\necho "$$ $*"\nexit 75\n')
    workdir = f"--workdir={cloud.root}/mounts/my-bucket/run"
    line = ["bash", str(pods.ROOT / "launch" / "on_host.sh"), "pod", "my-bucket", workdir, "--config=a b"]
    process = subprocess.Popen(line, env=cloud.environment, stdout=subprocess.PIPE, text=True)
    assert process.communicate()[0] == f"{process.pid} -m gemma3_jax train {workdir} --config=a b\n"
    assert process.returncode == 75


@pytest.mark.parametrize(
    ("python", "bucket", "status", "expected"),
    [
        ("exit 1", "my-bucket", 75, ""),  # pip too: the index may be there again
        ("exit 0", "another", 1, "gs://another is not mounted at .*; 'attach' makes it a storage of the cluster"),
    ],
)
def test_a_pod_that_cannot_begin_says_whether_another_may(cloud, python, bucket, status, expected):
    cloud.program("python", f"#!/usr/bin/env bash\n{python}\n")
    workdir = f"--workdir={cloud.root}/mounts/{bucket}/run"
    _, err = cloud.on_host(0, "pod", bucket, workdir, status=status)
    assert re.search(expected, err)
