#!/usr/bin/env bash
# An ArrayRecord file without records gives an empty one at any index.
#
# Natural guess: a read past the end is refused, as in a file with two records ("index 2 out of bound 2").
# Version: array_record 0.8.6
# Seen: of 0 records: record 5 is b''; of 2 records: record 5 is refused
# Here: gemma3_jax/data/shards.py asks how many records there are before it reads from a file that has none
#   (tests/data/test_open_shards.py).
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check array_record==0.8.6
cd "$work"
cat >read.py <<'PYTHON'
from array_record.python import array_record_module


def record_5(num_records):
    writer = array_record_module.ArrayRecordWriter("records", "group_size:1")
    for _ in range(num_records):
        writer.write(b"a")
    writer.close()
    reader = array_record_module.ArrayRecordReader("records")
    assert reader.num_records() == num_records
    try:
        [content] = reader.read([5])
    except RuntimeError:
        return "refused"
    return content


found = [record_5(num_records) for num_records in (0, 2)]
print(f"of 0 records: record 5 is {found[0]}; of 2 records: record 5 is {found[1]}")
if found != [b"", "refused"]:
    raise SystemExit("changed: a record of a file without records is refused, or is something else")
PYTHON
venv/bin/python -I read.py
