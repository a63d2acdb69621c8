#!/usr/bin/env bash
# A compilation cache that was moved or copied has none of its programs: an entry's key holds the path of the cache.
#
# Natural guess: JAX's persistent cache is keyed by the program, its options, the devices and the versions, so a copy of
#   its directory serves as the original does. On a CPU and a TPU, XLA's caches for GPUs play no part.
# Version: jax 0.10.2, jaxlib 0.10.2, on a CPU (in 0.12.0.1 the key does not hold it)
# Seen: one program compiled with the cache in first/, and again with a copy of it in second/:
#   default: 1 entry in first/, 2 in second/: compiled again
#   jax_persistent_cache_enable_xla_caches=none: 1 entry in first/, 1 in second/: taken from the copy
# Here: gemma3_jax/cli/train.py sets it to none, so that --cache may name a directory that was moved or copied.
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2
cd "$work"
export JAX_PLATFORMS=cpu XLA_FLAGS=''
cat >compile.py <<'PYTHON'
import pathlib
import sys

import jax

cache, *caches_of_xla = sys.argv[1:]
jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(cache).absolute()))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
for value in caches_of_xla:
    jax.config.update("jax_persistent_cache_enable_xla_caches", value)
jax.jit(lambda x: x * 2 + 1).lower(jax.ShapeDtypeStruct((3,), "float32")).compile()
PYTHON

num_entries() { # CACHE
  find "$1" -name '*-cache' | wc -l
}

seen=()
for option in "" none; do
  rm -rf first second
  venv/bin/python -I compile.py first $option
  cp -r first second
  venv/bin/python -I compile.py second $option
  printf '%s: %d entry in first/, %d in second/\n' "${option:-default}" "$(num_entries first)" "$(num_entries second)"
  seen+=("$(num_entries first) $(num_entries second)")
done
if [[ "${seen[*]}" != "1 2 1 1" ]]; then
  echo "changed: a copy of the cache no longer misses by default alone" && exit 1
fi
