"""The rows of every step: a function of the seed and the step, and of nothing else."""

import dataclasses
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from gemma3_jax import sharding
from gemma3_jax.data import dataset, open_shards, order, record_ids, settings, shards, stream
from gemma3_jax.data.targets import codec
from gemma3_jax.data.targets import reader as targets_reader
from gemma3_jax.data.targets import writer as targets_writer
from gemma3_jax.distill import settings as distill_settings
from tests import texts
from tests.data.targets import synthetic

BATCH_SIZE, SEQ_LEN = 8, 64


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return texts.toy_dataset(tmp_path_factory.mktemp("toy"), tokens_per_shard=20_000, seq_lens=(64, 512))


@pytest.fixture(scope="module")
def rows(data):
    return find(data)


def find(data, **changes):
    return order.find(data, **({"seq_len": SEQ_LEN, "batch_size": BATCH_SIZE, "seed": 3} | changes))


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(data=4, seq=2)


def arrays(rows):
    return {name: np.asarray(array) for name, array in rows._asdict().items()}


def stacked(rows):
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def same(one, other):
    return all(np.array_equal(value, arrays(other)[name]) for name, value in arrays(one).items())


@pytest.fixture(scope="module")
def straight(data, rows, mesh):
    """The first 50 steps, read in one go by one process."""
    batches = stream.Stream(data, rows, mesh)
    found = [next(batches) for _ in range(50)]
    batches.close()
    return found


