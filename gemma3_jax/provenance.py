"""The origin of a run: package versions, the commit of the code, the fields of its config. Imports nothing heavy."""

import importlib.metadata
import os
import pathlib
import platform
import subprocess
from collections.abc import Mapping

CONFIG, STARTS = "config.json", "starts.jsonl"  # files of a run directory
PACKAGES = ("gemma3_jax", "jax", "flax", "optax", "orbax-checkpoint")
CHANGED = "+changes"
SECONDS_FOR_GIT = 10.0
PACKAGE = pathlib.Path(__file__).resolve().parent


def versions() -> dict[str, str | None]:
    """Returns the versions of Python and of the packages that results depend on; None for a missing package."""
    return {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


def commit(package: pathlib.Path = PACKAGE) -> str | None:
    """Returns the commit of the checkout of a package, with "+changes" if files of the package differ from it.

    None if git is missing, outside a checkout, and for a package that git does not track, such as one in a virtual
    environment inside the checkout.
    """
    if _git(package, "ls-files", "--error-unmatch", "--", "__init__.py") is None:
        return None
    head, changes = _git(package, "rev-parse", "HEAD"), _git(package, "status", "--porcelain", "--", ".")
    return head and head + (CHANGED if changes else "")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(directory: pathlib.Path, *command: str) -> str | None:
    """Returns the output of a git command in a directory; None if it fails or git is missing."""
    # GIT_* variables, which a git hook sets, would point git to another checkout.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "-C", str(directory), *command],
            env=environment,
            capture_output=True,
            text=True,
            timeout=SECONDS_FOR_GIT,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def fields(config: Mapping, prefix: str = "") -> dict:
    """Flattens a nested config: the key of a field is its path, as "stages.qat.num_steps". Tuples become lists."""
    flat: dict = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= fields(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = list(value) if isinstance(value, tuple) else value
    return flat
