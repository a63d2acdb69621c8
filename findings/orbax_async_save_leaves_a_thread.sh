#!/usr/bin/env bash
# Every asynchronous Orbax save leaves a thread behind unless result() of its response is called.
#
# Natural guess: save_checkpointables_async cleans up when the checkpoint is written; its response is only for callers
#   that wait, and Checkpointer.wait() does as well.
# Version: orbax-checkpoint 0.12.8 on jax 0.10.2 (CPU)
# Seen: event-loop threads that remain after the saves:
#   5 saves, result() not called: 5 more run_loop threads
#   5 saves, result() called: 0 more run_loop threads
#   5 saves, of one training.Checkpointer, then its wait(): 5 more run_loop threads
# Here: gemma3_jax/checkpoint/manager.py makes a run's saves. It keeps the response of each, and calls result() before
#   the next one: 300 saves leave neither threads nor file descriptors (tests/checkpoint/test_manager.py).
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check orbax-checkpoint==0.12.8 jax==0.10.2 jaxlib==0.10.2
cd "$work"
JAX_PLATFORMS=cpu XLA_FLAGS='' venv/bin/python -I - <<'PYTHON'
import gc
import logging
import os
import pathlib
import threading
import time

import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

logging.disable(logging.WARNING)
SAVES = 5
HERE = pathlib.Path.cwd()
ITEMS = {"params": {"w": jnp.ones((64, 64))}}


def loops():
    """After a while for threads that are about to end."""
    gc.collect()
    time.sleep(2)
    return sum("_run_loop" in thread.name for thread in threading.enumerate())


def alone(number, waits):
    path = HERE / f"alone_{waits}_{number}"
    response = ocp.save_checkpointables_async(path, ITEMS)
    if waits:
        response.result()
    while not path.exists():
        time.sleep(0.1)


def more_after(name, save):
    before = loops()
    save()
    more = loops() - before
    print(f"{SAVES} saves, {name}: {more} more run_loop threads")
    return more


def managed():
    checkpointer = ocp.training.Checkpointer(HERE / "managed")
    for step in range(SAVES):
        checkpointer.save_checkpointables_async(step, ITEMS, force=True)
    checkpointer.wait()


left = more_after("result() not called", lambda: [alone(number, False) for number in range(SAVES)])
none = more_after("result() called", lambda: [alone(number, True) for number in range(SAVES)])
of_manager = more_after("of one training.Checkpointer, then its wait()", managed)
if not (left and of_manager and not none):
    print("changed: asynchronous saves no longer leave threads behind, or leave them despite result()")
os._exit(0 if left and of_manager and not none else 1)  # threads that are left must not decide how this ends
PYTHON
