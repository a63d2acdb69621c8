"""Random access to the records of many shards, with few of them open at a time."""

import collections
import pathlib
import threading
from collections.abc import Sequence

from gemma3_jax.data import shards

MAX_OPEN_SHARDS = 256  # of each kind in a process: systems allow about a thousand open files


class OpenShards:
    """The records of shards. It can be pickled: every process opens the shards again."""

    def __init__(self, path: pathlib.Path, files: Sequence[tuple[str, int]]):
        """`files` has the path of each shard below `path`, and its number of records."""
        self._path, self._files = path, list(files)
        self._open_nothing()

    def _open_nothing(self) -> None:
        self._readers: collections.OrderedDict[int, shards.Reader] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self):
        return {name: value for name, value in self.__dict__.items() if name not in ("_readers", "_lock")}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._open_nothing()

    def read(self, shard: int, record: int) -> bytes:
        """Returns a record of a shard. Raises: ValueError if the shard is missing or damaged."""
        path, count = self._files[shard]
        with self._lock:  # a reader is closed while nobody reads from it
            reader = self._readers.pop(shard, None)
            if reader is None:  # an open one without records is false
                reader = shards.Reader(self._path / path, count)
            self._readers[shard] = reader
            if len(self._readers) > MAX_OPEN_SHARDS:
                self._readers.popitem(last=False)[1].close()
            return reader[record]

    def path(self, shard: int) -> pathlib.Path:
        """Returns the path of a shard, for errors."""
        return self._path / self._files[shard][0]

    def check(self) -> None:
        """Opens every shard once, so that a missing or damaged one stops a run before it starts.

        Raises: ValueError.
        """
        for path, count in self._files:
            shards.Reader(self._path / path, count).close()
