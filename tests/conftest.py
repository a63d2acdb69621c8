"""Eight CPU devices, exact matmuls, and no silent broadcasting: set before anything imports JAX."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        # Toys run for milliseconds and compile for seconds: spare the compiler's effort.
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        "--xla_cpu_use_fusion_emitters=false",  # a third of the time of compiling
    ]
)

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")


@pytest.fixture
def said():
    """What was said, a line each: `said.append` is told."""
    return []


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """What a module compiled is let go: hundreds of them would come to gigabytes."""
    yield
    jax.clear_caches()
