"""Checks of a launcher's flags: what can be known to be wrong before any command runs.

A check of one flag takes its name and all values, and returns the value to use; a check of several returns the values
that follow from them. Raises: ValueError that says what is right.
"""

import difflib
import os
import pathlib
import re
import shlex
from collections.abc import Callable

from gemma3_jax.planning import accelerators, compiler_flags

ROOT = pathlib.Path(__file__).parents[1]
MOUNTS = os.environ.get("GEMMA3_JAX_MOUNTS", "/mnt/gcs")  # a bucket is mounted below, by its name, on hosts and in pods
MAX_NAME = 40  # characters; xpk allows no more, and gcloud appends numbers
MAX_SLICES = 256


def quoted(text: str) -> str:
    """As a shell reads it back; control characters as escapes."""
    return shlex.quote(text) if text.isprintable() else repr(text)


def control_characters(texts: list[str]) -> None:
    for text in texts:
        if re.search(r"[\x00-\x1f\x7f]", text):
            raise ValueError(f"{quoted(text)} has a line break or another control character in it")


def name(flag: str, values: dict[str, str]) -> str:
    value = values[flag]
    if re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", value) and len(value) <= MAX_NAME:
        return value
    legal = re.sub(r"[_. ]", "-", value.lower())
    legal = re.sub(r"^[^a-z]+|[^a-z0-9-]", "", legal)[:MAX_NAME].rstrip("-")
    raise ValueError(
        f"--{flag} is {quoted(value)}; it must be at most {MAX_NAME} lower-case letters, digits and -, a letter "
        f"first and no - last, such as {legal or 'gemma3'}"
    )


def project(flag: str, values: dict[str, str]) -> str:
    value = values[flag]
    if not re.fullmatch(r"([a-z0-9.-]+:)?[a-z][-a-z0-9]{4,28}[a-z0-9]", value):
        raise ValueError(
            f"--{flag} is {quoted(value)}; it must be the ID of a project (not its name or number): 6 to 30 lower-case "
            "letters, digits and -; 'gcloud projects list' shows them"
        )
    return value


def zone(flag: str, values: dict[str, str]) -> str:
    value = values[flag]
    if re.fullmatch(r"[a-z]+-[a-z]+[0-9]+-(ai[0-9]+)?[a-z]", value):
        return value
    if re.fullmatch(r"[a-z]+-[a-z]+[0-9]+", value):
        raise ValueError(f"--{flag} is {value}, which is a region; its zones end in a letter, such as {value}-a")
    known = sorted({zone for offer in accelerators.OFFERS.values() for zone in offer.zones})
    [like] = difflib.get_close_matches(value, known, n=1, cutoff=0)
    raise ValueError(
        f"--{flag} is {quoted(value)}; it must look like {like} ('gcloud compute tpus locations list' shows all)"
    )


def count(least: int, most: int) -> Callable[[str, dict[str, str]], str]:
    def check(flag: str, values: dict[str, str]) -> str:
        value = values[flag]
        if not (re.fullmatch(r"0|[1-9][0-9]{0,6}", value) and least <= int(value) <= most):
            raise ValueError(f"--{flag} is {quoted(value)}; it must be a whole number from {least} to {most}")
        return value

    return check


def pattern(regex: str, must: str) -> Callable[[str, dict[str, str]], str]:
    def check(flag: str, values: dict[str, str]) -> str:
        if not re.fullmatch(regex, values[flag]):
            raise ValueError(f"--{flag} is {quoted(values[flag])}; it must {must}")
        return values[flag]

    return check


def not_both(first: str, second: str) -> Callable[[dict[str, str]], dict[str, str]]:
    def check(values: dict[str, str]) -> dict[str, str]:
        if values[first] and values[second]:
            raise ValueError(f"give --{first} or --{second}, not both")
        return {}

    return check


# --- buckets ---


def _bucket_of(flag: str, url: str, form: str) -> str:
    if not url.startswith("gs://"):
        raise ValueError(f"--{flag} is {quoted(url)}; it must look like {form}: gs://{url.removeprefix('/')}")
    bucket = url.removeprefix("gs://").partition("/")[0]
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]", bucket):
        raise ValueError(
            f"--{flag} names the bucket {quoted(bucket)}; buckets are 3 to 63 lower-case letters, digits, - _ and ."
        )
    return bucket


def bucket(flag: str, values: dict[str, str]) -> str:
    """gs://BUCKET alone; returns BUCKET."""
    value = values[flag]
    bucket = _bucket_of(flag, value, "gs://BUCKET")
    if value.removesuffix("/") != f"gs://{bucket}":
        raise ValueError(f"--{flag} is {quoted(value)}; it must be a bucket alone: gs://{bucket}")
    return bucket


def directory(flag: str, values: dict[str, str]) -> str:
    """gs://BUCKET/DIRECTORY, without a slash at its end."""
    url = values[flag].removesuffix("/")
    bucket = _bucket_of(flag, values[flag], "gs://BUCKET/DIRECTORY")
    if not re.fullmatch(r"gs://[^/]+(/[A-Za-z0-9._=+@,-]+)+", url) or re.search(r"/\.\.?(/|$)", url):
        raise ValueError(
            f"--{flag} is {quoted(values[flag])}; it must be a directory in a bucket, of letters, digits and . _ = + @ "
            f", -: gs://{bucket}/runs/{values['name']}"
        )
    return url


