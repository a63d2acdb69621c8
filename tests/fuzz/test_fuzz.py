"""Damaged inputs of every kind: exit status 0, or one line and 1; see `rule`. `python -m tests.fuzz` repeats a case."""

import pytest

from gemma3_jax.report import svg
from tests.fuzz import cases, families

# Cases of a family, 160 in all; twenty times as many with the slow tests. Those that compile take seconds each.
NUM_CASES = {"generate": 5, "evaluate": 10, "steps": 4, "orbax_checkpoint": 5} | dict.fromkeys(
    ("hf_directory", "hf_index", "gguf", "data_set", "stored_targets", "train_config", "prepare_inputs", "report"), 17
)


@pytest.mark.parametrize("is_first_part", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", families.FAMILIES)
def test_damaged_inputs_are_one_line_or_work(name, is_first_part, tmp_path, monkeypatch):
    monkeypatch.setattr(svg, "render", lambda *_: "<svg></svg>")  # takes seconds
    with cases.opened(name, tmp_path) as family:
        num_cases = NUM_CASES[name]
        numbers = range(num_cases) if is_first_part else range(num_cases, 20 * num_cases)
        outcomes = [cases.run(family, name, number, tmp_path) for number in numbers]
    broken = [outcome.broken for outcome in outcomes if outcome.broken]
    assert not is_first_part or outcomes[0].status == 0, outcomes[0]  # what is intact works
    # What is damaged is noticed; a report leaves out rows that it cannot read, and counts them on the page.
    assert 1 in [outcome.status for outcome in outcomes] or name == "report"
    assert not broken, "\n".join([f"{len(broken)} of {len(numbers)}", *broken])
