"""A pool of worker processes on one machine."""

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
    """Runs tasks in worker processes, or in this process if there are none."""

    def __init__(self, executor: concurrent.futures.Executor | None, num_processes: int):
        self._executor, self._num_waiting = executor, max(1, 8 * num_processes)

    def each(self, function: Callable, tasks: Iterable) -> Iterator[tuple]:
        """Yields (task, result) in the order of the tasks. Enough wait ahead that a slow task keeps no worker idle."""
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
    """Blocks SIGINT for processes and threads that are started in the block, so that the parent answers Ctrl-C."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def start(num_processes: int, initialize: Callable, *arguments) -> Iterator[Pool]:
    """Yields a pool whose workers have called `initialize(*arguments)`; they end with this process, however it ends.

    Raises: ValueError if one of them is killed.
    """
    if num_processes == 0:
        initialize(*arguments)
        yield Pool(None, 0)
        return
    silence_tracker()
    # Spawned, because a fork would copy the threads that libraries have started.
    context = multiprocessing.get_context("spawn")
    executor = concurrent.futures.ProcessPoolExecutor(num_processes, context, _begin, (initialize, *arguments))
    try:
        yield Pool(executor, num_processes)
    except concurrent.futures.process.BrokenProcessPool as error:
        raise ValueError(
            "a worker process was killed, most often because memory ran out; run the same command to resume, with "
            "fewer --processes if needed"
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


def silence_tracker() -> None:
    """Silences the warnings of Python's resource tracker about semaphores and shared memory when this process stops.

    To be called before a process is spawned.
    """
    option = "ignore:resource_tracker:UserWarning"
    if option not in sys.warnoptions:
        sys.warnoptions.append(option)


def _begin(initialize: Callable, *arguments) -> None:
    """Starts a worker: it ends when its parent does."""
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()  # the parent may be killed
    initialize(*arguments)
