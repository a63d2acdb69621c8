"""The flags of XLA's CPU compiler in tests: toys run for milliseconds and compile for seconds, so spare its effort."""

SPARE_EFFORT = (
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_use_fusion_emitters=false",  # a third of the time of compiling
    # Each core has a worker of pytest. Alone, the scanned cases of test_transformer.py took 39 s of CPU without this,
    # and 31 with it.
    "--xla_cpu_parallel_codegen_split_count=1",
)


def for_devices(num_devices: int) -> str:
    """The value of XLA_FLAGS for a process with so many CPU devices."""
    return " ".join([f"--xla_force_host_platform_device_count={num_devices}", *SPARE_EFFORT])
