#!/usr/bin/env bash
# Beam's DaskRunner gives every output of a DoFn all of its elements, whatever their tags.
#
# Natural guess: a pipeline that runs on the DirectRunner runs on the DaskRunner, and gives the same.
# Version: apache-beam 2.77.0, dask and distributed 2026.8.0 (two worker processes of one machine)
# Seen: a DoFn yields odd numbers to a tagged output, and even ones to the main one, which is summed:
#   even numbers below 10: 20 by the DirectRunner, 45 by the DaskRunner
# Here: gemma3_jax/data/prepare/beam.py counts and judges by tagged outputs, so `prepare` cannot run there, and ends
#   with a TypeError at the first group. Elsewhere: no `with_outputs`, or elements that carry their tag themselves.
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
  apache-beam==2.77.0 dask==2026.8.0 distributed==2026.8.0
cd "$work"
cat >sums.py <<'PYTHON'
import logging
import pathlib

import apache_beam as beam
from apache_beam.options import pipeline_options
from apache_beam.runners.dask import dask_runner
from dask import distributed

logging.disable(logging.ERROR)


class Split(beam.DoFn):
    """Odd numbers go to the output `odd`, even ones to the main one."""

    def process(self, number):
        yield beam.pvalue.TaggedOutput("odd", number) if number % 2 else number


def write(number):
    pathlib.Path("sum.txt").write_text(str(number))


def sum_of_even(runner, **options):
    with beam.Pipeline(runner=runner, options=pipeline_options.PipelineOptions(**options)) as pipeline:
        numbers = pipeline | beam.Create(range(10)) | beam.ParDo(Split()).with_outputs("odd", main="even")
        numbers.even | beam.CombineGlobally(sum).without_defaults() | beam.Map(write)
    return int(pathlib.Path("sum.txt").read_text())


if __name__ == "__main__":
    direct = sum_of_even("DirectRunner")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        dask = sum_of_even(dask_runner.DaskRunner(), dask_client_address=cluster.scheduler_address)
    print(f"even numbers below 10: {direct} by the DirectRunner, {dask} by the DaskRunner")
    if (direct, dask) != (20, 45):
        raise SystemExit("changed: the DaskRunner keeps outputs apart, or mixes them otherwise")
PYTHON
venv/bin/python -I sums.py 2>errors.txt || { tail -n 1 errors.txt >&2 && exit 1; }
