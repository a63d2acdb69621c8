# shellcheck shell=bash
# Flags of the TPU compiler, for LIBTPU_INIT_ARGS. Sourced by pods.sh.

# WHERE FLAG; where: a generation, or `slices`: wherever there are several. Only what is not on already: with libtpu
# 0.0.42 most flags that recipes still name (async collective fusion and its parts, async all-gather and
# collective-permute, the latency hiding scheduler), each by itself, leave the compiled program of a ZeRO-3 step as it is
# on v5e, v5p and v6e: tests/interop/test_launch.py. Fusing all-reduces asynchronously does change it, and took half as much memory
# again: left out, as is whatever else would have to be measured. No run time has been measured here.
#
# data_parallel_all_reduce_opt, data_parallel_opt_different_sized_ops: sums of gradients over the network between slices
#   are overlapped, and pipelined over the steps of a scan.
# scoped_vmem_limit_kib: the fast memory that one operation may use: 96 of a v6e's 128 MiB.
# Source: MaxText, benchmarks/xla_flags_library.py (DATA_PARALLEL_OVERLAP, DENSE_VMEM_LIMIT_FLAG).
readonly FLAGS="
slices  --xla_tpu_enable_data_parallel_all_reduce_opt=true
slices  --xla_tpu_data_parallel_opt_different_sized_ops=true
v6e     --xla_tpu_scoped_vmem_limit_kib=98304
"

# libtpu_flags GENERATION NUM_SLICES: on one line.
libtpu_flags() {
  awk -v generation="$1" -v slices="$2" '
    NF && ($1 == generation || ($1 == "slices" && slices > 1)) { line = line (line ? " " : "") $2 }
    END { print line }
  ' <<<"$FLAGS"
}
