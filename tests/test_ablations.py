"""The ablations: paired intervals, verdicts, resuming and the page; slow: each of them, end to end."""

import html
import importlib
import json
import math
import pathlib
import re
import subprocess
import sys
import time
import types

import numpy as np
import pytest

ABLATIONS = pathlib.Path(__file__).parents[1] / "experiments" / "ablations"
sys.path.append(str(ABLATIONS))  # as when one of them is run

page, results, trials = (importlib.import_module(name) for name in ("page", "results", "trials"))
NAMES = page.ORDER


def rows_of(**by_setting: list[float]) -> list[dict]:
    """Rows of the measure `nats`; the values of a setting are by seed."""
    return [
        {"setting": setting, "seed": seed, "measures": {"nats": nats}, "seconds": 30.0}
        for setting, values in by_setting.items()
        for seed, nats in enumerate(values)
    ]


def claim(text: str = "b is less than a", high: float = 0.0, **fields) -> results.Claim:
    return results.Claim(
        text=text, source="the report's figure 0", value=("b", "nats"), baseline=("a", "nats"), high=high, **fields
    )


def ablation(*claims: results.Claim) -> results.Ablation:
    return results.Ablation(
        name="letters",
        title="Letters <of> the alphabet",
        question="Which letter is better?",
        finding="The second one (report, figure 0).",
        toy="no model at all",
        measures={"nats": "nats a token"},
        settings=("a", "b"),
        claims=claims or (claim(),),
    )


def test_an_interval_is_students():
    three = results.confidence_interval([1.0, 2.0, 3.0])  # deviation 1; t of 2 degrees of freedom at 0.975 is 4.302653
    assert three.mean == 2 and three.half_width == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    two = results.confidence_interval([0.0, 2.0])  # deviation sqrt(2); t of 1 degree of freedom is 12.706205
    assert (two.low, two.high) == pytest.approx((1 - 12.706205, 1 + 12.706205), rel=1e-6)


def test_one_seed_has_no_interval():
    with pytest.raises(ValueError, match=r"1 seeds have no deviation; an interval needs at least 2: --seeds=2"):
        results.confidence_interval([1.0])


def test_what_a_seed_does_to_all_settings_cancels_in_their_difference():
    rows = rows_of(b=[2.5, 9.5, 5.5], a=[3.0, 10.0, 6.0])
    judged = results.judge(claim(), rows)
    assert judged.differences == [-0.5, -0.5, -0.5]
    assert judged.interval == results.Interval(-0.5, 0.0) and judged.verdict == results.AGREES


@pytest.mark.parametrize(
    ("differences", "limits", "verdict"),
    [
        ([-1.0, -1.1, -0.9], {"high": 0.0}, results.AGREES),
        ([1.0, 1.1, 0.9], {"high": 0.0}, results.DISAGREES),
        ([-1.0, 2.0, -0.1], {"high": 0.0}, results.UNCLEAR),
        ([1.0, 1.1, 0.9], {"low": 0.0}, results.AGREES),
        ([0.001, -0.001, 0.0], {"low": -0.01, "high": 0.01}, results.AGREES),
        ([0.001, 0.009, 0.003], {"low": -0.01, "high": 0.01}, results.UNCLEAR),  # its mean is within, its interval not
        ([0.03, 0.031, 0.032], {"low": -0.01, "high": 0.01}, results.DISAGREES),
        ([-0.03, -0.031, -0.032], {"low": -0.01, "high": 0.01}, results.DISAGREES),
    ],
)
def test_a_claim_is_judged_by_its_whole_interval(differences, limits, verdict):
    rows = rows_of(a=[4.0] * 3, b=[4.0 + difference for difference in differences])
    limited = results.Claim(text="", source="", value=("b", "nats"), baseline=("a", "nats"), **limits)
    assert results.judge(limited, rows).verdict == verdict


A = [2.0, 3.0, 4.0]
CLEAR, REVERSED, NOISE = [1.0, 1.75, 3.25], [5.0, 6.25, 6.75], [3.0, 2.0, 4.0]  # minus A: -1, 3 and 0 in the mean


@pytest.mark.parametrize(
    ("b", "verdict", "sentence"),
    [
        (CLEAR, results.AGREES, "The sign agrees with the report's figure 0: b is less than a (-1.00 ± 0.62)."),
        (
            REVERSED,
            results.DISAGREES,
            "The sign disagrees with the report's figure 0 in 1 of 1 comparisons; expected: b is less than a "
            "(+3.00 ± 0.62).",
        ),
        (
            NOISE,
            results.UNCLEAR,
            "The sign is unclear, within seed noise, in 1 of 1 comparisons with the report's figure 0: b is less than "
            "a (+0.0 ± 2.5).",
        ),
    ],
)
def test_a_sentence_says_what_the_numbers_do(b, verdict, sentence):
    assert results.overall_verdict([results.judge(claim(), rows_of(a=A, b=b))]) == (verdict, sentence)