def mounts(values: dict[str, str]) -> dict[str, str]:
    """Returns `bucket`, where it is `mounted`, and the `mounted_workdir`."""
    workdir = values.get("workdir", "")
    bucket = values.get("bucket") or _bucket_of("workdir", workdir, "")
    return {"bucket": bucket, "mounted": f"{MOUNTS}/{bucket}", "mounted_workdir": _mounted(workdir, bucket)}


def _mounted(text: str, bucket: str) -> str:
    """With the path below MOUNTS in place of each gs:// of the one bucket that is mounted."""

    def path(url: re.Match) -> str:
        if url[1] != bucket:
            raise ValueError(
                f"{quoted(text)} is in the bucket {quoted(url[1])}, and only that of --workdir is mounted: {bucket}"
            )
        return f"{MOUNTS}/{bucket}"

    return re.sub(r"gs://([^/:,=\s]*)", path, text)


# --- slices ---


def slices(values: dict[str, str]) -> dict[str, str]:
    """Returns `accelerator` and `num_slices`, by --job too, the `chip`, and the `zones` that had it."""
    accelerator, job, num_slices = (values[flag] for flag in ("accelerator", "job", "num_slices"))
    if job and job not in accelerators.JOBS:
        raise ValueError(f"--job is {quoted(job)}; the published jobs are {', '.join(accelerators.JOBS)}")
    if job:
        job_accelerator, job_slices = accelerators.JOBS[job]
        if accelerator or num_slices:
            raise ValueError(
                f"--job={job} means --accelerator={job_accelerator} --num_slices={job_slices}; leave these "
                "out, or --job"
            )
        accelerator, num_slices = job_accelerator, str(job_slices)
    if not accelerator:
        raise ValueError("--accelerator is required, such as --accelerator=v5litepod-16, or --job, such as --job=1b")
    try:
        chip = accelerators.topology(accelerator, int(num_slices or 1)).chip.name
    except ValueError as error:
        raise ValueError(f"--accelerator is {quoted(accelerator)}; {error}") from error
    zones = ", ".join(accelerators.OFFERS[chip].zones)
    return {"accelerator": accelerator, "num_slices": num_slices or "1", "chip": chip, "zones": zones}


def slices_if_any(values: dict[str, str]) -> dict[str, str]:
    return slices(values) if any(values[flag] for flag in ("accelerator", "job", "num_slices")) else {}


def runtime_version(values: dict[str, str]) -> dict[str, str]:
    """Returns that of --runtime_version, or of the generation. Raises: ValueError if it has no TPU VMs."""
    version = values["runtime_version"] or accelerators.OFFERS[values["chip"]].runtime_version
    if not version:
        raise ValueError(
            f"--accelerator is {quoted(values['accelerator'])}; {values['chip']} comes with GKE, not as TPU VMs: use "
            "gke.sh, or name an image with --runtime_version=VERSION"
        )
    return {"runtime_version": version}


# --- workloads ---

IMAGE = pattern("[A-Za-z0-9._/:@-]+", "look like REGISTRY/NAME:TAG")


def image(values: dict[str, str]) -> dict[str, str]:
    if values["image"] and (values["base_image"] or values["commit"]):
        raise ValueError("--image has the code already; leave out --base_image and --commit")
    return {}


def flags_in_yaml(values: dict[str, str]) -> dict[str, str]:
    """Returns all `libtpu_flags`, which xpk writes into YAML as they are."""
    if re.search(r'["\\$]', values["libtpu_flags"]):
        raise ValueError(
            "--libtpu_flags has a quote, a backslash or a dollar sign in it, which xpk would write into YAML as it is"
        )
    flags = compiler_flags.libtpu_init_args(int(values["num_slices"]))
    return {"libtpu_flags": f"{flags} {values['libtpu_flags']}".strip()}


def storage(values: dict[str, str]) -> dict[str, str]:
    """Returns the name of the bucket's `storage`, as Kubernetes allows it."""
    return {"storage": re.sub(r"[_.]", "-", values["bucket"])}


# --- train ---


def train_arguments(script: str, values: dict[str, str], words: list[str]) -> list[str]:
    """Returns the arguments of train, with mounted paths: --workdir and the words after --."""
    if not words:
        raise ValueError(
            f"there is nothing to train: {script} run ... -- --config=experiments/recipe.py:1b "
            f"--config.data=gs://{values['bucket']}/data"
        )
    for word in words:
        flag, _, value = word.partition("=")
        path = value.partition(":")[0]
        if word.startswith("--workdir"):
            raise ValueError("--workdir comes before --, as gs://BUCKET/DIRECTORY")
        if flag == "--config" and not path.startswith("/") and not (ROOT / path).is_file():
            raise ValueError(f"{quoted(word)}: there is no file {quoted(path)} in this checkout")
    arguments = [f"--workdir={values['mounted_workdir']}", *(_mounted(word, values["bucket"]) for word in words)]
    if not any(word.startswith("--config=") for word in words):
        raise ValueError("the arguments after -- have no --config=FILE, such as --config=experiments/recipe.py:1b")
    return arguments
