"""The launchers' commands by gcloud's linter and xpk's dry run, and their flags by the TPU compiler; no cloud."""

import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys

import pytest

pytestmark = pytest.mark.interop

from gemma3_jax import chips  # noqa: E402
from gemma3_jax.planning import compiler_flags  # noqa: E402
from tests.launch import pods  # noqa: E402

WORKDIR = "--workdir=gs://my-bucket/runs/1b"
CONFIG = ("--", "--config=experiments/recipe.py:1b", '--config.note=it\'s a "b" $HOME')
TPU_VM = {
    "create": ("--job=1b", "--bucket=gs://my-bucket", "--spot", "--valid_until=6h", "--service_account=me@x.iam"),
    "setup": ("--bucket=gs://my-bucket", "--iap"),
    "run": (WORKDIR, "--internal_ip", *CONFIG),
    "status": (),
    "logs": (WORKDIR,),
    "stop": (),
    "delete": ("--yes",),
}
GKE = {
    "attach": ("--bucket=gs://my-bucket",),
    "run": ("--name=g3", "--job=1b", WORKDIR, "--image=my-image", *CONFIG),
    "list": ("--name=g3",),
    "logs": ("--name=g3",),
    "delete": ("--name=g3", "--yes"),
}


def test_gcloud_knows_every_command_and_flag(tmp_path):
    if not shutil.which("gcloud"):
        pytest.skip("gcloud is not installed")
    commands = [words for verb, flags in TPU_VM.items() for words in pods.dry_run("tpu_vm.sh", verb, *pods.POD, *flags)]
    commands += pods.dry_run(
        "tpu_vm.sh", "create", *pods.POD, "--accelerator=v4-8", "--bucket=gs://my-bucket", "--reserved"
    )
    commands += [words for verb, flags in GKE.items() for words in pods.dry_run("gke.sh", verb, *pods.POOL, *flags)]
    lines = dict.fromkeys(shlex.join(words) for words in commands if words[0] == "gcloud")
    (tmp_path / "commands.json").write_text(json.dumps([{"command_string": line} for line in lines]))
    # An empty configuration: no account, and no usage reports.
    environment = {"CLOUDSDK_CONFIG": str(tmp_path), "CLOUDSDK_CORE_DISABLE_USAGE_REPORTING": "1"}
    line = ["gcloud", "meta", "lint-gcloud-commands", f"--commands-file={tmp_path / 'commands.json'}"]
    done = subprocess.run(line, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert len(results) == len(lines) >= 20
    assert not [f"{one['command_string']}: {one['error_message']}" for one in results if not one["success"]]


@pytest.fixture
def xpk(tmp_path):
    """Runs xpk's own dry run of a command, without settings of a user, and without telemetry."""
    program = os.environ.get("XPK") or shutil.which("xpk")
    if not program:
        pytest.skip("xpk is not installed: pip install xpk in an environment of its own, and let XPK name it")
    variables = {"HOME": str(tmp_path), "TELEMETRY_ENABLED": "false", "DEPENDENCY_AUTO_DOWNLOAD": "false"}

    def run(words: list[str]):
        line = [program, *words[1:], "--dry-run"]
        return subprocess.run(line, env=os.environ | variables, cwd=tmp_path, capture_output=True, text=True)

    return run


@pytest.mark.parametrize("verb", GKE)
def test_xpk_knows_every_command_and_flag(verb, xpk):
    for words in pods.dry_run("gke.sh", verb, *pods.POOL, *GKE[verb]):
        if words[0] == "xpk":
            done = xpk(words)
            assert done.returncode == 0 or "attach" in words, done.stderr
            assert done.returncode != 2 and "usage:" not in done.stderr, done.stderr  # attaching asks a cluster


@pytest.mark.parametrize("accelerator", ["tpu7x-8", "tpu7x-4096"])
def test_xpk_knows_types_that_no_published_job_has(accelerator, xpk):
    flags = ("--name=g3", f"--accelerator={accelerator}", WORKDIR, "--image=my-image", *CONFIG)
    done = xpk(pods.dry_run("gke.sh", "run", *pods.POOL, *flags)[-1])
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def workload(tmp_path, xpk):
    """Returns the JobSet that xpk creates for `gke.sh run`."""
    yaml = pytest.importorskip("yaml")
    manifest = tmp_path / "manifest.yaml"
    create = pods.dry_run("gke.sh", "run", *pods.POOL, *GKE["run"])[-1]
    done = xpk([*create, f"--output-manifest-file={manifest}"])
    assert done.returncode == 0, done.stdout + done.stderr
    return yaml.safe_load(manifest.read_text())


def test_a_workload_has_its_slices_and_restarts_on_the_right_ends(workload):
    spec = workload["spec"]
    [job] = spec["replicatedJobs"]
    assert spec["failurePolicy"]["maxRestarts"] == 50
    assert job["replicas"] == 2 and job["template"]["spec"]["parallelism"] == 64
    [rule] = job["template"]["spec"]["podFailurePolicy"]["rules"]
    assert (rule["action"], rule["onExitCodes"]["operator"]) == ("FailJob", "NotIn")  # for good: no restart
    restarted = set(rule["onExitCodes"]["values"])
    assert {71, 75, 124, 134, 137} <= restarted and not {0, 1, 70} & restarted
    [container] = job["template"]["spec"]["template"]["spec"]["containers"]
    flags = {one["name"]: one["value"] for one in container["env"]}
    assert flags["JAX_PLATFORMS"] == "tpu" and flags["LIBTPU_INIT_ARGS"].startswith("--xla_tpu_enable_data_parallel")


@pytest.mark.parametrize("status", [0, 1, 70, 71, 75, 124])
def test_the_status_of_train_is_that_of_the_container(workload, tmp_path, status):
    process = start_container(workload, tmp_path, f"exit {status}")
    process.communicate(timeout=60)
    assert process.returncode == status
    assert (tmp_path / "got").read_text().splitlines()[-1] == CONFIG[-1]


def test_the_signal_of_kubernetes_reaches_train(workload, tmp_path):
    """SIGTERM goes to the first process of the container, as when its node is taken away."""
    process = start_container(workload, tmp_path, 'trap "exit 75" TERM\nwhile true; do sleep 0.1; done')
    pods.wait_until((tmp_path / "got").exists)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 75


def start_container(workload: dict, directory: pathlib.Path, train: str):
    """Starts the command of the pod on this machine; a script acts as `train`."""
    [container] = workload["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"]
    *shell, script = container["command"]
    tools = directory / "tools"
    tools.mkdir()
    got = shlex.quote(str(directory / "got"))
    record = f'[[ "$1" == -c ]] && exit\nprintf "%s\\n" "$@" >{got}.part && mv {got}.part {got}'
    for name, text in {"python": f"{record}\n{train}", "mountpoint": "exit 0"}.items():
        (tools / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (tools / name).chmod(0o755)
    script = pods.expanded(script, {}).replace("/mnt/gcs", str(directory))
    environment = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}", "GEMMA3_JAX_MOUNTS": str(directory)}
    return subprocess.Popen([*shell, script], cwd=pods.ROOT, env=environment, stdout=subprocess.PIPE, text=True)


# A ZeRO-3 step of scanned layers, as small as it still has every collective; in a process of its own, as libtpu reads
# its flags once.
COMPILE = """
import json, sys
import jax
import jax.numpy as jnp
from jax.experimental import mesh_utils, topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

name, num_slices, options = json.loads(sys.argv[1])
several = {"num_slices": num_slices} if num_slices > 1 else {}
devices = topologies.get_topology_desc(platform="tpu", topology_name=name, **several).devices
shape = (1, len(devices) // num_slices)
if num_slices > 1:
    grid = mesh_utils.create_hybrid_device_mesh(shape, (num_slices, 1), devices)
else:
    grid = mesh_utils.create_device_mesh(shape, devices)
mesh = Mesh(grid, ("replica", "data"), axis_types=(AxisType.Auto,) * 2)
at_rest = NamedSharding(mesh, PartitionSpec(None, "data"))
rows = NamedSharding(mesh, PartitionSpec(("replica", "data")))


def layer(x, weights):
    up, down = (jax.lax.with_sharding_constraint(w, PartitionSpec()).astype(jnp.bfloat16) for w in weights)
    return x + jax.nn.gelu(x @ up) @ down, None


def step(weights, x):
    def loss(weights):
        y, _ = jax.lax.scan(jax.checkpoint(layer), x, weights)
        return jnp.mean(jnp.square(y.astype(jnp.float32)))

    return jax.tree.map(lambda w, gradient: w - gradient, weights, jax.grad(loss)(weights))


shapes = (3, 1024, 4096), (3, 4096, 1024)
weights = tuple(jax.ShapeDtypeStruct(shape, jnp.float32, sharding=at_rest) for shape in shapes)
x = jax.ShapeDtypeStruct((len(devices), 512, 1024), jnp.bfloat16, sharding=rows)
with jax.set_mesh(mesh):
    lowered = jax.jit(step, out_shardings=(at_rest, at_rest), donate_argnums=0).lower(weights, x)
print(json.dumps([lowered.compile(compiler_options=some).as_text() for some in options]))
"""
# Flags that recipes name, and that are on by default: gemma3_jax/planning/compiler_flags.py.
ON_ALREADY = """xla_tpu_enable_async_collective_fusion xla_tpu_enable_async_collective_fusion_fuse_all_gather
xla_tpu_enable_async_collective_fusion_multiple_steps xla_tpu_overlap_compute_collective_tc xla_enable_async_all_gather
xla_enable_async_collective_permute xla_tpu_enable_latency_hiding_scheduler""".split()


def compiled(topology: str, num_slices: int = 1, *, flags: str = "", options=({},)):
    pytest.importorskip("libtpu")
    variables = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "LIBTPU_INIT_ARGS": flags}
    environment = os.environ | variables | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    line = [sys.executable, "-c", COMPILE, json.dumps([topology, num_slices, list(options)])]
    return subprocess.run(line, capture_output=True, text=True, env=environment)


