"""What runs on a host: train is restarted after errors that may not occur again, and only then."""

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
    """A cloud with one host that is set up; run() starts a run on it."""
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
        (1, "invalid input; not restarted"),
        (70, "the loss became non-finite; not restarted"),
        (130, "stopped at once, without saving; not restarted"),
        (143, "stopped at once, without saving; not restarted"),
    ],
)
def test_some_ends_are_the_last(cloud, status, expected):
    run(cloud, status, 0)
    message = cloud.wait_until_ended()
    assert message.startswith(f"ended with {status} at ") and message.endswith(expected)
    assert cloud.ends() == [str(status)] and cloud.state()["restarts"] == "0"


@pytest.mark.parametrize("status", [71, 75, 124, 134, 137])
def test_after_others_it_is_restarted(cloud, status):
    run(cloud, status, status, 0)
    assert cloud.wait_until_ended().endswith("done")
    assert cloud.ends() == [str(status), str(status), "0"] and cloud.state()["restarts"] == "2"


def test_restarts_have_a_bound(cloud):
    run(cloud, *[75] * 9, max_restarts=2)
    message = cloud.wait_until_ended()
    assert message.endswith("stopped and saved; not restarted after 2 restarts (--max_restarts)")
    assert cloud.ends() == ["75"] * 3


def waits(cloud) -> bool:
    return (cloud.home() / "waits").exists() and bool(cloud.state()["train"])


def test_a_signal_to_the_supervisor_reaches_train_once_and_is_the_end(cloud):
    """As when the machine is taken away: every process gets SIGTERM."""
    run(cloud, "wait", 0)
    pods.wait_until(lambda: waits(cloud))
    os.kill(int(cloud.state()["supervisor"]), signal.SIGTERM)
    assert cloud.wait_until_ended().endswith("stopped and saved; stopped from outside")
    assert cloud.ends() == ["75"]


def test_a_held_host_does_not_restart(cloud):
    """All hosts are held before one is stopped, as train on the others then ends with 75 too."""
    run(cloud, "wait", 0)
    pods.wait_until(lambda: waits(cloud))
    out, _ = cloud.on_host(0, "hold")
    assert out.startswith("gemma3_jax host-0: running since ")
    os.kill(int(cloud.state()["train"]), signal.SIGTERM)  # not the supervisor
    assert cloud.wait_until_ended().endswith("stopped and saved")
    assert cloud.ends() == ["75"]
    run(cloud, "wait", 124, 0, token="another")  # holding one run does not hold the next
    pods.wait_until(lambda: cloud.ends() == ["75", "124", "0"])


def test_stop_signals_train_once_however_often_it_runs(cloud):
    run(cloud, "wait")
    pods.wait_until(lambda: waits(cloud))
    _, err = cloud.on_host(0, "stop", "0", status=1)
    assert "SIGTERM was sent, and train has not ended after 0 s" in err
    out, _ = cloud.on_host(0, "stop", "60")
    assert "stopped and saved" in out and cloud.ends() == ["75"]


def test_a_second_run_is_refused_and_the_same_one_is_not(cloud):
    run(cloud, "wait")
    pods.wait_until(lambda: waits(cloud))
    out, _ = run(cloud, "wait")  # gcloud repeats it on a host whose connection broke
    assert out == "gemma3_jax host-0: started already\n"
    workdir = f"--workdir={cloud.root}/mounts/my-bucket/run"
    _, err = cloud.on_host(0, "start", "two", "5", "my-bucket", "", workdir, status=1)
    assert "a run is in progress here (running since " in err
    assert not cloud.ends()


def test_a_supervisor_that_was_killed_leaves_a_train_that_still_counts(cloud):
    run(cloud, "wait")
    pods.wait_until(lambda: waits(cloud))
    os.kill(int(cloud.state()["supervisor"]), signal.SIGKILL)
    time.sleep(0.1)
    _, err = cloud.on_host(0, "ready", "my-bucket", status=1)
    assert "a run is in progress here" in err
    cloud.on_host(0, "stop", "60")
    assert cloud.ends() == ["75"]
    out, _ = cloud.on_host(0, "status")
    assert out.startswith("gemma3_jax host-0: lost while running since ")
    cloud.on_host(0, "ready", "my-bucket")


