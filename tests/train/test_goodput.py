"""The ledger: every second has one kind, and the time of repeated steps is lost."""

import contextlib

import pytest

from gemma3_jax.durable import jsonl
from gemma3_jax.train import goodput


class Clock:
    """A clock that the test moves, by whole numbers and quarters, whose sums are exact."""

    def __init__(self, now: float = 1_000.0):
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def file(tmp_path):
    return jsonl.Journal(tmp_path / "goodput.jsonl", pytest.fail)


@pytest.fixture
def ledger(file, clock):
    return goodput.Ledger(file, clock)


def spend(ledger, clock, **seconds):
    for kind, number in seconds.items():
        with ledger.spend(kind):
            clock.now += number


def test_every_moment_belongs_to_the_innermost_kind(ledger, clock):
    clock.now += 1  # init
    with ledger.spend("step"):
        clock.now += 10
        with ledger.spend("data"):
            clock.now += 100
            with ledger.spend("save"):
                clock.now += 1_000
            clock.now += 200
        clock.now += 20
    clock.now += 2  # init
    ledger.settle()
    wanted = dict.fromkeys(goodput.KINDS, 0.0) | {"init": 3.0, "step": 30.0, "data": 300.0, "save": 1_000.0}
    assert ledger.seconds == wanted and sum(ledger.seconds.values()) == clock.now - 1_000


def test_a_kind_within_itself_counts_once(ledger, clock):
    with ledger.spend("save"), ledger.spend("save"):
        clock.now += 5
    assert ledger.seconds["save"] == 5 and sum(ledger.seconds.values()) == 5


def test_what_ends_in_an_error_counts_too_and_what_follows_is_not_of_its_kind(ledger, clock):
    with contextlib.suppress(OSError), ledger.spend("save"):
        clock.now += 5
        raise OSError("no room")
    clock.now += 7
    ledger.settle()
    assert ledger.seconds["save"] == 5 and ledger.seconds["init"] == 7


def test_time_counts_from_when_the_process_started(file, clock):
    ledger = goodput.Ledger(file, clock, started=clock.now - 40)
    with ledger.spend("compile"):
        clock.now += 2
    assert ledger.seconds["init"] == 40 and ledger.seconds["compile"] == 2


def test_seconds_are_up_to_now_in_the_middle_of_a_kind_too(ledger, clock):
    with ledger.spend("step"):
        clock.now += 3
        ledger.settle()
        assert ledger.seconds["step"] == 3
        clock.now += 4
    assert ledger.seconds["step"] == 7


def test_records_are_differences(ledger, file, clock):
    spend(ledger, clock, compile=8, step=3)
    ledger.record(5)
    with ledger.spend("step"):
        clock.now += 4.0625
        ledger.record(7)  # within a kind
        clock.now += 1
    spend(ledger, clock, data=2)
    ledger.record(9)
    nothing = dict.fromkeys(goodput.KINDS, 0.0)
    assert file.read() == [
        {"global_step": 5, "seconds": nothing | {"compile": 8.0, "step": 3.0}},
        {"global_step": 7, "seconds": nothing | {"step": 4.062}},  # milliseconds
        {"global_step": 9, "seconds": nothing | {"step": 1.0, "data": 2.0}},
    ]


def process(file, clock, from_step: int, to_step: int, *, every: int = 2) -> float:
    """Simulates a process: 1 s to begin, 10 s a step, 3 s a save. Returns its seconds."""
    began = clock.now
    ledger = goodput.Ledger(file, clock)
    clock.now += 1
    ledger.restored(from_step)
    for step in range(from_step + 1, to_step + 1):
        spend(ledger, clock, step=10)
        if step % every == 0:
            spend(ledger, clock, save=3)
        ledger.record(step)
    return clock.now - began


def test_what_is_done_again_is_lost(file, clock):
    lived = process(file, clock, 0, 7) + process(file, clock, 4, 10)
    total = goodput.summarize(file.read())
    # 0-7: 3 saves, of which that of step 6 was lost with the steps 5, 6 and 7; 4-10: 3 saves
    assert total["lost"] == 33 and total["step"] == 100 and total["save"] == 15 and total["init"] == 2
    assert sum(total.values()) == lived


