"""When to save, and what happens when a save fails: it is told, counted, tried again, and at last given up."""

import types

import jax.numpy as jnp
import pytest

from gemma3_jax.durable import jsonl
from gemma3_jax.train import goodput, saver, settings, step, watchdog
from tests.train import stage_runs


class Manager:
    """Saves as it is told to: a list of what each save does, "ok" or where it fails; "ok" once that is used up."""

    def __init__(self):
        self.outcomes: list[str] = []
        self.saved: list[int] = []  # those that were finished
        self.asked: list[tuple] = []
        self.num_finished = 0
        self.is_saving = False
        self._step, self._outcome = 0, "ok"

    def save(self, step: int, params: dict, state: object, *, cursor, meta, checkpoint_metadata) -> None:
        assert not self.is_saving, "a save was begun while another one was in hand"
        self.asked.append((step, params, state, cursor, meta, checkpoint_metadata))
        self._step, self._outcome = step, self.outcomes.pop(0) if self.outcomes else "ok"
        if self._outcome == "begin":
            raise OSError(f"{step} cannot be written: no room to begin")
        self.is_saving = True

    def finish(self):
        self.num_finished += 1
        self.is_saving = False
        if self._outcome == "end":
            raise OSError(f"{self._step} cannot be written: no room to end")
        self.saved.append(self._step)


class Watchdog(watchdog.Watchdog):
    """Knows which phases are running, and bites nobody."""

    def __init__(self):
        self.running: set[str] = set()

    def start(self, phase):
        self.running.add(phase)

    def stop(self, phase):
        self.running.discard(phase)


class Desk:
    """A saver and those around it."""

    def __init__(self, path, last_good=None, **when):
        self.series, self.watch, self.said = Manager(), Watchdog(), []
        self.ledger = goodput.Ledger(jsonl.Journal(path, pytest.fail))
        when = settings.Checkpoints(**when)
        self.saver = saver.Saver(
            self.series, when, self.ledger, self.watch, lambda *lines: self.said.extend(lines), last_good=last_good
        )
        self.stage, self.state = stage_runs.make(num_devices=1), step.init({"w": jnp.ones(1)}, stage_runs.SGD)

    def begin(self, global_step):
        self.saver.save_async(self.stage, self.state, global_step - 100, global_step)

    def insist(self, global_step):
        self.saver.save_blocking(self.stage, self.state, global_step - 100, global_step)


@pytest.fixture
def desk(tmp_path, monkeypatch):
    monkeypatch.setattr(saver, "RETRY_SECONDS", 0.0)
    return lambda **options: Desk(tmp_path / "goodput.jsonl", **options)


# --- when ---


def test_a_save_is_due_every_so_many_steps(desk):
    keeper = desk(every_steps=50).saver
    assert [number for number in range(1, 201) if keeper.is_due(number)] == [50, 100, 150, 200]


def test_no_save_is_due_by_its_number_where_time_alone_says(desk):
    keeper = desk(every_steps=0, every_minutes=1.0).saver
    assert not any(keeper.is_due(number) for number in range(1, 200))


@pytest.fixture
def clock(monkeypatch):
    now = types.SimpleNamespace(seconds=5_000.0)
    monkeypatch.setattr(saver.time, "monotonic", lambda: now.seconds)
    return now


def test_a_save_is_late_once_so_many_minutes_have_passed_since_the_last_one_began(desk, clock):
    at = desk(every_minutes=1.5)
    for seconds, late in [(89.0, False), (1.0, True), (500.0, True)]:
        clock.seconds += seconds
        assert at.saver.is_late() is late
    at.begin(101)
    clock.seconds += 89
    assert not at.saver.is_late()
    clock.seconds += 1
    assert at.saver.is_late()


def test_by_default_ten_minutes_of_work_are_lost_at_most(desk, clock):
    at = desk()
    clock.seconds += 599
    assert not at.saver.is_late()
    clock.seconds += 1
    assert at.saver.is_late()


