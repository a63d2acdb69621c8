"""The processes that do the work on one machine, and how tasks reach them."""

import collections
import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator


class Pool:
    """Runs tasks in processes of its own, or in this one if it has none."""

    def __init__(self, executor: concurrent.futures.Executor | None, num_processes: int):
        self._executor, self._num_waiting = executor, max(1, 8 * num_processes)

    def each(self, function: Callable, tasks: Iterable) -> Iterator[tuple]:
        """(task, result) in the order of the tasks; so many are handed out that a slow one keeps no process idle."""
        waiting: collections.deque = collections.deque()
        tasks = iter(tasks)
        while True:
            for task in tasks:
                waiting.append((task, self._submit(function, task)))
                if len(waiting) >= self._num_waiting:
                    break
            if not waiting:
                return
            task, future = waiting.popleft()
            yield task, future.result() if self._executor else future

    def _submit(self, function: Callable, task):
        if not self._executor:
            return function(task)
        with parent_answers():
            return self._executor.submit(function, task)


@contextlib.contextmanager
def parent_answers() -> Iterator[None]:
    """Processes and threads begun in the block inherit what is blocked in it: Ctrl-C is for their parent to answer."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def start(num_processes: int, initialise: Callable, *arguments) -> Iterator[Pool]:
    """A pool whose processes have called `initialise(*arguments)`; they end with this one, however it ends.

    Raises: ValueError if one of them is killed.
    """
    if num_processes == 0:
        initialise(*arguments)
        yield Pool(None, 0)
        return
    silence_tracker()
    # Spawned: a fork would copy whatever threads the libraries have started.
    context = multiprocessing.get_context("spawn")
    executor = concurrent.futures.ProcessPoolExecutor(num_processes, context, _begin, (initialise, *arguments))
    try:
        yield Pool(executor, num_processes)
    except concurrent.futures.process.BrokenProcessPool as error:
        raise ValueError(
            "a worker process was killed, most often for want of memory; the same command goes on; give it fewer "
            "--processes"
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


def silence_tracker() -> None:
    """Keeps Python's tracker of semaphores and shared memory from warning of each that it clears away.

    It does when this process is stopped. Call before another is spawned.
    """
    option = "ignore:resource_tracker:UserWarning"
    if option not in sys.warnoptions:
        sys.warnoptions.append(option)


def _begin(initialise: Callable, *arguments) -> None:
    """What each process does first."""
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()  # it may be killed
    initialise(*arguments)
