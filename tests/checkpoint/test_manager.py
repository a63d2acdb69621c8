"""The checkpoints of a run: what comes back is what was saved, to the bit, and of the same run."""

import dataclasses
import gc
import os
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma3_jax import sharding
from gemma3_jax.checkpoint import open as checkpoint_open
from gemma3_jax.model import parameters
from tests import toys
from tests.checkpoint import saved

# --- what comes back ---


@pytest.mark.parametrize("axes", [{"data": 4, "model": 2}, {"data": 2}, {"replica": 2, "data": 4}, {}], ids=str)
def test_what_was_saved_comes_back_to_the_bit_on_any_mesh(axes, mesh, make_series, said):
    saved.save(make_series(), 5, mesh)
    other = sharding.make_mesh(**axes)
    found = saved.restore(make_series(), other)
    saved.assert_same((found.params, found.state), saved.make(mesh, 5))
    assert (found.step, found.cursor, said) == (5, saved.CURSOR | {"row": 5}, [])
    assert found.meta.items() >= saved.META.items()
    wanted = jax.tree.map(lambda x: x.sharding, saved.make(other, 5))
    assert all(
        a.sharding.is_equivalent_to(b, a.ndim)
        for a, b in zip(jax.tree.leaves((found.params, found.state)), jax.tree.leaves(wanted), strict=True)
    )


def test_numbers_that_are_not_finite_come_back_to_the_bit(mesh, make_series):
    odd = np.asarray([np.nan, -np.nan, np.inf, -np.inf, -0.0, 1e-45, 0x7FA00001], np.float32)
    odd[-1:] = np.asarray([0x7FA00001], np.uint32).view(np.float32)  # a NaN with a message in it
    params = {"w": jax.device_put(odd, saved.everywhere(mesh))}
    of = make_series()
    of.save(1, params, {"step": params["w"][:1]}, cursor=saved.CURSOR, meta=saved.META, checkpoint_metadata={})
    of.finish()
    found = of.restore(lambda step, cursor, meta: saved.abstract((params, {"step": params["w"][:1]})))
    assert np.asarray(found.params["w"]).tobytes() == odd.tobytes()


def test_check_is_told_what_the_checkpoint_says_of_itself(mesh, make_series):
    saved.save(make_series(), 5, mesh, meta={"stage": "second"}, cursor={"row": 99})
    seen = []
    make_series().restore(
        lambda step, cursor, meta: seen.append((step, cursor, meta["stage"])) or saved.abstract(saved.make(mesh))
    )
    assert seen == [(5, {"row": 99}, "second")]


def test_arrays_that_are_given_away_as_soon_as_save_returns_were_saved(mesh, make_series):
    of, (params, state) = make_series(), saved.make(mesh, 5)
    change = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 7, tree), donate_argnums=0)
    wanted = jax.tree.map(lambda x: np.array(x), (params, state))
    of.save(5, params, state, cursor=saved.CURSOR, meta=saved.META, checkpoint_metadata={})
    for _ in range(3):
        params, state = change((params, state))
    of.finish()
    found = saved.restore(make_series(), mesh)
    saved.assert_same((found.params, found.state), wanted)
    assert float(params["w"][0, 0]) == -7


def test_a_save_in_hand_is_told_until_it_is_finished(mesh, make_series):
    of = make_series()
    assert not of.is_saving
    of.finish()  # nothing in hand: no matter
    params, state = saved.make(mesh, 5)
    of.save(5, params, state, cursor=saved.CURSOR, meta=saved.META, checkpoint_metadata={})
    of.finish()
    assert not of.is_saving and of.steps() == [5]


# --- which ones are kept ---


def test_the_last_ones_every_nth_and_those_named_are_kept(mesh, make_series):
    of = make_series(keep_last=2, keep_every_steps=4, keep_steps=(3, 7))
    for step in range(1, 11):
        saved.save(of, step, mesh)
    assert of.steps() == [10, 9, 8, 7, 4, 3]


def test_the_last_ones_alone_are_kept_where_nothing_else_is_asked(mesh, make_series):
    of = make_series(keep_last=1)
    for step in (1, 2, 3):
        saved.save(of, step, mesh)
    assert of.steps() == [3]


def test_what_an_earlier_process_saved_counts_among_those_to_keep(mesh, make_series):
    for step in (1, 2, 3):
        saved.save(make_series(keep_last=2), step, mesh)
    assert make_series().steps() == [3, 2]