def test_a_save_that_failed_is_not_late_at_once(desk, clock):
    """It is tried again when the next one is due, not with every step."""
    at = desk(every_minutes=1.0)
    clock.seconds += 60
    at.series.outcomes = ["begin"]
    at.begin(101)
    assert not at.saver.is_late()
    clock.seconds += 60
    assert at.saver.is_late()


def test_no_save_is_late_where_steps_alone_say(desk, clock):
    at = desk(every_minutes=0.0)
    clock.seconds += 1e9
    assert not at.saver.is_late()


def test_process_0_alone_looks_at_the_clock(desk, clock, monkeypatch):
    at = desk(every_minutes=1.0)
    clock.seconds += 60
    monkeypatch.setattr(saver.jax, "process_index", lambda: 1)
    assert not at.saver.is_late()


# --- a save that succeeds ---


def test_a_checkpoint_says_what_it_is_of(desk):
    at = desk()
    at.begin(150)
    meta = {"seed": "7", "stage": "first", "step": 50, "global_step": 150}
    [(number, params, state, cursor, said, about)] = at.series.asked
    assert params is at.state.params and state == at.state.other_parts() and "params" not in state
    assert (number, cursor, said, about) == (150, {"row": 400}, meta, {"tokenizer": "abc"})


def test_a_save_goes_on_in_the_background_and_counts_once_it_is_there(desk):
    at = desk(last_good=100)
    at.begin(150)
    at.saver.poll()
    assert (at.saver.last_good, at.series.num_finished, at.watch.running) == (100, 0, {"save"})
    at.series.is_saving = False
    at.saver.poll()
    assert (at.saver.last_good, at.series.num_finished, at.watch.running) == (150, 1, set())
    at.saver.poll()
    at.saver.finish()
    assert at.series.num_finished == 1 and at.said == []


def test_a_save_waits_for_the_one_before_it(desk):
    at = desk()
    at.begin(150)
    at.begin(200)  # Series asserts that it is told to finish first
    assert at.saver.last_good == 150 and at.watch.running == {"save"}


def test_saving_is_what_time_is_spent_on_also_where_it_fails(desk):
    at, spent = desk(), []
    at.series.outcomes = ["ok", "begin"]
    at.ledger.spend, whole = lambda kind: spent.append(kind) or whole(kind), at.ledger.spend
    at.begin(150)
    at.begin(200)  # finishes, then begins
    assert spent == ["save"] * 4  # and looks how that went


# --- a save that fails ---


@pytest.mark.parametrize("where", ["begin", "end"])
def test_a_failed_save_is_told_and_those_before_it_stand(desk, where):
    at = desk(last_good=100, max_failures=3)
    at.series.outcomes = [where]
    at.begin(150)
    at.saver.finish()
    assert at.said == [
        f"warning: no checkpoint (1 of 3 failures in a row): 150 cannot be written: no room to {where}; that of step "
        "100 stands, and the next one is tried when it is due"
    ]
    assert at.saver.last_good == 100 and at.watch.running == set()
    at.begin(200)
    at.saver.finish()
    assert at.saver.last_good == 200 and at.series.saved == [200] and len(at.said) == 1


def test_a_failed_save_before_any_other_says_that_there_is_none(desk):
    at = desk()
    at.series.outcomes = ["begin"]
    at.begin(150)
    assert "no room to begin; there is none yet, and the next one is tried" in at.said[0]


def test_a_save_that_fails_in_the_background_is_told_when_it_is_looked_at(desk):
    at = desk()
    at.series.outcomes = ["end"]
    at.begin(150)
    at.series.is_saving = False
    at.saver.poll()
    assert len(at.said) == 1 and at.saver.last_good is None and at.watch.running == set()