def test_beginning_and_compiling_are_not_lost_with_the_steps_after_them(file, clock):
    ledger = goodput.Ledger(file, clock)
    clock.now += 5
    spend(ledger, clock, restore=6, compile=7, data=1, step=2, save=3, evaluate=4)
    ledger.record(8)
    goodput.Ledger(file, clock).restored(0)
    wanted = {"init": 5.0, "restore": 6.0, "compile": 7.0, "data": 0.0, "step": 0.0, "save": 0.0, "evaluate": 0.0}
    assert goodput.summarize(file.read()) == wanted | {"lost": 10.0}


def test_going_back_twice_loses_twice(file, clock):
    """To the same step, and then further back: nothing is lost for a second time."""
    lived = process(file, clock, 0, 6) + process(file, clock, 4, 6) + process(file, clock, 2, 3)
    total = goodput.summarize(file.read())
    # lost: steps 5 and 6 with their save, twice; then 3 and 4 with theirs
    assert total["lost"] == 3 * 23 and total["step"] == 30 and total["save"] == 3
    assert sum(total.values()) == lived


def test_going_on_from_the_last_step_loses_nothing(file, clock):
    lived = process(file, clock, 0, 6) + process(file, clock, 6, 8)
    total = goodput.summarize(file.read())
    assert total["lost"] == 0 and total["step"] == 80 and sum(total.values()) == lived


def test_a_total_is_that_of_all_processes(file, clock):
    process(file, clock, 0, 3)
    ledger = goodput.Ledger(file, clock)
    ledger.restored(2)
    spend(ledger, clock, step=10)
    ledger.record(3)
    assert ledger.total() == goodput.summarize(file.read()) and ledger.total()["lost"] == 10


def test_a_process_that_was_killed_in_the_middle_of_a_line_does_not_hide_that_the_next_one_went_back(
    file, clock, tmp_path
):
    process(file, clock, 0, 6)
    with (tmp_path / "goodput.jsonl").open("ab") as killed:
        killed.write(b'{"global_step": 7, "sec')
    process(file, clock, 4, 6)
    total = goodput.summarize(file.read())
    assert total["step"] == 60 and total["lost"] == 23


def test_nothing_written_is_nothing_spent(file):
    assert goodput.summarize(file.read()) == dict.fromkeys((*goodput.KINDS, goodput.LOST), 0.0)


def test_the_table_has_a_line_for_what_took_time():
    total = dict.fromkeys((*goodput.KINDS, goodput.LOST), 0.0) | {"step": 2_700.0, "save": 225.0, "lost": 75.0}
    assert goodput.table(total).splitlines() == [
        "step           2,700.0 s   90.0%",
        "save             225.0 s    7.5%",
        "lost              75.0 s    2.5%",
        "in all         3,000.0 s",
    ]


def test_the_table_of_nothing_is_no_division_by_it():
    assert goodput.table(dict.fromkeys(goodput.KINDS, 0.0)) == "in all             0.0 s"


@pytest.mark.parametrize(
    "entry",
    [
        {},
        {"restored": "2"},
        {"restored": None},
        {"global_step": [3], "seconds": dict.fromkeys(goodput.KINDS, 1.0)},
        {"global_step": 3},
        {"global_step": 3, "seconds": 7},
        {"global_step": 3, "seconds": {"step": 1.0}},
        {"global_step": 3, "seconds": dict.fromkeys(goodput.KINDS, "1")},
    ],
)
def test_an_entry_of_another_form_is_none(entry, tmp_path, clock):
    file = jsonl.Journal(tmp_path / "goodput.jsonl", pytest.fail, is_entry=goodput.is_entry)
    ledger = goodput.Ledger(file, clock)
    spend(ledger, clock, step=4.0)
    ledger.record(1)
    before = ledger.total()
    file.write(entry)
    ledger.restored(1)
    assert ledger.total() == before and before["step"] == 4.0
