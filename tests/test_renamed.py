"""What a run wrote before its names changed: it opens, exports and continues."""

import hashlib
import json
import pathlib
import tarfile

import numpy as np
import pytest

from gemma3_jax import renamed, settings, sharding
from gemma3_jax.checkpoint import manager
from gemma3_jax.checkpoint import open as checkpoint_open
from gemma3_jax.cli import program
from gemma3_jax.train import settings as train_settings
from tests.checkpoint import saved

GOLDEN = pathlib.Path(__file__).parent / "golden" / "run_before_renames.tar.xz"  # see make_run_before_renames.py
# The config of that run under today's names.
CONFIG = """
def get_config(data):
    return {
        "model": {"num_layers": 3, "num_local_per_global": 1, "embed_dim": 8, "mlp_dim": 16, "num_heads": 2,
                  "num_kv_heads": 1, "head_dim": 4, "sliding_window": 8, "query_scale": 0.5, "rope_scale": 1.0,
                  "vocab_size": 560},
        "execution": {"dtype": "float32"},
        "data": data,
        "stage_order": ("only",),
        "stages": {"only": {"seq_len": 32, "batch_size": 4, "num_steps": 6, "ema_decay": 0.9,
                            "optimizer": {"peak_lr": 1e-2, "warmup_steps": 2}}},
        "checkpoints": {"every_steps": 3},
        "log": {"tensorboard": False},
    }
"""

# --- names ---


def test_a_nested_config_is_renamed_at_every_level():
    stored = {
        "model": {"width": 8, "num_heads": 2},
        "walk": ["only"],
        "stages": {"only": {"row_length": 32, "watch": {"memory": 0.9}, "optimizer": {"peak_rate": 0.1}}},
    }
    assert renamed.current(stored) == {
        "model": {"embed_dim": 8, "num_heads": 2},
        "stage_order": ["only"],
        "stages": {"only": {"seq_len": 32, "spike_guard": {"memory": 0.9}, "optimizer": {"peak_lr": 0.1}}},
    }


def test_a_dotted_name_is_renamed_at_its_end():
    assert renamed.current({"model.window": "8", "model.num_layers": "3", "quant": "none"}) == {
        "model.sliding_window": "8",
        "model.num_layers": "3",
        "quant": "none",
    }


def test_the_window_of_the_perplexity_task_is_still_called_so():
    stored = {"measures": {"perplexity": {"window": 512}}}
    assert renamed.current(stored) == stored


def test_names_of_today_stay():
    stored = {"model": {"embed_dim": 8}, "batch_size": 4}
    assert renamed.current(stored) == stored


def test_no_field_of_today_has_an_old_name():
    fields = {
        field
        for schema in (settings.Train, settings.StageEntry, train_settings.AdamW)
        for field in schema.__annotations__
    }
    assert not fields & renamed.FIELDS.keys()
    assert not set(renamed.FIELDS.values()) & renamed.FIELDS.keys()


@pytest.mark.parametrize("parts", [("step", "opt_state", "ema_params", "loss_stats"), ("step", "opt_state")], ids=len)
def test_parts_of_the_state_are_found_under_their_old_names(parts):
    old = {"opt_state": "moments", "ema_params": "average", "loss_stats": "normal"}
    assert renamed.stored_parts(parts, {"step", "moments", "average", "normal"}) == {
        part: old.get(part, part) for part in parts
    }


def test_parts_under_names_that_the_checkpoint_has_are_read_under_those():
    parts = ("step", "opt_state", "loss_stats")
    assert renamed.stored_parts(parts, set(parts)) == {part: part for part in parts}
    assert renamed.stored_parts(("moments", "normal"), {"moments", "normal"}) == {
        "moments": "moments",
        "normal": "normal",
    }


def test_a_part_that_the_checkpoint_lacks_keeps_its_name():
    assert renamed.stored_parts(("ema_params",), {"step", "moments"}) == {"ema_params": "ema_params"}


# --- the state of a run ---

OLD_STATE = {new: old for old, new in renamed.STATE.items()}


@pytest.fixture
def saved_before(tmp_path):
    """A checkpoint of step 5 whose state has the old names, which sort in another order."""
    mesh = sharding.make_mesh(data=4, model=2)
    params, state = saved.make(mesh, 5)
    state = {OLD_STATE.get(part, part): tree for part, tree in (state | {"ema_params": params}).items()}
    of = saved.in_directory(tmp_path / "checkpoints", pytest.fail)
    notes = {
        "cursor": {"row_length": 64, "seed": 0},
        "meta": {"stage": "first", "model.width": "8"},
        "checkpoint_metadata": {},
    }
    of.save(5, params, state, **notes)
    of.finish()
    return tmp_path / "checkpoints", mesh


