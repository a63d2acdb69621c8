"""The flags of XLA's CPU compiler in tests: toys run for milliseconds and compile for seconds, so spare its effort."""

import importlib.metadata

SPARE_EFFORT = (
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    # Each core has a worker of pytest. Alone, the scanned cases of test_transformer.py took 39 s of CPU without this,
    # and 31 with it.
    "--xla_cpu_parallel_codegen_split_count=1",
)
NO_EMITTERS = "--xla_cpu_use_fusion_emitters=false"  # a third of the time of compiling
NO_FLAG_OF_EMITTERS = (0, 11, 2)  # of jaxlib: from here on they are always on, and XLA exits at a flag it does not know


def spare_effort(jaxlib: str) -> tuple[str, ...]:
    """The flags that this version of jaxlib knows."""
    version = tuple(int(part) for part in jaxlib.split(".")[:3])
    return SPARE_EFFORT if version >= NO_FLAG_OF_EMITTERS else (*SPARE_EFFORT, NO_EMITTERS)


def for_devices(num_devices: int) -> str:
    """The value of XLA_FLAGS for a process with so many CPU devices."""
    flags = spare_effort(importlib.metadata.version("jaxlib"))
    return " ".join([f"--xla_force_host_platform_device_count={num_devices}", *flags])
