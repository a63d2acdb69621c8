#!/usr/bin/env bash
# Grain: hosts that slice and then shuffle with one seed read neighbors: a global batch is a run of records.
#
# Natural guess: source[host::num_hosts].shuffle(seed) is the usual way to shard: each batch is a random sample, and the
#   order does not depend on the number of hosts.
# Version: grain 0.2.18
# Seen: shards of equal length get the same permutation, so all hosts read the same index of their shards. First batches
#   of 8 out of 64 records:
#   1 host: [4, 7, 24, 27, 35, 42, 55, 57]
#   4 hosts, slice then shuffle: [16, 17, 18, 19, 28, 29, 30, 31]
#   4 hosts, shuffle then slice: [4, 7, 24, 27, 35, 42, 55, 57]
# Here: gemma3_jax/data/order.py makes one order of the whole data set, and gemma3_jax/data/stream.py gives each host
#   its sequences of every step, so batches are the same on any number of hosts. Elsewhere: shuffle first, then slice.
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check grain==0.2.18
cd "$work"
venv/bin/python -I - <<'PYTHON'
import grain

RECORDS, BATCH, SEED = 64, 8, 3


def first_batch(num_hosts, is_sliced_first):
    records = []
    for host in range(num_hosts):
        data = grain.MapDataset.range(RECORDS)
        data = data[host::num_hosts].shuffle(SEED) if is_sliced_first else data.shuffle(SEED)[host::num_hosts]
        records += next(iter(data.batch(BATCH // num_hosts).to_iter_dataset())).tolist()
    return sorted(records)


one, sliced, shuffled = first_batch(1, True), first_batch(4, True), first_batch(4, False)
print(f"1 host: {one}\n4 hosts, slice then shuffle: {sliced}\n4 hosts, shuffle then slice: {shuffled}")
neighbors = all(sliced[i : i + 4] == list(range(sliced[i], sliced[i] + 4)) for i in (0, 4))
if not neighbors or shuffled != one:
    raise SystemExit("changed: shards shuffled with one seed no longer move in lockstep")
PYTHON
