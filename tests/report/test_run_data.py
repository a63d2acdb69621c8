"""Run directories: whole, with missing files, and damaged."""

import json

import numpy as np
import pytest

from gemma3_jax.report import run_data
from gemma3_jax.train import goodput
from tests.report import run_directories


def test_rows_are_columns_by_stage_in_the_order_they_ran(directory):
    run = run_data.read(directory)
    assert [stage.name for stage in run.stages] == ["pretrain", "long_context", "qat"]
    assert [len(stage.tokens) for stage in run.stages] == [60, 20, 20] and run.problems == []
    np.testing.assert_array_equal(run.stages[1].tokens[:2], [60 * 2_048 + 16_384, 60 * 2_048 + 2 * 16_384])
    assert np.isnan(run.stages[0].column("what no row has")).all()


def test_a_step_that_was_skipped_has_tokens_and_no_number(directory):
    run = run_data.read(directory)
    [skipped] = run.skipped_steps
    assert skipped["global_step"] == 21 and run.tokens_at(21) == 21 * 2_048
    assert np.isnan(run.stages[0].accepted("gradient_norm")[20])
    assert np.isfinite(run.stages[0].column("gradient_norm")[20])


def test_between_logged_steps_tokens_lie_on_a_line(tmp_path):
    rows = [row for row in run_directories.rows(10) if row["global_step"] % 10 == 0]
    run_directories.write_lines(tmp_path / "metrics.jsonl", rows)
    assert run_data.read(tmp_path).tokens_at(15) == 15 * 2_048


def test_seconds_are_those_of_the_ledger(directory):
    run = run_data.read(directory)
    # Two records of the same kinds, the first of which led to steps that were done again.
    assert (
        run.seconds_by_kind["step"] == 240
        and run.seconds_by_kind["compile"] == 42
        and run.seconds_by_kind["lost"] == 4 + 240 + 6 + 12
    )


def test_the_last_evaluation_of_each_stage_that_has_the_number(directory):
    rows = run_data.read(directory).last_evaluations(r"context/by_length/\d+/nats")
    assert [(row["stage"], row["step"]) for row in rows] == [("pretrain", 60), ("long_context", 20), ("qat", 20)]
    assert [row["stage"] for row in run_data.read(directory).last_evaluations("unquantized_nats")] == ["qat"]


def test_numbers_in_dicts_get_names_with_slashes(directory):
    row = run_directories.evaluations(run_directories.rows(20))[0]
    nested = row | {"perplexity": {"by_source": {"web": {"nats": 4.5}}}}
    run_directories.write_lines(directory / "evaluations.jsonl", [nested])
    assert run_data.read(directory).evaluations[0]["perplexity/by_source/web/nats"] == 4.5


def test_evaluations_under_old_names_are_read(directory):
    row = run_directories.evaluations(run_directories.rows(20))[0]
    run_directories.write_lines(directory / "evaluations.jsonl", [row | {"unquantised_nats": 2.5}])
    assert run_data.read(directory).evaluations[0]["unquantized_nats"] == 2.5


@pytest.mark.parametrize("name", ["config.json", "goodput.jsonl", "starts.jsonl"])
def test_a_file_that_is_missing_is_named(directory, name):
    (directory / name).unlink()
    [line] = run_data.read(directory).problems
    assert line.startswith(f"{name} is missing: ")


def test_a_run_without_skips_and_evaluations_has_no_problems(directory):
    for name in ("skipped.jsonl", "evaluations.jsonl"):
        (directory / name).unlink()
    run = run_data.read(directory)
    assert run.problems == [] and list(run.skipped_steps) == list(run.evaluations) == []


def test_a_config_that_is_damaged_is_named(directory):
    (directory / "config.json").write_text('{"model": ')
    assert run_data.read(directory).problems == ["config.json cannot be read: the configuration is unknown."]


@pytest.mark.parametrize(
    "line", ["{", "7", '{"stage": 3}', '{"stage": "qat", "global_step": 4, "loss": "low"}', "1, 2"]
)
def test_lines_that_cannot_be_read_are_counted(directory, line):
    file = directory / "metrics.jsonl"
    file.write_text(f"{line}\n" + file.read_text())
    run = run_data.read(directory)
    assert run.problems == ["1 of 101 lines of metrics.jsonl cannot be read and are left out."]
    assert len(run.stages[0].tokens) == 60