def test_the_newest_is_restored_by_its_number(mesh, make_series):
    for step in (9, 10, 11):
        saved.save(make_series(), step, mesh)
    assert saved.restore(make_series(), mesh).step == 11


def test_no_checkpoint_is_none(mesh, make_series, tmp_path):
    assert saved.restore(make_series(), mesh) is None and make_series().steps() == []
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "notes.txt").write_text("no checkpoint")
    assert saved.restore(make_series(), mesh) is None


# --- of another run ---


def test_what_check_refuses_is_not_damage(copied, make_series, said):
    def refuse(step, cursor, meta):
        raise ValueError(f"the checkpoint of step {step} is of {meta['stage']}, and the run is another")

    with pytest.raises(ValueError, match="the checkpoint of step 6 is of first, and the run is another"):
        make_series().restore(refuse)
    assert make_series().steps() == [6, 5] and not copied.with_name("damaged").exists() and said == []


CHANGED = {
    "another dtype": (
        lambda state: state | {"step": jax.ShapeDtypeStruct((), jnp.float32, sharding=state["step"].sharding)},
        r"step is int32\[\] there and float32\[\] now",
    ),
    "another shape": (
        lambda state: state | {"step": jax.ShapeDtypeStruct((2,), jnp.int32, sharding=state["step"].sharding)},
        r"step is int32\[\] there and int32\[2\] now",
    ),
    "more": (
        lambda state: state | {"ema_params": {"w": state["step"]}},
        r"ema_params/w is absent there and int32\[\] now",
    ),
    "less": (lambda state: state | {"loss_stats": None}, r"loss_stats/mean is float32\[2\] there and absent now"),
}


@pytest.mark.parametrize("kind", CHANGED)
def test_a_state_of_another_form_is_refused_by_name_and_is_not_damage(kind, copied, make_series, mesh, said):
    change, text = CHANGED[kind]

    def check(step, cursor, meta):
        params, state = saved.abstract(saved.make(mesh))
        return params, change(state)

    whole = rf"{copied}/6 was saved by another optimizer: {text}; restore config\.stages\.NAME\.optimizer and ema_decay"
    with pytest.raises(ValueError, match=whole):
        make_series().restore(check)
    assert make_series().steps() == [6, 5] and not copied.with_name("damaged").exists() and said == []


# --- opened by itself ---


def test_a_saved_step_opens_like_any_checkpoint(make_series, tmp_path):
    model, mesh = toys.TOY, sharding.make_mesh(data=2)
    params = jax.device_put(toys.params(model), parameters.shardings(model, mesh))
    for step in (9, 10):
        moved = jax.tree.map(lambda x, step=step: x + step, params)
        state = {"step": jax.device_put(jnp.asarray(step), saved.everywhere(mesh))}
        of, about = make_series(), {"model": dataclasses.asdict(model), "tokenizer": "abc"}
        of.save(step, moved, state, cursor=saved.CURSOR, meta=saved.META, checkpoint_metadata=about)
        of.finish()
    newest, older = tmp_path, tmp_path / "checkpoints" / "9"
    for path, step in ((newest, 10), (tmp_path / "checkpoints" / "10", 10), (older, 9)):
        found = checkpoint_open.open_checkpoint(path)
        assert (found.kind, found.model, found.tokenizer) == ("orbax", model, "abc")
        saved.assert_same(found.load(sharding.make_mesh(data=4)), jax.tree.map(lambda x, step=step: x + step, params))


def test_a_run_without_checkpoints_is_refused_by_name(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match=rf"{tmp_path}/checkpoints holds no checkpoint yet"):
        checkpoint_open.open_checkpoint(tmp_path)


@pytest.mark.parametrize("num_saves", [5, pytest.param(100, marks=pytest.mark.slow)])
def test_saves_leave_neither_threads_nor_descriptors_behind(num_saves, make_series, mesh):
    """A run saves thousands of times, and a process may hold 1,024 descriptors."""
    of = make_series()
    saved.save(of, 0, mesh)
    gc.collect()
    num_threads, num_descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    for step in range(1, num_saves + 1):
        saved.save(of, step, mesh)
    gc.collect()
    assert threading.active_count() <= num_threads + 2
    assert len(os.listdir("/proc/self/fd")) <= num_descriptors + 2
