"""What the launchers refuse, in one line, before any command runs; and the tables of slices and jobs."""

import ast
import math
import os
import pathlib
import re

import pytest

from experiments import pods as planned_pods
from experiments import recipe
from gemma3_jax import chips
from gemma3_jax.planning import accelerators, compiler_flags, topologies
from launch import check, checks, flags, verbs
from tests.launch import pods

MODULES = (check, checks, flags, verbs, accelerators, compiler_flags, topologies, chips)
SOURCES = [pathlib.Path(module.__file__) for module in MODULES]
VERBS = [(script, verb) for script, launcher in verbs.LAUNCHERS.items() for verb in launcher.verbs]

CREATE = {
    "--name": "g3",
    "--project": "my-project",
    "--zone": "us-central1-a",
    "--accelerator": "v5litepod-16",
    "--bucket": "gs://my-bucket",
}
RUN = {
    **{name: CREATE[name] for name in ("--name", "--project", "--zone")},
    "--workdir": "gs://my-bucket/runs/1b",
    "--": "--config=experiments/recipe.py:1b",
}
WORKLOAD = RUN | {"--cluster": "my-cluster", "--accelerator": "v5litepod-16"}


def words(flags: dict) -> list[str]:
    """Returns the flags as words. A value of None leaves a flag out; True makes it a switch."""
    before = [
        name if value is True else f"{name}={value}"
        for name, value in flags.items()
        if value is not None and name != "--"
    ]
    return before + (["--", *flags["--"].split("|")] if flags.get("--") else [])


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"--name": "My_Job."}, "--name is My_Job.; it must be at most 40 .* such as my-job$"),
        ({"--name": "a" * 41}, f"at most 40 .* such as {'a' * 40}$"),
        ({"--accelerator": None, "--job": "1b", "--num_slices": "2"}, "--job=1b means --accelerator=v5litepod-256 "),
        ({"--name": "1; rm -rf /"}, r"--name is '1; rm -rf /'; .* such as rm--rf$"),
        ({"--name": None}, "--name is required: --name=NAME"),
        ({"--project": "My Project"}, "--project is 'My Project'; it must be the ID of a project .* 6 to 30"),
        ({"--project": "123456"}, "--project is 123456; it must be the ID of a project"),
        ({"--zone": "us-central1"}, "--zone is us-central1, which is a region; .* such as us-central1-a$"),
        ({"--zone": "us-centrall-b"}, "--zone is us-centrall-b; it must look like us-central[12]-b "),
        ({"--zone": ""}, "--zone needs a value: --zone=VALUE"),
        ({"--accelerator": "v5e-48"}, "--accelerator is v5e-48; .* the nearest: v5litepod-32, v5litepod-64$"),
        ({"--accelerator": "v5p-20000"}, "--accelerator is v5p-20000; .* the nearest: v5p-12288$"),
        ({"--accelerator": "v4-12288"}, "--accelerator is v4-12288; .* the nearest: v4-4096$"),
        (
            {"--accelerator": "h100"},
            "--accelerator is h100; .* the nearest: v4-32, v5litepod-16, v5p-32, v6e-16, tpu7x-32$",
        ),
        ({"--accelerator": None}, "--accelerator is required, such as --accelerator=v5litepod-16, or --job"),
        ({"--accelerator": None, "--job": "2b"}, "--job is 2b; the published jobs are 270m, 1b, 4b, 12b, 27b$"),
        ({"--job": "1b"}, "--job=1b means --accelerator=v5litepod-256 --num_slices=2; leave these out, or --job"),
        ({"--num_slices": "two"}, "--num_slices is two; it must be a whole number from 1 to 256$"),
        ({"--num_slices": "0"}, "--num_slices is 0; it must be a whole number from 1 to 256$"),
        ({"--num_slices": "a[$(id)]"}, r"--num_slices is 'a\[\$\(id\)\]'; it must be a whole number"),
        ({"--bucket": "my-bucket"}, "--bucket is my-bucket; it must look like gs://BUCKET: gs://my-bucket$"),
        (
            {"--bucket": "gs://my-bucket/runs"},
            "--bucket is gs://my-bucket/runs; it must be a bucket alone: gs://my-bucket$",
        ),
        ({"--bucket": "gs://My Bucket"}, "--bucket names the bucket 'My Bucket'; buckets are 3 to 63"),
        ({"--spot": True, "--reserved": True}, "give --spot or --reserved, not both$"),
        ({"--valid_until": "soon"}, "--valid_until is soon; it must be a duration, such as 6h$"),
        ({"--acelerator": "v4-8"}, r"there is no flag --acelerator; did you mean --accelerator\?"),
        ({"--spot": "yes"}, "--spot is a switch, and takes no value$"),
        ({"--dry_run": True, "--bucket": "gs://my\nbucket"}, r"'gs://my.nbucket' has a line break"),
    ],
)
def test_create_says_what_is_wrong_and_what_is_right(changed, expected):
    line = pods.refused("tpu_vm.sh", "create", *words(CREATE | changed))
    assert line.startswith("tpu_vm.sh: error: ")
    assert_matches(expected, line)


