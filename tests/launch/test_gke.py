"""gke.sh against a fake cluster: nothing is created twice, and nothing is deleted without --yes."""

import pytest

from tests.launch import pods

RUN = ("run", *pods.POOL, "--name=g3", "--accelerator=v5litepod-16", "--workdir=gs://my-bucket/runs/1b")
RUN += ("--", "--config=experiments/recipe.py:1b")
WORKLOADS = "[XPK] Workload List Output:\nJobset Name   Created Time\ng3-another   now\n"


@pytest.fixture
def cloud(tmp_path):
    cloud = pods.Cloud(tmp_path)
    cloud.answer("workload list", WORKLOADS)
    return cloud


def test_a_workload_is_created_once(cloud):
    cloud.run("gke.sh", *RUN)
    [created] = cloud.calls("workload", "create")
    assert "--workload=g3" in created
    cloud.answer("workload list", f"{WORKLOADS}g3   now\n")
    _, err = cloud.run("gke.sh", *RUN)
    assert "g3 exists already, and is left as it is" in err
    assert len(cloud.calls("workload", "create")) == 1 and not cloud.calls("delete")


def test_the_image_gets_the_files_that_git_tracks(cloud):
    """xpk reads the directory while it runs; afterwards it is deleted."""
    look = 'for word; do [[ "$word" != --script-dir=* ]] || cp -r "${word#*=}" "$PWD/copied"; done'
    cloud.program("xpk", f"#!/usr/bin/env bash\n{look}\n")
    cloud.run("gke.sh", *RUN)
    copied = cloud.root / "copied"
    assert (copied / "launch" / "test.sh").read_bytes() == (pods.ROOT / "launch" / "test.sh").read_bytes()
    assert not (copied / ".git").exists()


def test_an_error_of_xpk_ends_the_verb(cloud):
    cloud.answer("workload create", "", status=1)
    _, err = cloud.run("gke.sh", *RUN, status=1)
    assert "xpk could not create g3 (above)" in err.splitlines()[-1]
    cloud.answer("workload list", "", status=1)
    _, err = cloud.run("gke.sh", *RUN, status=1)
    assert "the workloads of my-cluster cannot be listed (above)" in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "command", "expected"),
    [
        ("storage list", ("attach", "--bucket=gs://my-bucket"), "the storages of my-cluster cannot be listed (above)"),
        ("storage attach", ("attach", "--bucket=gs://my-bucket"), "gs://my-bucket could not be attached (above)"),
        ("workload delete", ("delete", "--name=g3-another", "--yes"), "xpk could not delete g3-another (above)"),
    ],
)
def test_an_error_of_xpk_is_named(cloud, words, command, expected):
    cloud.answer(words, "", status=1)
    _, err = cloud.run("gke.sh", command[0], *pods.POOL, *command[1:], status=1)
    assert err.splitlines()[-1] == f"gke.sh: error: {expected}"


def test_nothing_is_deleted_without_yes(cloud):
    delete = ("delete", *pods.POOL, "--name=g3-another")
    _, err = cloud.run("gke.sh", *delete, status=1)
    assert "this would delete the workload g3-another of my-cluster, but not what is in the bucket; confirm with" in err
    assert not cloud.calls("delete")
    cloud.run("gke.sh", *delete, "--yes")
    assert len(cloud.calls("delete")) == 1
    _, err = cloud.run("gke.sh", "delete", *pods.POOL, "--name=g3", "--yes")
    assert "g3 does not exist: nothing to delete" in err and len(cloud.calls("delete")) == 1


def test_a_bucket_is_attached_once(cloud):
    attach = ("attach", *pods.POOL, "--bucket=gs://my-bucket")
    cloud.run("gke.sh", *attach)
    cloud.answer("storage list", "[XPK] Starting\nNAME   TYPE\nmy-bucket   gcsfuse\n")
    _, err = cloud.run("gke.sh", *attach)
    assert "my-bucket is attached already: nothing to do" in err
    assert len(cloud.calls("storage", "attach")) == 1


def test_another_xpk_can_be_named(cloud):
    cloud.program("my xpk", '#!/usr/bin/env bash\necho called with "$*"\n')
    environment = {**cloud.environment, "XPK": str(cloud.root / "bin" / "my xpk")}
    out, _ = pods.launch("gke.sh", "list", *pods.POOL, env=environment, cwd=cloud.root)
    assert out.startswith("called with workload list")
