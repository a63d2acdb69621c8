"""The flags of XLA's CPU compiler in tests: toys run for milliseconds and compile for seconds, so spare its effort."""

SPARE_EFFORT = (
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_use_fusion_emitters=false",  # a third of the time of compiling
    # Both cores have a worker of pytest: splitting a program for more threads costs a quarter of the CPU time.
    "--xla_cpu_parallel_codegen_split_count=1",
)


def for_devices(num_devices: int) -> str:
    """The value of XLA_FLAGS for a process with so many CPU devices."""
    return " ".join([f"--xla_force_host_platform_device_count={num_devices}", *SPARE_EFFORT])