@pytest.mark.parametrize(
    ("kind", "topology"), [("TPU v5 lite", "v5e:2x2"), ("TPU v5", "v5p:2x2x1"), ("TPU v6 lite", "v6e:2x2")]
)
def test_the_compiler_takes_our_flags_and_options(kind, topology):
    flags = compiler_flags.libtpu_init_args(2)
    assert flags and not compiler_flags.libtpu_init_args(1)
    done = compiled(topology, 2, flags=flags, options=[{}, chips.compiler_options(kind)])
    assert done.returncode == 0, done.stderr[-2000:]
    without, ours = json.loads(done.stdout.splitlines()[-1])
    assert without != ours  # the options change the program


def test_a_flag_that_the_compiler_does_not_know_ends_it():
    done = compiled("v5e:2x2", flags="--xla_tpu_no_such_flag=true")
    assert done.returncode != 0 and "Unknown command line flag 'xla_tpu_no_such_flag'" in done.stderr


@pytest.mark.parametrize("topology", ["v5e:2x4", "v5p:2x2x2", "v6e:2x4"])
def test_flags_that_recipes_still_name_are_on_already(topology):
    done = compiled(topology, options=[{}, *({name: "true"} for name in ON_ALREADY)])
    assert done.returncode == 0, done.stderr[-2000:]
    default, *named = json.loads(done.stdout.splitlines()[-1])
    assert [name for name, text in zip(ON_ALREADY, named, strict=True) if text != default] == []