def assert_matches(pattern: str, line: str) -> None:
    assert re.search(pattern, line), line


@pytest.mark.parametrize("script", ["tpu_vm.sh", "gke.sh"])
@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"--workdir": "runs/1b"}, "--workdir is runs/1b; it must look like gs://BUCKET/DIRECTORY: gs://runs/1b$"),
        (
            {"--workdir": "gs://my-bucket"},
            "--workdir is gs://my-bucket; .* a directory in a bucket, .*: gs://my-bucket/runs/g3$",
        ),
        (
            {"--workdir": "gs://my-bucket/a/../b"},
            "--workdir is gs://my-bucket/a/../b; it must be a directory in a bucket",
        ),
        ({"--": None}, "there is nothing to train: .* -- --config=experiments/recipe.py:1b"),
        ({"--": "--stage=qat"}, "the arguments after -- have no --config=FILE"),
        ({"--": "--config=experiments/recpie.py:1b"}, "there is no file experiments/recpie.py in this checkout$"),
        ({"--": "--config=setup.cfg|--workdir=x"}, "--workdir comes before --, as gs://BUCKET/DIRECTORY$"),
        (
            {"--": "--config=setup.cfg|--config.data=gs://other/x"},
            "in the bucket other, and only that of --workdir is mounted: my-bucket$",
        ),
        ({"--max_restarts": "-1"}, "--max_restarts is -1; it must be a whole number from 0 to 100000$"),
    ],
)
def test_run_says_what_is_wrong_and_what_is_right(script, changed, expected):
    command = WORKLOAD if script == "gke.sh" else RUN
    assert_matches(expected, pods.refused(script, "run", *words(command | changed)))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["craete"], r"there is no verb craete; did you mean create\? \(there are: create setup .* delete\)$"),
        (["status", "g3"], "g3 is not a flag: flags look like --name=value; arguments of train come after --$"),
        (["status", "--name", "g3"], "--name needs a value: --name=VALUE$"),
        (["status", "--name=a", "--name=b"], "--name is given twice$"),
        (["status", "-n"], "-n is not a flag: flags look like --name=value"),
        (["status", "--dry_run", "--name="], "--name needs a value: --name=VALUE$"),
        (["run", *words(RUN | {"--num_slices": "2"})], "--accelerator is required, such as"),
        (["status", *pods.POD, "--iap", "--internal_ip"], "give --internal_ip or --iap, not both$"),
    ],
)
def test_words_that_are_not_flags_are_refused(arguments, expected):
    assert_matches(expected, pods.refused("tpu_vm.sh", *arguments))


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"--image": "x", "--commit": "main"}, "--image has the code already; leave out --base_image and --commit$"),
        ({"--libtpu_flags": '--x="y"'}, "--libtpu_flags has a quote, a backslash or a dollar sign in it"),
        ({"--grace_seconds": "5"}, "--grace_seconds is 5; it must be a whole number from 30 to 3600$"),
        ({"--cluster": "C"}, "--cluster is C; it must be at most 40"),
        ({"--image": "a b"}, "--image is 'a b'; it must look like REGISTRY/NAME:TAG$"),
        ({"--priority": "top"}, "--priority is top; it must be very-low, low, medium, high or very-high$"),
    ],
)
def test_a_workload_is_checked_too(changed, expected):
    assert_matches(expected, pods.refused("gke.sh", "run", *words(WORKLOAD | {"--dry_run": True} | changed)))


@pytest.mark.parametrize(
    ("script", "verb", "tool"),
    [("tpu_vm.sh", "status", "gcloud"), ("gke.sh", "list", "xpk"), ("gke.sh", "logs", "gcloud")],
)
def test_a_tool_that_is_not_installed_is_one_clear_line(script, verb, tool):
    line = pods.refused(script, verb, *(pods.POD if script == "tpu_vm.sh" else [*pods.POOL, "--name=g3"]))
    assert_matches(rf"error: {tool} is not installed \(.*\); --dry_run works without it$", line)