@pytest.mark.parametrize(
    "num_hosts, num_workers",
    [(1, 0), (2, 0), (4, 0), (2, 2), *(pytest.param(*one, marks=pytest.mark.slow) for one in ((1, 2), (4, 2)))],
)
def test_any_number_of_hosts_and_workers_reads_the_same_rows(data, rows, mesh, straight, num_hosts, num_workers):
    devices = mesh.devices.reshape(num_hosts, -1)
    hosts = [stream.Stream(data, rows, mesh, num_workers=num_workers, devices=list(mine)) for mine in devices]
    for expected in straight[:12]:
        parts = [next(host) for host in hosts]
        assert {part.id for part in parts} == {expected.id}
        together = {name: np.concatenate([arrays(part.rows)[name] for part in parts]) for name in arrays(expected.rows)}
        assert same(expected.rows, stream.Rows(**together))
        assert parts[0].rows.tokens.shape == (BATCH_SIZE // num_hosts, SEQ_LEN)  # no host reads another's rows
    for host in hosts:
        host.close()


def test_hosts_that_share_rows_each_read_them(data, rows):
    """Sequence shards of one row may lie on several hosts: a host needs all rows that its devices hold a part of."""
    mesh = sharding.make_mesh(data=2, seq=4)
    for half in (mesh.devices[0, :, :2], mesh.devices[0, :, 2:]):
        assert sharding.rows_on(half.flatten().tolist(), mesh, 8) == list(range(8))
    assert sharding.rows_on(mesh.devices[0, 1].flatten().tolist(), mesh, 8) == [4, 5, 6, 7]


def test_a_resume_at_every_step_reads_on_as_if_nothing_had_been(data, rows, mesh, straight):
    for step in range(50):
        batches = stream.Stream(data, rows, mesh, first_step=step, num_workers=2 if step == 31 else 0)
        batch = next(batches)
        assert (batch.step, batch.id, batches.step) == (step, straight[step].id, step + 1)
        assert same(batch.rows, straight[step].rows)
        batches.close()


def test_a_resume_on_another_mesh_reads_the_same_rows(data, rows, straight):
    batches = stream.Stream(data, rows, sharding.make_mesh(replica=2, data=2), first_step=7)
    assert same(next(batches).rows, straight[7].rows)
    batches.close()


def test_rows_rest_on_the_mesh_as_activations_do(straight, mesh):
    for array in jax.tree.leaves(straight[0].rows):
        assert array.sharding == sharding.batch_sharding(mesh) and array.shape == (BATCH_SIZE, SEQ_LEN)


def test_every_token_knows_the_number_of_its_row(straight, data, mesh):
    for batch in (straight[0], straight[7]):
        numbers = batch.step * BATCH_SIZE + np.arange(BATCH_SIZE, dtype=np.int32)
        np.testing.assert_array_equal(batch.rows.row_ids, np.tile(numbers[:, None], SEQ_LEN))
    with stream.Stream(data, find(data, batch_size=4), mesh, first_step=15) as halves:
        found = next(halves).rows  # the other half of step 7
    same_rows = jax.tree.map(lambda array: array[4:], straight[7].rows)
    assert same(found, same_rows)


SAMPLES = distill_settings.Samples(estimator="systematic", num_samples=6)


@pytest.fixture(scope="module")
def stored(data, rows, straight, tmp_path_factory):
    """Targets of the first 8 steps, and each of them as it is to be read."""
    path, num_rows = tmp_path_factory.mktemp("targets") / "out", 8 * BATCH_SIZE
    origin = targets_reader.made_of(
        rows, SAMPLES, tokenizer="tok", vocab_size=synthetic.V, teacher="wise", num_rows=num_rows
    )
    written, read = [], []
    for number in range(num_rows):
        batch = arrays(straight[number // BATCH_SIZE].rows)
        row = {name: array[number % BATCH_SIZE] for name, array in batch.items()}
        written.append(codec.encode(row, synthetic.targets_of(number, SAMPLES, SEQ_LEN), SAMPLES))
        read.append(codec.scatter(codec.decode(written[-1]), row["loss_mask"]))
    with targets_writer.resume(path, origin) as writer:
        writer.write(range(num_rows), written)
        writer.complete()
    return targets_reader.open_targets(path), read


@pytest.mark.parametrize(("num_hosts", "num_workers"), [(1, 0), (2, 0), pytest.param(1, 2, marks=pytest.mark.slow)])
def test_stored_targets_come_beside_their_rows(data, rows, mesh, straight, stored, num_hosts, num_workers):
    stored_targets, read = stored
    devices = mesh.devices.reshape(num_hosts, -1)
    hosts = [
        stream.Stream(
            data, rows, mesh, num_workers=num_workers, devices=list(mine), stored_targets=stored_targets, first_step=2
        )
        for mine in devices
    ]
    for expected in straight[2:8]:
        parts = [next(host) for host in hosts]
        assert {(part.step, part.id) for part in parts} == {(expected.step, expected.id)}
        for fields, wanted in (
            ([part.rows.rows for part in parts], arrays(expected.rows)),
            ([part.rows.targets for part in parts], stacked(read[expected.step * 8 : expected.step * 8 + 8])),
        ):
            assert fields[0]._fields == tuple(wanted)
            for name, array in wanted.items():
                np.testing.assert_array_equal(np.concatenate([arrays(part)[name] for part in fields]), array)
    for host in hosts:
        with pytest.raises(StopIteration):  # they read ahead, but not beyond what is stored
            next(host)
        host.close()


def test_stored_targets_rest_on_the_mesh_as_their_rows_do(data, rows, mesh, stored):
    stored_targets, read = stored
    few = stored_targets.for_stage(
        rows, "tok", dataclasses.replace(SAMPLES, num_samples=3), vocab_size=synthetic.V, num_rows=8 * BATCH_SIZE
    )
    for targets_, num_samples in ((stored_targets, 6), (few, 3)):
        with stream.Stream(data, rows, mesh, stored_targets=targets_, first_step=5) as batches:
            batch = next(batches)
        for array in jax.tree.leaves(batch.rows):
            assert array.sharding == sharding.batch_sharding(mesh)
        assert batch.rows.targets.ids.shape == (BATCH_SIZE, SEQ_LEN, num_samples)
        best = np.stack([one["best_id"] for one in read[40:48]])
        np.testing.assert_array_equal(batch.rows.targets.best_id, best)


def test_targets_that_are_not_of_the_stream_s_rows_are_refused(data, mesh, stored):
    with stream.Stream(data, find(data, seed=4), mesh, stored_targets=stored[0]) as batches:
        with pytest.raises(ValueError, match="the targets of row [0-9]+ in .*out are of another row"):
            next(batches)
    with pytest.raises(ValueError, match="first_step is 8, but .*out has targets of 8 steps; teach more sequences"):
        stream.Stream(data, find(data), mesh, stored_targets=stored[0], first_step=8)


def test_waiting_for_data_is_counted(data, rows, mesh, monkeypatch):
    read = open_shards.OpenShards.read

    def slowly(self, shard, record):
        time.sleep(0.2 / BATCH_SIZE)
        return read(self, shard, record)

    with stream.Stream(data, rows, mesh) as batches:
        next(batches)
        quick = batches.seconds_waiting
    monkeypatch.setattr(open_shards.OpenShards, "read", slowly)
    with stream.Stream(data, rows, mesh) as batches:
        for _ in range(4):
            next(batches)
    assert 0.2 < batches.seconds_waiting and quick < batches.seconds_waiting


def test_a_program_that_leaves_its_stream_open_ends_in_silence(data):
    code = (
        "from gemma3_jax import sharding\nfrom gemma3_jax.data import stream\n"
        f"rows = stream.open_stream({str(data.path)!r}, sharding.make_mesh(), seq_len=64, batch_size=4, seed=0)\n"
        "print(next(rows).step)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")


def test_a_closed_stream_says_so(data, rows, mesh):
    with stream.Stream(data, rows, mesh) as batches:
        next(batches)
    with pytest.raises(ValueError, match="this stream is closed; open another at the step where it was"):
        next(batches)
    with pytest.raises(ValueError, match="first_step is -1; it must be >= 0"):
        stream.Stream(data, rows, mesh, first_step=-1)


def test_rows_are_their_documents(data, straight):
    """Each segment is tokens of one document, BOS first where it begins; targets are the token after."""
    tokenizer = data.tokenizer()
    for batch in straight[:10]:
        found = arrays(batch.rows)
        names = ("tokens", "labels", "loss_mask", "segments", "positions")
        for tokens, labels, mask, segments, positions in zip(*(found[name] for name in names), strict=True):
            for segment in range(1, segments.max() + 1):
                columns = np.flatnonzero(segments == segment)
                assert (np.diff(columns) == 1).all()
                assert positions[columns].tolist() == list(range(len(columns)))
                assert labels[columns[:-1]].tolist() == tokens[columns[1:]].tolist()
                assert mask[columns[:-1]].all() and not mask[columns[-1]] and labels[columns[-1]] == 0
                inner = tokens[columns[1:-1]]
                assert tokenizer.bos not in inner and tokenizer.eos not in inner
            padding = segments == 0
            assert not tokens[padding].any() and not mask[padding].any()
            assert (np.diff(padding.astype(int)) >= 0).all()  # at the end alone


def test_what_a_chat_does_not_teach_is_masked():
    record_id = record_ids.RecordId(0, 0, 0)
    tokens = np.arange(10, 17, dtype=np.int32)
    mask = np.array([False, False, True, True, True, False, True])
    row = shards.PackedRow(tokens, np.array([4, 3], np.int32), mask, [(record_id, 0), (record_id, 0)])
    fields = stream.unpack(row, 9)
    assert fields["tokens"].tolist() == [10, 11, 12, 13, 14, 15, 16, 0, 0]
    assert fields["labels"].tolist() == [11, 12, 13, 0, 15, 16, 0, 0, 0]
    assert fields["loss_mask"].tolist() == [False, True, True, False, False, True, False, False, False]
    assert fields["segments"].tolist() == [1, 1, 1, 1, 2, 2, 2, 0, 0]
    assert fields["positions"].tolist() == [0, 1, 2, 3, 0, 1, 2, 0, 0]


def test_an_epoch_is_every_row_once_and_the_next_is_in_another_order(data):
    rows = find(data, batch_size=1, buckets={"code": settings.Bucket()})
    [(part, count)] = rows.num_rows.items()
    epochs = [[rows.row(step, 0)[1] for step in range(epoch * count, (epoch + 1) * count)] for epoch in range(2)]
    assert part == "code/c" and all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert epochs[0] != epochs[1] and epochs[0] != sorted(epochs[0])


def test_the_mixture_holds_in_every_window(data):
    buckets = {"text": settings.Bucket(weight=0.7), "code": settings.Bucket(weight=0.3)}
    rows = find(data, buckets=buckets)
    drawn = [rows.row(step, number)[0] for step in range(100) for number in range(BATCH_SIZE)]
    assert sum(rows.fractions.values()) == pytest.approx(1) and rows.fractions["code/c"] == pytest.approx(0.3)
    for start in range(0, 700, 13):
        assert abs(drawn[start : start + 100].count("code/c") - 30) < 3


def test_the_seed_the_mixture_and_the_row_length_change_the_order(data, rows):
    other = [find(data, seed=4), find(data, buckets={"code": settings.Bucket()}), find(data, seq_len=512)]
    ids = [found.batch_id(0) for found in [rows, *other]]
    assert len(set(ids)) == 4 and rows.batch_id(0) == find(data).batch_id(0)


def test_the_order_is_this_one(data):
    """Golden: a change of Grain, or of ours, that moves rows under a running job must not go unnoticed."""
    order_ = order.Order("data", 64, 4, 7, {"a": 1_000, "b": 10}, {"a": 0.75, "b": 0.25})
    assert [order_.row(step, number) for step in (0, 10**6) for number in range(4)] == GOLDEN_ROWS
    assert order_.batch_id(0) == GOLDEN_BATCH_ID


GOLDEN_ROWS = [("a", 831), ("b", 0), ("a", 392), ("a", 642), ("a", 936), ("b", 6), ("a", 36), ("a", 296)]
GOLDEN_BATCH_ID = "f6613d5146468d09"


def test_epochs_are_counted(data, rows):
    count = sum(rows.num_rows.values())
    assert rows.epochs(count) == pytest.approx(dict.fromkeys(rows.num_rows, float(BATCH_SIZE)))


def test_a_cursor_is_one_number_and_is_checked_against_the_data(data, rows, tmp_path):
    cursor = json.loads(json.dumps(rows.cursor(17)))  # as a checkpoint keeps it
    assert cursor["next_step"] == 17 and rows.check_cursor(cursor) == []
    changed = find(data, seed=4)
    with pytest.raises(ValueError, match="the data is not what the checkpoint was trained on: seed was 3 and is 4; .*"):
        changed.check_cursor(cursor)
    assert changed.check_cursor(cursor, allow_data_change=True) == ["the data changed: seed was 3 and is 4"]
    other = texts.toy_dataset(tmp_path, seq_lens=(64, 512))  # as many rows, in shards of another size
    with pytest.raises(ValueError, match="trained on: data was [0-9a-f]{64} and is [0-9a-f]{64}"):
        find(other).check_cursor(cursor)
    with pytest.raises(ValueError, match="mixture was .* and is "):
        find(data, buckets={"code": settings.Bucket()}).check_cursor(cursor)


def test_a_copy_of_the_data_is_the_same_data(data, rows, tmp_path):
    shutil.copytree(data.path, tmp_path / "copy")
    assert find(dataset.open_dataset(tmp_path / "copy")).check_cursor(rows.cursor(0)) == []


def test_the_order_of_the_buckets_does_not_matter(data):
    buckets = {"text": settings.Bucket(languages=("b", "a")), "code": settings.Bucket()}
    other = {"code": settings.Bucket(), "text": settings.Bucket(languages=("a", "b"))}
    assert find(data, buckets=buckets).batch_id(3) == find(data, buckets=other).batch_id(3)


def test_rows_of_a_length_that_was_not_prepared_are_refused(data):
    with pytest.raises(ValueError, match=r"has no sequences of 128 tokens \(it has: 64, 512\); prepare it with 128"):
        find(data, seq_len=128)


def test_rows_that_do_not_split_over_the_mesh_are_refused(data, mesh):
    with pytest.raises(
        ValueError, match="6 sequences in a step do not split over replica x data = 4 of the mesh; make it 4, 2 x 4"
    ):
        stream.Stream(data, find(data, batch_size=6), mesh)
    odd = dataclasses.replace(find(data), seq_len=63)
    with pytest.raises(ValueError, match="63 tokens in a sequence do not split over seq = 2 of the mesh"):
        stream.Stream(data, odd, mesh)


@pytest.fixture
def copy(data, tmp_path):
    shutil.copytree(data.path, tmp_path / "data")
    return tmp_path / "data"


def a_shard(path) -> pathlib.Path:
    return sorted(path.glob("rows-00064/text/a/*"))[0]


def open_toy(path, mesh):
    return stream.open_stream(path, mesh, seq_len=64, batch_size=8, seed=0)


def test_a_missing_or_cut_shard_is_found_before_the_first_step(copy, mesh):
    content = a_shard(copy).read_bytes()
    a_shard(copy).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"00000-of-\d+\.array_record is damaged: 0 of \d+ records"):
        open_toy(copy, mesh)
    a_shard(copy).unlink()
    with pytest.raises(ValueError, match=r"00000-of-\d+\.array_record is missing, though the manifest lists it"):
        open_toy(copy, mesh)


def test_what_is_no_data_set_is_refused(copy, tmp_path, mesh):
    with pytest.raises(ValueError, match="none is not a prepared data set: it has no manifest.json; make one"):
        open_toy(tmp_path / "none", mesh)
    manifest = (copy / "manifest.json").read_text()
    (copy / "manifest.json").write_text(manifest.replace('"format": 1', '"format": 99'))
    with pytest.raises(ValueError, match="manifest.json has format 99; this version reads 1"):
        open_toy(copy, mesh)
    (copy / "manifest.json").write_text(manifest[:100])
    with pytest.raises(
        ValueError, match="data is damaged: manifest.json is not JSON .*; copy or prepare the data again"
    ):
        open_toy(copy, mesh)


def test_another_tokenizer_beside_the_records_is_refused(copy):
    content = bytearray((copy / "tokenizer.model").read_bytes())
    (copy / "tokenizer.model").write_bytes(content + b"\x12\x00")  # an empty trainer_spec: another file, a valid one
    with pytest.raises(ValueError, match="tokenizer.model was made with tokenizer .*, but the records beside it"):
        dataset.open_dataset(copy).tokenizer()


def test_a_batch_is_a_tree_that_jit_takes(straight):
    total = jax.jit(lambda rows: (rows.tokens * rows.loss_mask).sum())(straight[0].rows)
    found = arrays(straight[0].rows)
    assert int(total) == (found["tokens"] * found["loss_mask"]).sum()


def test_ctrl_c_is_for_the_parent_of_the_workers_to_answer(data, rows, mesh):
    """A terminal sends it to all of them, and a worker that it ends has rows that the last steps need."""
    with stream.Stream(data, rows, mesh, num_workers=2) as batches:
        next(batches)
        states = [path.read_text() for path in pathlib.Path("/proc").glob("[0-9]*/status")]
        children = [state for state in states if f"PPid:\t{os.getpid()}\n" in state]
        pids = [re.search(r"^Pid:\s*(\d+)", state, re.MULTILINE)[1] for state in children]
        lines = [pathlib.Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids]
        blocked = [
            int(re.search(r"SigBlk:\s*(\w+)", state)[1], 16) >> (signal.SIGINT - 1) & 1
            for state, line in zip(children, lines, strict=True)
            if b"spawn_main" in line  # and not Python's resource tracker, which ignores it
        ]
        assert blocked and all(blocked)
