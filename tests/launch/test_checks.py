"""What the launchers refuse, in one sentence, before any command is run; and what stands in their tables."""

import math
import re
import subprocess

import pytest

from experiments import recipe
from tests.launch import pods

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
    """Flags as words; a value of None leaves one out, and True is a switch's."""
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
        ({"--name": "1; rm -rf /"}, r"--name is '1; rm -rf /'; .* such as rm--rf$"),
        ({"--name": None}, "--name is needed: --name=VALUE"),
        ({"--project": "My Project"}, "--project is 'My Project'; it must be the id of a project .* 6 to 30"),
        ({"--project": "123456"}, "--project is 123456; it must be the id of a project"),
        ({"--zone": "us-central1"}, "--zone is us-central1, which is a region; .* such as us-central1-a$"),
        ({"--zone": "us-centrall-b"}, "--zone is us-centrall-b; it must look like us-central[12]-b "),
        ({"--zone": ""}, "--zone needs a value: --zone=VALUE"),
        ({"--accelerator": "v5e-48"}, "--accelerator is v5e-48; .* the nearest: v5litepod-32, v5litepod-64$"),
        ({"--accelerator": "v5p-20000"}, "--accelerator is v5p-20000; .* the nearest: v5p-12288$"),
        ({"--accelerator": "v4-12288"}, "--accelerator is v4-12288; .* the nearest: v4-4096$"),
        ({"--accelerator": "h100"}, "--accelerator is h100; .* the nearest: v4-32, v5litepod-16, v5p-32, v6e-16$"),
        ({"--accelerator": None}, "--accelerator is needed, such as --accelerator=v5litepod-16, or --job"),
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
        ({"--acelerator": "v4-8"}, r"there is no flag --acelerator here; did you mean --accelerator\?"),
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
        ({"--": None}, "nothing says what to train: .* -- --config=experiments/recipe.py:1b"),
        ({"--": "--stage=qat"}, "what comes after -- has no --config=FILE"),
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
    flags = WORKLOAD if script == "gke.sh" else RUN
    assert_matches(expected, pods.refused(script, "run", *words(flags | changed)))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["craete"], r"there is no verb craete; did you mean create\? \(there are: create setup .* delete\)$"),
        (["status", "g3"], "g3 is no flag: flags look like --name=value; what train gets comes after --$"),
        (["status", "--name", "g3"], "--name needs a value: --name=VALUE$"),
        (["status", "--name=a", "--name=b"], "--name is given twice$"),
        (["status", *pods.POD, "--iap", "--internal_ip"], "give --internal_ip or --iap, not both$"),
    ],
)
def test_words_that_are_no_flags_are_refused(arguments, expected):
    assert_matches(expected, pods.refused("tpu_vm.sh", *arguments))


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"--image": "x", "--commit": "main"}, "--image has the code already; leave out --base_image and --commit$"),
        ({"--libtpu_flags": '--x="y"'}, "--libtpu_flags has a quote, a backslash or a dollar sign in it"),
        ({"--grace_seconds": "5"}, "--grace_seconds is 5; it must be a whole number from 30 to 3600$"),
        ({"--cluster": "C"}, "--cluster is C; it must be at most 40"),
        ({"--image": "a b"}, "the image is 'a b'; it must look like REGISTRY/NAME:TAG$"),
        ({"--priority": "top"}, "--priority is top; it must be very-low, low, medium, high or very-high$"),
    ],
)
def test_a_workload_is_checked_too(changed, expected):
    flags = WORKLOAD | {"--dry_run": True} | changed
    out, err = pods.launch("gke.sh", "run", *words(flags), status=1)
    assert_matches(expected, err.splitlines()[-1])


@pytest.mark.parametrize(
    ("script", "verb", "tool"),
    [("tpu_vm.sh", "status", "gcloud"), ("gke.sh", "list", "xpk"), ("gke.sh", "logs", "gcloud")],
)
def test_a_tool_that_is_not_installed_is_one_clear_line(script, verb, tool):
    flags = pods.POD if script == "tpu_vm.sh" else [*pods.POOL, "--name=g3"]
    line = pods.refused(script, verb, *flags)
    assert_matches(rf"error: {tool} is not installed \(.*\); with --dry_run nothing is needed$", line)


@pytest.mark.parametrize("script", ["tpu_vm.sh", "gke.sh"])
def test_help_shows_every_verb_and_an_example_that_runs(script):
    help_text, _ = pods.launch(script, "--help")
    assert pods.launch(script, "run", "--help") == (help_text, "")
    example = help_text.partition("example:\n")[2].replace("\\\n", " ")
    place = re.search(r"^  \w+='(.*)'$", example, flags=re.MULTILINE)[1].split()
    commands = [line.partition("#")[0].split()[2:] for line in example.splitlines() if line.strip().startswith("bash")]
    for verb, *flags in commands:
        flags = [word for flag in flags for word in (place if flag.startswith("$") else [flag])]
        assert pods.dry_run(script, verb, *flags)
    assert {verb for verb, *_ in commands} <= set(help_text.split())


def table(name: str) -> list[list[str]]:
    script = f"source {pods.ROOT}/launch/tpus.sh && printf '%s' \"${name}\""
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    return [line.split() for line in done.stdout.splitlines() if line]


def test_slices_have_as_many_chips_as_their_topology_and_name_say():
    generations = {name for name, *_ in table("GENERATIONS")}
    for name, generation, chips, topology in table("SLICES"):
        assert generation in generations
        assert int(chips) == math.prod(map(int, topology.split("x"))), name
        assert int(name.split("-")[1]) == int(chips) * (2 if generation in ("v4", "v5p") else 1), name


def test_published_jobs_fill_the_meshes_of_the_recipe():
    slices = {name: int(chips) for name, _, chips, _ in table("SLICES")}
    jobs = table("JOBS")
    assert [size for size, *_ in jobs] == list(recipe.MESH)
    for size, name, num_slices in jobs:
        mesh = recipe.MESH[size]
        assert slices[name] * int(num_slices) == math.prod(mesh.values()), size
        assert mesh["replica"] % int(num_slices) == 0, f"{size}: slices meet along replica alone"
