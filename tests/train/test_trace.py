"""A trace has the requested steps, in a file that the profiler reads."""

import pathlib

import jax
import jax.numpy as jnp
import pytest

from gemma3_jax.train import trace


@pytest.mark.parametrize("text, wanted", [("0:1", (0, 1)), ("10:12", (10, 12)), ("9:1000", (9, 1_000))])
def test_steps_are_read_from_the_flag(text, wanted):
    assert trace.parse(text) == wanted


@pytest.mark.parametrize("text", ["", "5", "5:", ":5", "5:5", "6:5", "-1:5", "1:2:3", "a:b", "1 :2", "1:2\n", "1.0:2"])
def test_a_flag_that_is_no_pair_of_steps_is_refused(text):
    with pytest.raises(ValueError) as raised:
        trace.parse(text)
    assert str(raised.value) == (f"--profile is {text}; it must be START:STOP, two step numbers with START < STOP")


@pytest.fixture
def calls(monkeypatch):
    """The calls of the profiler."""
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda directory: calls.append(("start", directory)))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    return calls


def take_steps(tracer: trace.Trace, calls: list, first: int, last: int) -> None:
    for step in range(first, last + 1):
        tracer.after(step, jnp.ones(()))
        calls.append(step)


def test_the_steps_after_the_first_number_and_up_to_the_second_are_traced(calls, tmp_path):
    take_steps(trace.Trace(tmp_path, 2, 4), calls, 1, 6)
    assert calls == [1, ("start", tmp_path), 2, 3, "stop", 4, 5, 6]


def test_a_run_that_goes_on_within_them_traces_those_that_are_left(calls, tmp_path):
    take_steps(trace.Trace(tmp_path, 2, 6), calls, 4, 7)
    assert calls == [("start", tmp_path), 4, 5, "stop", 6, 7]


@pytest.mark.parametrize("first", [6, 9])
def test_a_run_that_goes_on_behind_them_traces_nothing(first, calls, tmp_path):
    take_steps(trace.Trace(tmp_path, 2, 6), calls, first, first + 2)
    assert calls == [first, first + 1, first + 2]


def test_a_run_that_ends_within_them_closes_its_trace_once(calls, tmp_path):
    of = trace.Trace(tmp_path, 2, 6)
    of.close()
    take_steps(of, calls, 1, 3)
    of.close()
    of.close()
    assert calls == [1, ("start", tmp_path), 2, 3, "stop"]


def test_a_trace_begins_and_ends_once_its_step_is_there(calls, tmp_path, monkeypatch):
    """A step is still computed when it is reported."""
    monkeypatch.setattr(jax, "block_until_ready", lambda result: calls.append(f"waited for {result}"))
    of = trace.Trace(tmp_path, 1, 3)
    for step in (1, 2, 3):
        of.after(step, f"step {step}")
    assert calls == ["waited for step 1", ("start", tmp_path), "waited for step 3", "stop"]


def test_a_real_trace_has_the_requested_steps_and_no_other(tmp_path):
    @jax.jit
    def traced(x):
        return jnp.sin(x) @ x

    @jax.jit
    def before_and_after(x):
        return jnp.cos(x) @ x

    of, x = trace.Trace(tmp_path / "profile", 2, 4), jnp.ones((16, 16))
    traced(x), before_and_after(x)  # compiled
    for step in range(1, 7):
        result = (traced if 2 < step <= 4 else before_and_after)(x)
        of.after(step, result)
    [file] = pathlib.Path(tmp_path / "profile").rglob("*.xplane.pb")
    planes = jax.profiler.ProfileData.from_file(str(file)).planes
    names = [event.name for plane in planes for line in plane.lines for event in line.events]
    assert {name for name in names if name.startswith("PjitFunction")} == {"PjitFunction(traced)"}
    assert not any("before_and_after" in name for name in names)