def test_half_a_line_at_the_end_is_of_a_run_at_work(directory):
    with (directory / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "qat", "st')
    run = run_data.read(directory)
    assert run.problems == [] and len(run.stages[2].tokens) == 20


@pytest.mark.parametrize("name", ["goodput.jsonl", "starts.jsonl", "evaluations.jsonl"])
def test_files_beside_the_rows_may_be_damaged_too(directory, name):
    file = directory / name
    file.write_text('[]\n{"seconds": {}}\nnull\n' + file.read_text())
    [line] = run_data.read(directory).problems
    assert name in line and "cannot be read" in line


def test_a_text_where_a_number_should_be_is_none(directory):
    rows = run_directories.rows(20)
    rows[3]["gradient_norm"] = "much"
    run_directories.write_lines(directory / "metrics.jsonl", rows)
    column = run_data.read(directory).stages[0].column("gradient_norm")
    assert np.isnan(column[3]) and np.isfinite(column[4])


@pytest.mark.parametrize(
    "value", ["[[1], 2]", "[1]", "{}", '"1"', "1e308", "-1e39", "9" * 400, "NaN", "-Infinity", "null"]
)
def test_what_is_no_number_of_a_run_is_none_in_every_row(directory, value):
    rows = run_directories.rows(20)
    text = "".join(json.dumps(row | {"gradient_norm": "VALUE"}) + "\n" for row in rows)
    (directory / "metrics.jsonl").write_text(text.replace('"VALUE"', value))
    run = run_data.read(directory)
    assert not run.has_column("gradient_norm") and run.has_column("loss") and not run.problems


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("metrics.jsonl", '{"stage": "qat", "global_step": 1, "step": 1e400, "tokens_seen": 1, "loss": 1}'),
        (
            "metrics.jsonl",
            '{"stage": "qat", "global_step": 1' + "0" * 400 + ', "step": 1, "tokens_seen": 1, "loss": 1}',
        ),
        ("metrics.jsonl", '{"stage": "qat", "global_step": 1, "step": NaN, "tokens_seen": 1, "loss": 1}'),
        ("evaluations.jsonl", '{"stage": "qat", "global_step": 1' + "0" * 5_000 + "}"),
        ("skipped.jsonl", '{"stage": ["qat"], "global_step": 1}'),
        ("goodput.jsonl", '{"restored": [2]}'),
        ("goodput.jsonl", '{"restored": "2"}'),
        ("goodput.jsonl", '{"global_step": null, "seconds": SECONDS}'),
        ("goodput.jsonl", '{"global_step": 3, "seconds": {"step": 1}}'),
        ("goodput.jsonl", '{"global_step": 3, "seconds": SECONDS}'.replace("SECONDS", "[" * 100_000)),
        ("starts.jsonl", "[" * 100_000),
    ],
    ids=lambda text: text[:60],
)
def test_a_line_of_another_form_is_counted_and_left_out(directory, name, line):
    seconds = dict.fromkeys(goodput.KINDS, 1.0)
    file = directory / name
    before = file.read_text()
    file.write_text(line.replace("SECONDS", json.dumps(seconds)) + "\n" + before)
    run = run_data.read(directory)
    assert run.problems == [f"1 of {before.count(chr(10)) + 1} lines of {name} cannot be read and are left out."]
    file.write_text(before)
    assert run.seconds_by_kind == run_data.read(directory).seconds_by_kind


def test_a_directory_without_rows_is_no_run(tmp_path):
    with pytest.raises(ValueError, match=r"is not a run: it has no metrics\.jsonl; pass the --workdir"):
        run_data.read(tmp_path)
    with pytest.raises(ValueError, match=r"gone is not a run: no such directory"):
        run_data.read(tmp_path / "gone")
    (tmp_path / "metrics.jsonl").write_text("{\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl has no readable row"):
        run_data.read(tmp_path)


def test_labels_are_as_long_as_it_takes_to_tell_them_apart(tmp_path):
    paths = [tmp_path / name for name in ("a/student", "b/student", "c")]
    assert run_data.labels(paths) == ["a/student", "b/student", f"{tmp_path.name}/c"]
    assert run_data.labels(paths[1:]) == ["student", "c"]
    with pytest.raises(ValueError, match=r"student is listed twice; --compare takes runs other than --workdir"):
        run_data.labels([paths[0], tmp_path / "a" / ".." / "a" / "student"])


def test_a_config_has_one_digest_whatever_the_order_of_its_fields(directory):
    one = run_data.read(directory).config_digest()
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(dict(reversed(config.items()))))
    assert run_data.read(directory).config_digest() == one
    (directory / "config.json").write_text(json.dumps(config | {"seed": 1}))
    assert run_data.read(directory).config_digest() != one