def test_the_log_is_in_the_bucket_when_it_has_ended(cloud):
    run(cloud, 124, 0)
    cloud.wait_until_ended()
    log = (cloud.root / "mounts" / "my-bucket" / "run" / "logs" / "host-0.log").read_text()
    assert "output of attempt 124" in log and "hung" in log and log.rstrip().endswith("done")
    assert (cloud.root / "mounts" / "my-bucket" / "run" / ".lock").exists()


def test_a_run_that_cannot_begin_is_reported_as_lost(cloud):
    (cloud.root / "mounts" / "my-bucket" / "run").touch()  # a file where the run directory belongs
    run(cloud, 0)
    pods.wait_until(lambda: "lost while starting" in cloud.on_host(0, "status")[0])
    log = (cloud.home() / "gemma3_jax" / "run" / "log").read_text()
    assert "File exists" in log and not cloud.ends()


def test_a_host_without_a_run_has_nothing_to_stop(cloud):
    out = [cloud.on_host(0, *words)[0] for words in (["status"], ["hold"], ["stop", "5"])]
    assert out[0].endswith(": no run yet\n") and ": not running" in out[1] and ": nothing is running" in out[2]


def test_setup_can_be_repeated_and_keeps_what_it_has_unpacked(cloud):
    source = cloud.home() / "gemma3_jax" / "source"
    (source / "mark").touch()
    cloud.on_host(0, "setup", "my-bucket", "source-1.tar.gz")
    assert (source / "mark").exists()
    assert len((cloud.home() / "mounts").read_text().splitlines()) == 1  # mounted already


def test_a_command_that_a_busy_machine_refuses_is_retried(cloud):
    refusing = '[[ -e "$HOME/refused" ]] || { touch "$HOME/refused"; exit 1; }'
    cloud.program("gcsfuse", f"#!/usr/bin/env bash\n{refusing}\n{pods.HOST['gcsfuse']}\n")
    (cloud.root / "mounts" / "my-bucket" / ".mounted").unlink()
    cloud.on_host(0, "ready", "my-bucket")
    assert (cloud.root / "mounts" / "my-bucket" / ".mounted").exists()


def test_a_bucket_that_cannot_be_mounted_or_read_is_named(cloud):
    mount = cloud.root / "mounts" / "my-bucket"
    (mount / ".mounted").unlink()
    cloud.program("gcsfuse", "#!/usr/bin/env bash\nexit 1\n")
    _, err = cloud.on_host(0, "ready", "my-bucket", status=1)
    options = "--implicit-dirs --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0"
    assert f"failed five times: gcsfuse {options} my-bucket {mount}" in err
    cloud.program("gcsfuse", "#!/usr/bin/env bash\n")
    cloud.program("ls", "#!/usr/bin/env bash\nexit 1\n")
    _, err = cloud.on_host(0, "ready", "my-bucket", status=1)
    assert "gs://my-bucket is mounted, but cannot be read: this machine's service account has no role on it" in err


def test_a_log_that_cannot_be_copied_is_reported(cloud):
    run(cloud, 0)
    cloud.wait_until_ended()
    (cloud.root / "file").touch()
    _, err = cloud.on_host(0, "put_logs", "my-bucket", f"{cloud.root}/file/logs", status=1)
    assert f"the log cannot be copied to {cloud.root}/file/logs" in err


def test_a_host_that_is_not_set_up_and_an_unknown_verb_are_refused(cloud):
    _, err = cloud.on_host(0, "craete", status=1)
    assert "gemma3_jax host-0: error: there is no verb craete" in err
    shutil.rmtree(cloud.home() / "gemma3_jax")
    _, err = cloud.on_host(0, "ready", "my-bucket", status=1)
    assert "this host has not been set up; run 'setup' first" in err


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
        ("exit 1", "my-bucket", 75, ""),  # pip too: the index may be reachable again
        ("exit 0", "another", 1, "gs://another is not mounted at .*; run 'attach' for this bucket first"),
    ],
)
def test_a_pod_that_cannot_begin_ends_with_the_status_that_fits(cloud, python, bucket, status, expected):
    cloud.program("python", f"#!/usr/bin/env bash\n{python}\n")
    workdir = f"--workdir={cloud.root}/mounts/{bucket}/run"
    _, err = cloud.on_host(0, "pod", bucket, workdir, status=status)
    assert re.search(expected, err)