@pytest.mark.parametrize("script", ["tpu_vm.sh", "gke.sh"])
def test_help_shows_every_verb_and_an_example_that_runs(script):
    help_text, _ = pods.launch(script, "--help")
    assert set(verbs.LAUNCHERS[script].verbs) <= set(help_text.split())
    example = help_text.partition("example:\n")[2].replace("\\\n", " ")
    place = re.search(r"^  \w+='(.*)'$", example, flags=re.MULTILINE)[1].split()
    commands = [line.partition("#")[0].split()[2:] for line in example.splitlines() if line.strip().startswith("bash")]
    for verb, *rest in commands:
        rest = [word for flag in rest for word in (place if flag.startswith("$") else [flag])]
        assert pods.dry_run(script, verb, *rest)
    assert {verb for verb, *_ in commands} <= set(help_text.split())


@pytest.mark.parametrize(("script", "verb"), VERBS)
def test_help_of_a_verb_shows_its_flags_and_its_function_exists(script, verb):
    help_text, _ = pods.launch(script, verb, "--help")
    assert help_text.startswith(f"usage: bash launch/{script} {verb} --")
    for flag in flags.flags_of(verbs.LAUNCHERS[script], verb):
        assert re.search(rf"^  --{flag.name}(=| |$)", help_text, flags=re.MULTILINE), flag.name
    assert max(map(len, help_text.splitlines())) <= 80
    assert f"\nverb_{verb}() {{\n" in (pods.ROOT / "launch" / script).read_text()


def test_no_verb_is_an_error_that_shows_the_help():
    help_text, _ = pods.launch("gke.sh", "--help")
    assert pods.launch("gke.sh", status=1) == (help_text, "")


def test_the_launchers_want_a_python_that_is_new_enough(tmp_path):
    old = tmp_path / "python3.9"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    for python in (old, tmp_path / "missing"):
        _, err = pods.launch("gke.sh", "list", status=1, env={**os.environ, "PYTHON": str(python)})
        assert err == f"gke.sh: error: {python} is not Python 3.10 or later; PYTHON=PATH names another\n"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_what_the_launchers_import_parses_on_python_3_10(path):
    ast.parse(path.read_text(), feature_version=(3, 10))


def test_slices_have_as_many_chips_as_their_topology_and_name_imply():
    for name in accelerators.TOPOLOGIES:
        topology = accelerators.topology(name)  # which has to be one that gemma3_jax.planning.topologies knows
        cores_counted = 2 if topology.chip.name in ("v4", "v5p", "tpu7x") else 1
        assert int(name.split("-")[1]) == topology.num_chips * cores_counted, name


def test_accelerator_types_are_those_that_the_cloud_documents():
    sizes = {prefix: [] for prefix in ("v4", "v5litepod", "v5p", "v6e", "tpu7x")}
    for name in accelerators.TOPOLOGIES:
        prefix, size = name.split("-")
        sizes[prefix].append(int(size))
    powers = [2**exponent for exponent in range(2, 13)]  # 4 to 4,096
    assert sizes["v4"] == sizes["tpu7x"] == powers[1:]
    assert sizes["v5p"] == [*powers[1:], 8192, 12288]
    assert sizes["v5litepod"] == sizes["v6e"] == [1, *powers[:7]]
    names = ("v4-32", "v4-4096", "v5p-12288", "v5litepod-16", "v6e-8")
    assert [accelerators.TOPOLOGIES[name] for name in names] == [
        *("v4:2x2x4", "v4:8x16x16", "v5p:16x16x24", "v5e:4x4", "v6e:2x4")
    ]


def test_a_generation_that_gke_alone_has_is_no_tpu_vm():
    words = ("create", *pods.POD, "--accelerator=tpu7x-8", "--bucket=gs://my-bucket")
    assert pods.refused("tpu_vm.sh", *words) == (
        "tpu_vm.sh: error: --accelerator is tpu7x-8; tpu7x comes with GKE, not as TPU VMs: use gke.sh, or name an "
        "image with --runtime_version=VERSION"
    )
    assert pods.dry_run("tpu_vm.sh", *words, "--runtime_version=v9")


def test_published_jobs_fill_the_meshes_of_the_recipe():
    assert list(accelerators.JOBS) == list(recipe.MESH)
    for size, (name, num_slices) in accelerators.JOBS.items():
        mesh = recipe.MESH[size]
        assert accelerators.topology(name, num_slices).num_chips == math.prod(mesh.values()), size
        assert mesh["replica"] % num_slices == 0, f"{size}: slices are connected along replica alone"


@pytest.mark.parametrize("size", ["1b", "4b", "12b", "27b"])
def test_published_jobs_are_planned_as_they_are_launched(size):
    name, num_slices = accelerators.JOBS[size]
    planned = {(job.topology, job.num_slices) for job in planned_pods.JOBS if job.config.endswith(f"recipe.py:{size}")}
    assert (accelerators.TOPOLOGIES[name], num_slices) in planned