def test_a_sentence_counts_the_claims_that_it_does_not_name():
    judged = [results.judge(claim(), rows_of(a=A, b=b)) for b in (CLEAR, REVERSED, NOISE, CLEAR)]
    verdict, sentence = results.overall_verdict(judged)
    assert verdict == results.DISAGREES and "in 1 of 4 comparisons" in sentence
    assert sentence.endswith("(+3.00 ± 0.62); 2 agree; 1 unclear.")


def test_a_toy_that_fails_its_control_is_unclear():
    control = claim("c is worse than a", high=math.inf, low=0.0, is_control=True)
    agreeing, failed = (results.judge(one, rows_of(a=A, b=CLEAR)) for one in (claim(), control))
    verdict, sentence = results.overall_verdict([agreeing, failed])
    assert verdict == results.UNCLEAR and sentence.endswith("pass its control: c is worse than a (-1.00 ± 0.62).")
    disagreeing = results.judge(claim(), rows_of(a=A, b=REVERSED))  # a difference that is there needs no control
    assert results.overall_verdict([disagreeing, failed])[0] == results.DISAGREES


def test_an_interval_is_printed_to_two_digits_of_its_half_width():
    assert results.format_interval(results.Interval(0.01234, 0.0456)) == "+0.012 ± 0.046"
    assert results.format_interval(results.Interval(-123.456, 7.0)) == "-123.5 ± 7.0"
    assert results.format_interval(results.Interval(-1.0, 0.0)) == "-1 ± 0"


def test_a_saved_result_is_not_measured_again(tmp_path):
    saved = trials.Results(tmp_path, {"steps": 3})
    saved.add("a", 0, {"nats": 1.0}, 2.0)
    with (tmp_path / trials.TRIALS).open("a") as file:
        file.write('{"setting": "b", "se')  # killed here
    saved = trials.Results(tmp_path, {"steps": 3})
    assert saved.missing(0, ["a", "b"]) == ["b"] and saved.missing(1, ["a", "b"]) == ["a", "b"]
    saved.add("b", 0, {"nats": 2.0}, 2.0)
    assert trials.Results(tmp_path, {"steps": 3}).missing(0, ["a", "b"]) == []


def test_results_with_other_options_are_not_mixed_in(tmp_path):
    trials.Results(tmp_path, {"steps": 3, "library_files": None})
    with pytest.raises(ValueError, match=r"with other options \(steps 3 there, 4 here\); name another --output or rem"):
        trials.Results(tmp_path, {"steps": 4, "library_files": None})


def run_letters(tmp_path, monkeypatch, measure) -> dict:
    """Runs an ablation that trains nothing, and returns its summary."""
    written = {}
    monkeypatch.setattr(results, "write", lambda summary, directory, plot: written.update(summary))
    trials.run(
        ablation(),
        types.SimpleNamespace(output=str(tmp_path), seeds=2),
        measure,
        options={"steps": 1},
        num_steps_of=len,
        plot=lambda axes, summary: None,
        started=time.monotonic(),
    )
    return written


def test_ctrl_c_saves_the_results_so_far_and_the_same_command_resumes(tmp_path, monkeypatch, capsys):
    measured = []

    def measure(seed, missing, progress, stop_at=("b", 1)):
        for setting in missing:
            progress.step()
            if (setting, seed) == stop_at:
                raise KeyboardInterrupt
            measured.append((setting, seed))
            yield setting, {"nats": float(setting == "a") + seed}

    with pytest.raises(SystemExit) as ended:
        trials.run_main(lambda: run_letters(tmp_path, monkeypatch, measure))
    assert ended.value.code == 130 and "the same command resumes" in capsys.readouterr().err
    result = run_letters(tmp_path, monkeypatch, lambda *args: measure(*args, stop_at=None))
    assert measured == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert result["verdict"] == results.AGREES and result["num_seeds"] == 2
    assert result["claims"][0]["differences"] == [-1.0, -1.0]
    assert result["means"]["a"]["nats"]["mean"] == 1.5 and "letters" in capsys.readouterr().err


def test_one_seed_and_no_steps_are_refused(monkeypatch, capsys):
    for flag, message in (
        ("--seeds=1", "an interval needs at least 2"),
        ("--steps=0", "--steps is 0; it must be at least 1"),
        ("--held_out=0", "--held_out is 0; it must be at least 1"),
    ):
        monkeypatch.setattr(sys, "argv", ["window.py", flag])
        with pytest.raises(SystemExit):
            trials.parse(trials.make_parser("", seeds=3, steps=1))
        assert message in capsys.readouterr().err


def test_the_page_holds_everything_and_fetches_nothing():
    rows = rows_of(a=[2.0, 2.1, 2.3], b=[1.0, 1.2, 1.1])
    result = json.loads(json.dumps(results.summarize(ablation(), rows, seconds=90.0)))
    text = page.page([(result, b"\x89PNG")])
    assert "Letters &lt;of&gt; the alphabet" in text and "<of>" not in text
    assert html.escape(result["sentence"]) in text and "1.5 minutes" in text and "data:image/png;base64," in text
    assert text.count("2.3000") == 1 and "1 of 1" in text and "color-scheme: light dark" in text
    assert not re.search(r"https?://|<script|<link|src=\"(?!data:)|@import|url\(", text)


