# shellcheck shell=bash
# shellcheck disable=SC2034  # the tables are read by pods.sh
# What can be asked for: slices of TPUs by their names, and the published jobs by the size of their model.
# Sourced by pods.sh.

# NAME GENERATION CHIPS TOPOLOGY, of slices that training can have. The number in a name counts chips for v5e and v6e,
# and TensorCores, two a chip, for v4 and v5p. Largest: 256 chips of v5e and v6e, 4,096 of v4 (a pod), 6,144 of v5p.
# Source: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}. Of many shapes with as many chips the documented one stands
# here.
readonly SLICES="
v4-8           v4   4     2x2x1
v4-16          v4   8     2x2x2
v4-32          v4   16    2x2x4
v4-64          v4   32    2x4x4
v4-128         v4   64    4x4x4
v4-256         v4   128   4x4x8
v4-512         v4   256   4x8x8
v4-1024        v4   512   8x8x8
v4-2048        v4   1024  8x8x16
v4-4096        v4   2048  8x16x16
v5litepod-4    v5e  4     2x2
v5litepod-8    v5e  8     2x4
v5litepod-16   v5e  16    4x4
v5litepod-32   v5e  32    4x8
v5litepod-64   v5e  64    8x8
v5litepod-128  v5e  128   8x16
v5litepod-256  v5e  256   16x16
v5p-8          v5p  4     2x2x1
v5p-16         v5p  8     2x2x2
v5p-32         v5p  16    2x2x4
v5p-64         v5p  32    2x4x4
v5p-128        v5p  64    4x4x4
v5p-256        v5p  128   4x4x8
v5p-512        v5p  256   4x8x8
v5p-1024       v5p  512   8x8x8
v5p-2048       v5p  1024  8x8x16
v5p-4096       v5p  2048  8x16x16
v5p-8192       v5p  4096  16x16x16
v5p-12288      v5p  6144  16x16x24
v6e-4          v6e  4     2x2
v6e-8          v6e  8     2x4
v6e-16         v6e  16    4x4
v6e-32         v6e  32    4x8
v6e-64         v6e  64    8x8
v6e-128        v6e  128   8x16
v6e-256        v6e  256   16x16
"

# SIZE SLICE SLICES: the layouts of experiments/recipe.py (report, Table 2). Slices meet along the mesh's `replica`
# alone, so their number divides it. 12B: its 6,144 chips of v4 are more than a pod has, and are three half pods here.
readonly JOBS="
270m  v5litepod-256  1
1b    v5litepod-256  2
4b    v5litepod-256  8
12b   v4-4096        3
27b   v5p-12288      1
"

# GENERATION RUNTIME_VERSION ZONES: the machine image that TPU VMs start from, and zones that had such TPUs for
# everybody when this was written: a hint for errors, as the cloud itself is asked whether a zone has a slice. Source:
# docs.cloud.google.com/tpu/docs/{runtimes,regions-zones}.
readonly GENERATIONS="
v4   tpu-ubuntu2204-base  us-central2-b
v5e  v2-alpha-tpuv5-lite  us-central1-a,us-south1-a,us-west1-c,us-west4-a
v5p  v2-alpha-tpuv5       us-central1-a,us-east5-a
v6e  v2-alpha-tpuv6e      us-central1-b,us-east1-d,us-east5-a,us-east5-b
"

# column TABLE KEY NUMBER: that field of the row whose first is KEY; nothing where there is no such row.
column() {
  awk -v key="$2" -v number="$3" '$1 == key { print $number }' <<<"$1"
}

# keys TABLE: its first fields.
keys() {
  listed "$(awk 'NF { print $1 }' <<<"$1")"
}

# listed LINES: on one line.
listed() {
  printf '%s' "${1//$'\n'/, }"
}

# nearest_slices NAME: the slices of the same generation that are nearest in size, or all generations' smallest pods.
nearest_slices() {
  local prefix="${1%%-*}"
  [[ "$prefix" == v5e || "$prefix" == v5lite ]] && prefix=v5litepod
  awk -v prefix="$prefix" -v size="${1##*-}" '
    NF && index($1, prefix "-") == 1 {
      number = substr($1, length(prefix) + 2) + 0
      if (number <= size + 0) below = $1
      else if (!above) above = $1
    }
    END { print below ? below (above ? ", " above : "") : above ? above : "" }
  ' <<<"$SLICES"
}
