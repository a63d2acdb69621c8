"""gke.sh against a cluster of files: what is there is neither made twice nor taken away."""

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
    assert "g3 is there already, and is left as it is" in err
    assert len(cloud.calls("workload", "create")) == 1 and not cloud.calls("delete")


def test_the_image_gets_the_files_that_git_tracks(cloud):
    """xpk looks at the directory while it runs; afterwards it is gone."""
    look = 'for word; do [[ "$word" != --script-dir=* ]] || cp -r "${word#*=}" "$PWD/copied"; done'
    cloud.program("xpk", f"#!/usr/bin/env bash\n{look}\n")
    cloud.run("gke.sh", *RUN)
    copied = cloud.root / "copied"
    assert (copied / "launch" / "test.sh").read_bytes() == (pods.ROOT / "launch" / "test.sh").read_bytes()
    assert not (copied / ".git").exists()


def test_what_xpk_cannot_do_ends_it(cloud):
    cloud.answer("workload create", "", status=1)
    _, err = cloud.run("gke.sh", *RUN, status=1)
    assert "xpk could not create g3 (above)" in err.splitlines()[-1]
    cloud.answer("workload list", "", status=1)
    _, err = cloud.run("gke.sh", *RUN, status=1)
    assert "the workloads of my-cluster cannot be listed (above)" in err.splitlines()[-1]


def test_nothing_is_deleted_without_being_asked(cloud):
    delete = ("delete", *pods.POOL, "--name=g3-another")
    _, err = cloud.run("gke.sh", *delete, status=1)
    assert "this would delete the workload g3-another of my-cluster; say so with --yes" in err
    assert not cloud.calls("delete")
    cloud.run("gke.sh", *delete, "--yes")
    assert len(cloud.calls("delete")) == 1
    _, err = cloud.run("gke.sh", "delete", *pods.POOL, "--name=g3", "--yes")
    assert "g3 is not there: nothing to delete" in err and len(cloud.calls("delete")) == 1


def test_a_bucket_is_attached_once(cloud):
    attach = ("attach", *pods.POOL, "--bucket=gs://my-bucket")
    cloud.run("gke.sh", *attach)
    cloud.answer("storage list", "[XPK] Starting\nNAME   TYPE\nmy-bucket   gcsfuse\n")
    _, err = cloud.run("gke.sh", *attach)
    assert "my-bucket is attached already: nothing to do" in err
    assert len(cloud.calls("storage", "attach")) == 1


def test_another_xpk_can_be_named(cloud):
    cloud.program("my xpk", '#!/usr/bin/env bash\necho said "$*"\n')
    environment = {**cloud.environment, "XPK": str(cloud.root / "bin" / "my xpk")}
    out, _ = pods.launch("gke.sh", "list", *pods.POOL, env=environment, cwd=cloud.root)
    assert out.startswith("said workload list")