def test_a_page_of_nothing_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["page.py", f"--output={tmp_path}"])
    with pytest.raises(ValueError, match=r"has no finished ablation; run one: python experiments/ablations/window.py"):
        page.main()


@pytest.mark.parametrize("name", NAMES)
def test_an_ablation_says_its_command_and_claims_what_it_measures(name):
    module = importlib.import_module(name)
    ablation = module.ablation([8, 32]) if name == "estimator" else module.ABLATION
    assert ablation.name == name == module.NAME and len(set(ablation.settings)) == len(ablation.settings)
    assert f"    python experiments/ablations/{name}.py [--output=runs/ablations] [--seeds=" in module.__doc__
    doc = " ".join(module.__doc__.split())
    assert all(phrase in doc for phrase in ("Two CPU cores, about", "Expected: ", "Source: Gemma 3 report"))
    for one in ablation.claims:
        for setting, measure in (one.value, one.baseline):
            assert setting in ablation.settings and measure in ablation.measures
        assert -math.inf < one.low or one.high < math.inf
    assert not all(one.is_control for one in ablation.claims)


@pytest.fixture(scope="module")
def output(tmp_path_factory) -> pathlib.Path:
    """The --output of all ablations, so that data and teachers are made once."""
    return tmp_path_factory.mktemp("ablations")


SMALL = {
    "local_global": ("--steps=2",),
    "window": ("--steps=2",),
    "rope_scale": ("--steps=2", "--short_steps=2", "--texts=2"),
    "teacher_size": ("--steps=9", "--teacher_steps=2"),
    "estimator": ("--steps=2", "--teacher_steps=2"),
    "qat_format": ("--steps=2", "--before_steps=2"),
}


def run_ablation(name: str, output: pathlib.Path, *flags: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ABLATIONS / f"{name}.py"), f"--output={output}", *flags]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_an_ablation_runs_from_text_to_plot(name, output):
    pytest.importorskip("matplotlib")
    flags = ("--seeds=2", "--held_out=2", "--library_files=60", *SMALL[name])
    done = run_ablation(name, output, *flags)
    result = json.loads((output / name / results.RESULT).read_text())
    assert result["sentence"] in done.stdout and result["verdict"] in (
        results.AGREES,
        results.DISAGREES,
        results.UNCLEAR,
    )
    assert len(result["rows"]) == 2 * len(result["means"])
    values = [value for row in result["rows"] for value in row["measures"].values()]
    assert np.isfinite(values).all() and result["minutes"] > 0
    assert len({tuple(row["measures"].values()) for row in result["rows"]}) > len(result["means"])  # seeds differ
    assert (output / name / results.PLOT).read_bytes().startswith(b"\x89PNG")
    if name == "qat_format":
        kl = {(row["setting"], row["seed"]): row["measures"]["kl"] for row in result["rows"]}
        assert kl["unrounded", 0] == pytest.approx(0, abs=1e-6) and kl["int4, before", 0] > kl["sfp8, before", 0] > 0
    if name == "window":  # all results are there already: nothing is trained
        assert "step" not in run_ablation(name, output, *flags).stderr


@pytest.mark.slow
def test_the_page_of_what_ran_is_whole(output):
    finished = [name for name in NAMES if (output / name / results.RESULT).exists()]
    if not finished:
        pytest.skip("no ablation has run before")
    run_ablation("page", output)
    text = (output / page.PAGE).read_text()
    assert text.count("data:image/png;base64,") == len(finished)
    sections = [text.index(f'<section id="{name}">') for name in finished]
    assert sections == sorted(sections)


@pytest.mark.slow
def test_no_model_is_scored_on_rows_that_any_model_trained_on(output):
    students = importlib.import_module("students")
    data = students.make_data(str(output), 60)
    seen, num_steps, num_held_out = [], 3, 32
    for seed in range(2):
        held_out, batches = students.student_batches(data, seed, num_steps, num_held_out=num_held_out)
        batches = list(batches)
        assert len(batches) == num_steps and len(held_out) == num_held_out
        seen += [int(row_id) for batch in (*held_out, *batches) for row_id in np.asarray(batch.row_ids)[:, 0]]
    assert len(set(seen)) == len(seen) == 2 * (num_steps + num_held_out) * students.BATCH_SIZE
    teacher_batches = list(students.teacher_batches(data, num_steps))
    first = min(int(np.asarray(batch.row_ids).min()) for batch in teacher_batches)
    assert len(teacher_batches) == num_steps and first > max(seen)
    with pytest.raises(ValueError, match=r"for students; take fewer of --steps, --seeds or --held_out"):
        students.student_batches(data, 1_000, num_steps, num_held_out=num_held_out)
    with pytest.raises(ValueError, match=r"100,000 steps of a teacher need .* take fewer of --teacher_steps"):
        students.teacher_batches(data, 100_000)
    texts = importlib.import_module("rope_scale").held_out_texts(data.tokenizer())
    assert texts.shape[1] == 4_096 and not set(students.held_out_files()) & set(students.training_files())
