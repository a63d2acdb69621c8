"""Records of many shards, with few files open."""

import concurrent.futures
import pickle

import numpy as np
import pytest

from gemma3_jax.data import dataset, open_shards, shards
from tests import texts
from tests.data import open_readers


@pytest.fixture(scope="module")
def shards_of(tmp_path_factory):
    """The directory and files of shards, of which none is empty."""
    data = texts.toy_dataset(tmp_path_factory.mktemp("toy"), tokens_per_shard=20_000)
    files = data.manifest["parts"]["text/a"]["files"][dataset.rows_kind(64)]
    return data.path, [(file["path"], file["records"]) for file in files if file["records"]]


def test_few_files_are_open_at_a_time(shards_of, monkeypatch):
    path, files = shards_of
    expected = {
        (number, record): reader[record]
        for number, (file, num_records) in enumerate(files)
        for reader in [shards.Reader(path / file)]
        for record in range(num_records)
    }
    places = np.random.default_rng(0).permutation(list(expected)).tolist()
    num_open = open_readers.counted(monkeypatch)
    several = open_shards.OpenShards(path, files)
    assert all(several.read(*place) == expected[*place] for place in places)
    assert num_open == [len(files)] and len(files) > 4
    monkeypatch.setattr(open_shards, "MAX_OPEN_SHARDS", 2)
    few = pickle.loads(pickle.dumps(several))  # as a worker process gets it
    for place in places:
        assert few.read(*place) == expected[*place] and num_open[0] <= len(files) + 2


def test_a_shard_without_records_is_opened_once(tmp_path, monkeypatch):
    shards.write(str(tmp_path / "empty"), [])
    num_open, none = open_readers.counted(monkeypatch), open_shards.OpenShards(tmp_path, [("empty", 0)])
    for _ in range(2):
        with pytest.raises(ValueError, match="empty is damaged at record 0: it has no records"):
            none.read(0, 0)
    assert num_open == [1]


def test_threads_share_them(shards_of, monkeypatch):
    monkeypatch.setattr(open_shards, "MAX_OPEN_SHARDS", 2)
    num_open, some = open_readers.counted(monkeypatch), open_shards.OpenShards(*shards_of)
    first = [some.read(shard, 0) for shard in range(len(shards_of[1]))]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda number: some.read(number % len(first), 0), range(20 * len(first))))
    assert found == first * 20 and num_open == [2]
