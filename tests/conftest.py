"""Eight CPU devices, exact matmuls, no silent broadcasting, checked annotations: set before anything imports JAX."""

import gc
import os
import pathlib
import sys
import tempfile

import beartype
import beartype.claw
import jaxtyping

from tests import budget, xla_flags

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {xla_flags.for_devices(8)}"
# A program that another test or worker has compiled is read from here, for as long as the process lives that starts the
# workers. Of a file that a worker is still writing JAX warns, and compiles.
if "PYTEST_XDIST_WORKER" not in os.environ:
    PROGRAMS = tempfile.TemporaryDirectory(prefix="gemma3_jax_tests_", ignore_cleanup_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = PROGRAMS.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax  # noqa: E402
import pytest  # noqa: E402

PACKAGE = pathlib.Path(__file__).parents[1] / "gemma3_jax"
assert PACKAGE.name not in sys.modules, "what is imported already is not checked"
# Shapes are checked where there are any: a call through jaxtyping costs 8 microseconds, through beartype alone 0.5, and
# parsers of bytes make a million calls.
HAVE_SHAPES = [
    ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts)
    for file in PACKAGE.rglob("*.py")
    if "from jaxtyping import" in file.read_text()
]
jaxtyping.install_import_hook(HAVE_SHAPES, "beartype.beartype")
# All other annotations, but those of variables.
FUNCTIONS = beartype.BeartypeConf(
    claw_is_pep526=False,
    claw_skip_package_names=("gemma3_jax.model.config",),  # checks the types of its fields, which files set, by itself
    claw_decor_place_func=beartype.BeartypeDecorPlace.FIRST,  # what jit wraps, not its result
    is_pep484_tower=True,  # counts of bytes are int, and float where they are divided
    warning_cls_on_decorator_exception=None,  # an annotation that cannot be checked is an error
)
beartype.claw.beartype_package(PACKAGE.name, conf=FUNCTIONS)

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")


def pytest_configure(config):
    config.pluginmanager.register(budget)


@pytest.fixture
def said():
    """What was said, a line each: `said.append` is told."""
    return []


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Clears the compiled programs of each module: those of hundreds would come to gigabytes."""
    yield
    jax.clear_caches()


gc.freeze()  # what was imported is never collected
gc.set_threshold(50_000, 20, 20)  # tracing makes millions of objects, most of which go by themselves
