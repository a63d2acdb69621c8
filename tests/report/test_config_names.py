"""Run directories whose config has old names of fields."""

import json

from gemma3_jax import renamed
from gemma3_jax.report import cache_memory, configs, context_curves, page
from tests.report import run_directories

OLD_MODEL = {
    "num_layers": 6, "width": 128, "mlp_width": 512, "num_heads": 4, "num_key_heads": 1, "head_width": 32,
    "window": 64, "query_scale": 0.18, "rope_scale": 8.0, "vocab_size": 2048,
}  # fmt: skip
OLD_STAGES = {"pretrain": {"row_length": 512, "optimizer": {"peak_rate": 1e-3}, "watch": {"factor": 2.0}}}


def test_no_name_is_both_old_and_current():
    assert len(renamed.FIELDS) == 17
    assert not set(renamed.FIELDS) & set(renamed.FIELDS.values())


def test_fields_at_any_depth_get_their_current_names():
    assert renamed.current({"walk": ["a"], "stages": OLD_STAGES}) == {
        "stage_order": ["a"],
        "stages": {"pretrain": {"seq_len": 512, "optimizer": {"peak_lr": 1e-3}, "spike_guard": {"factor": 2.0}}},
    }


def test_an_old_run_has_a_model_and_sequence_lengths(directory):
    (directory / "config.json").write_text(json.dumps({"model": OLD_MODEL, "stages": OLD_STAGES}))
    [run] = page.read(directory)
    assert cache_memory.model_of(run.data) == cache_memory.model_of(
        page.read(run_directories.write(directory.parent / "new"))[0].data
    )
    assert context_curves.trained_length(run.data, "pretrain") == 512


def test_runs_that_differ_in_names_alone_do_not_differ(directory, tmp_path):
    other = run_directories.write(tmp_path / "other")
    config = {"model": OLD_MODEL, "stages": OLD_STAGES}
    (directory / "config.json").write_text(json.dumps(config))
    (other / "config.json").write_text(json.dumps(renamed.current(config)))
    assert configs.differences(page.read(directory, [other])) is None