def test_failures_count_in_a_row_and_a_success_ends_the_row(desk):
    at = desk(max_failures=3)
    at.series.outcomes = ["begin", "end", "ok", "end", "begin", "ok"]
    for number in range(150, 750, 100):
        at.begin(number)
    at.saver.finish()
    counts = [line.split("(")[1].split(" failures")[0] for line in at.said]
    assert counts == ["1 of 3", "2 of 3", "1 of 3", "2 of 3"] and at.series.saved == [350, 650]


@pytest.mark.parametrize("where", ["begin", "end"])
def test_too_many_failures_in_a_row_end_the_run_and_name_the_last_good_checkpoint(desk, where):
    at = desk(max_failures=3)
    at.series.outcomes = ["ok", where, where, where]
    for number in (150, 200, 250):
        at.begin(number)
    at.saver.finish()
    text = (
        rf"^3 checkpoints in a row failed \(config\.checkpoints\.max_failures\), the last one as 300 cannot be "
        rf"written: no room to {where}; that of step 150 stands: fix the disk, then run the same command to resume$"
    )
    with pytest.raises(OSError, match=text):
        at.begin(300)
        at.saver.finish()
    assert at.watch.running == set() and len(at.said) == 2


def test_the_only_failure_allowed_ends_the_run(desk):
    at = desk(max_failures=1)
    at.series.outcomes = ["begin"]
    with pytest.raises(OSError, match="^1 checkpoints in a row failed .*; there is none yet: fix the disk"):
        at.begin(150)
    assert at.said == []


def test_what_is_no_matter_of_the_disk_is_not_taken_for_one(desk, monkeypatch):
    at = desk()
    monkeypatch.setattr(at.series, "save", lambda *_, **__: {}["a mistake of ours"])
    with pytest.raises(KeyError, match="a mistake of ours"):
        at.begin(150)


# --- a save that must be ---


def test_insisting_saves_and_waits(desk):
    at = desk()
    at.insist(150)
    assert at.series.saved == [150] and at.saver.last_good == 150 and at.watch.running == set()


def test_insisting_tries_again_until_it_is_saved(desk):
    at = desk(max_failures=4, last_good=100)
    at.series.outcomes = ["begin", "end", "begin"]
    at.insist(150)
    assert [number for number, *_ in at.series.asked] == [150] * 4 and at.saver.last_good == 150
    assert len(at.said) == 3


def test_insisting_waits_between_attempts(desk, monkeypatch):
    at, slept = desk(max_failures=4), []
    monkeypatch.setattr(saver, "RETRY_SECONDS", 9.0)
    monkeypatch.setattr(saver.time, "sleep", slept.append)
    at.series.outcomes = ["begin", "end"]
    at.insist(150)
    assert slept == [9.0, 9.0]


def test_insisting_gives_up_too(desk):
    at = desk(max_failures=2, last_good=100)
    at.series.outcomes = ["end", "end", "end"]
    with pytest.raises(OSError, match="2 checkpoints in a row failed .*150 cannot be written.*that of step 100 stands"):
        at.insist(150)
    assert len(at.series.asked) == 2


def test_insisting_counts_the_failures_before_it(desk):
    at = desk(max_failures=3)
    at.series.outcomes = ["begin", "end", "end", "end"]
    at.begin(150)
    at.begin(200)
    with pytest.raises(OSError, match="3 checkpoints in a row failed .*250 cannot be written"):
        at.insist(250)


def test_insisting_on_the_step_in_hand_saves_it_once(desk):
    at = desk()
    at.begin(150)
    at.insist(150)
    assert at.series.saved == [150] and len(at.series.asked) == 1


def test_insisting_on_the_step_in_hand_saves_it_again_if_that_fails(desk):
    at = desk()
    at.series.outcomes = ["end"]
    at.begin(150)
    at.insist(150)
    assert at.series.saved == [150] and len(at.series.asked) == 2


def test_insisting_on_a_step_that_was_restored_saves_nothing(desk):
    at = desk(last_good=150)
    at.insist(150)
    assert at.series.asked == []
