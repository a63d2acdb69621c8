"""Flags of the TPU compiler that a job of several slices runs with, as the value of LIBTPU_INIT_ARGS.

Flags that are on by default are left out: with libtpu 0.0.42 most that recipes still name (async collective fusion and
its parts, async all-gather and collective-permute, the latency hiding scheduler) do not change, each by itself, the
compiled program of a ZeRO-3 step on v5e, v5p and v6e (tests/interop/test_launch.py). Asynchronous fusion of all-reduces
does, and needed 1.5 times the memory: it is left out, as are all whose benefit would have to be measured. No run time
has been measured here. What depends on the chip is an option of the program (chips.compiler_options).
Source: MaxText, benchmarks/xla_flags_library.py (DATA_PARALLEL_OVERLAP).
"""

# Gradient sums over the network between slices are overlapped, and pipelined over the steps of a scan.
_OF_SEVERAL_SLICES = (
    "--xla_tpu_enable_data_parallel_all_reduce_opt=true",
    "--xla_tpu_data_parallel_opt_different_sized_ops=true",
)


def libtpu_init_args(num_slices: int) -> str:
    """Returns the flags, on one line; none for one slice."""
    return " ".join(_OF_SEVERAL_SLICES if num_slices > 1 else ())