def restore(directory, mesh, say, seen):
    def check(step, cursor, meta):
        seen.extend([cursor, meta])
        params, state = saved.make(mesh)
        return saved.abstract((params, state | {"ema_params": params}))

    return saved.in_directory(directory, say).restore(check)


def test_a_state_under_old_names_comes_back_under_todays_to_the_bit(saved_before):
    (directory, mesh), seen = saved_before, []
    restored = restore(directory, mesh, pytest.fail, seen)
    params, state = saved.make(mesh, 5)
    saved.assert_same((restored.params, restored.state), (params, state | {"ema_params": params}))
    assert seen == [restored.cursor, restored.meta]
    assert restored.cursor == {"seq_len": 64, "seed": 0} and restored.meta["model.embed_dim"] == "8"


def test_the_order_of_the_old_names_matters_to_the_checksum(saved_before):
    _, mesh = saved_before
    params, state = saved.make(mesh, 5)
    state |= {"ema_params": params}
    old = {OLD_STATE.get(part, part): tree for part, tree in state.items()}
    assert manager.checksum(params, state) != manager.checksum(params, old)


def test_a_flipped_bit_under_an_old_name_is_noticed(saved_before):
    (directory, mesh), lines = saved_before, []
    file = max((directory / "5" / "state").rglob("d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 1
    file.write_bytes(content)
    for copy in (directory / "5" / "state").glob("d/*"):
        if copy != file and copy.read_bytes() == bytes(content):
            copy.unlink()
    with pytest.raises(ValueError, match="none of the 1 checkpoints in .* can be read"):
        restore(directory, mesh, lines.append, [])


# --- a run of the time before ---


@pytest.fixture
def run_before(tmp_path):
    """The data set and the run of the archive, and what is expected of them."""
    with tarfile.open(GOLDEN) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path, json.loads((tmp_path / "expected.json").read_text())


def test_a_run_before_the_renames_opens(run_before):
    directory, _ = run_before
    checkpoint = checkpoint_open.open_checkpoint(directory / "run")
    assert (checkpoint.kind, checkpoint.path.name) == ("orbax", "3")
    assert (checkpoint.model.embed_dim, checkpoint.model.num_kv_heads, checkpoint.model.sliding_window) == (8, 1, 8)


def test_its_export_has_the_bits_of_the_export_of_that_time(run_before):
    directory, expected = run_before
    target = directory / "hf"
    assert program.main(["convert", f"--source={directory / 'run'}", f"--target={target}", "--format=hf"]) == 0
    exported = (target / "model.safetensors").read_bytes()
    assert hashlib.sha256(exported).hexdigest() == expected["hf_sha256"]


@pytest.mark.slow
def test_it_continues_under_todays_names(run_before):
    directory, expected = run_before
    (directory / "config.py").write_text(CONFIG)
    config = f"--config={directory / 'config.py'}:{directory / 'data'}"
    assert program.main(["train", config, f"--workdir={directory / 'run'}", "--config.mesh.data=1"]) == 0
    rows = [json.loads(line) for line in (directory / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["loss"] for row in rows[:3]] == expected["losses"][:3]  # as written
    # Another processor sums in another order.
    np.testing.assert_allclose([row["loss"] for row in rows], expected["losses"], rtol=1e-4)
    assert manager.steps(directory / "run" / "checkpoints") == [6, 3]


def test_names_that_a_user_chose_stay():
    old = {"stages": {"window": {"row_length": 8}}, "sources": {"share": {"share": 0.5}}, "mixture": {"walk": {}}}
    new = {"stages": {"window": {"seq_len": 8}}, "sources": {"share": {"fraction": 0.5}}, "mixture": {"walk": {}}}
    assert renamed.current(old) == new


def test_columns_of_metrics_have_one_name():
    assert renamed.current_metrics({"loss": 1.0, "kept_mass": 0.9}) == {"loss": 1.0, "captured_mass": 0.9}
    assert renamed.current_metrics({"unquantised_nats": 2.0}) == {"unquantized_nats": 2.0}
    row = {"loss": 1.0, "captured_mass": 0.9}
    assert renamed.current_metrics(row) is row
