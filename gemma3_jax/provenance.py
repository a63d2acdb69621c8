"""What made a run: versions of packages, the commit of the code, the fields of its config. It loads nothing heavy."""

import importlib.metadata
import os
import pathlib
import platform
import subprocess
from collections.abc import Mapping

CONFIG, STARTS = "config.json", "starts.jsonl"  # of a run directory
PACKAGES = ("gemma3_jax", "jax", "flax", "optax", "orbax-checkpoint")
CHANGED = "+changes"
SECONDS_FOR_GIT = 10.0
PACKAGE = pathlib.Path(__file__).resolve().parent


def versions() -> dict[str, str | None]:
    """Version of each package that the numbers of a run hang on, and of Python; None for one that is not installed."""
    return {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


def commit(package: pathlib.Path = PACKAGE) -> str | None:
    """The commit of the checkout that a package lies in, with "+changes" if the package is not as committed there.

    None outside a checkout, without git, and for a package that a checkout holds but does not track, as one installed
    into a virtual environment.
    """
    if _git(package, "ls-files", "--error-unmatch", "--", "__init__.py") is None:
        return None
    found, changes = _git(package, "rev-parse", "HEAD"), _git(package, "status", "--porcelain", "--", ".")
    return found and found + (CHANGED if changes else "")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(directory: pathlib.Path, *command: str) -> str | None:
    """What git says of the checkout that a directory lies in; None if it fails or is not there."""
    # Of whoever started this process, as a hook: they would have git look at another checkout.
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
    """The fields of a nested config by their paths, as "stages.qat.num_steps"; tuples are lists, as in JSON."""
    found: dict = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            found |= fields(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = list(value) if isinstance(value, tuple) else value
    return found
