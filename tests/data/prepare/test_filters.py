"""Each filter: what it keeps, what it drops and why, what it changes."""

import dataclasses

import pytest

from gemma3_jax.data import record_ids
from gemma3_jax.data.prepare import filters, quality, records, settings

EVALUATION = [("quiz:1", "one two three four five six seven eight nine ten eleven twelve thirteen fourteen")]


def record(text, **changes):
    return records.Record(record_ids.RecordId(0, 0, 0), "text", "en", (text,), **changes)


def chat(*contents):
    item = record("")
    return dataclasses.replace(item, texts=contents, roles=("user", "model", "user", "model")[: len(contents)])


def outcome(original, evaluation=(), **changes):
    config = settings.PrepareConfig(**({"personal_data": settings.PersonalDataConfig(action="")} | changes))
    inputs = dataclasses.replace(filters.read_inputs(config), evaluation=tuple(evaluation))
    return filters.apply(filters.build(config, inputs), original)


def test_a_record_that_nothing_speaks_against_is_the_same_record():
    original = record("plain text")
    assert outcome(original, personal_data=settings.PersonalDataConfig()) is original


@pytest.mark.parametrize(
    ("text", "reason", "detail"), [("ab", "too short", "2 characters"), ("a" * 11, "too long", "11 characters")]
)
def test_length(text, reason, detail):
    limits = settings.LengthConfig(min_characters=3, max_characters=10)
    assert outcome(record(text), length=limits) == records.Dropped(reason, detail)
    assert not isinstance(outcome(record("abc"), length=limits), records.Dropped)
    assert not isinstance(outcome(record("a" * 10), length=limits), records.Dropped)


def test_words_of_the_safety_list_are_counted_whole_and_in_any_case(tmp_path):
    (tmp_path / "words").write_text("bad\nvery bad thing\n\n")
    safety = settings.SafetyConfig(word_list=str(tmp_path / "words"), max_hits=1)
    assert outcome(record("Bad, and a VERY BAD THING."), safety=safety) == records.Dropped(
        "unsafe", "2 words of the list"
    )
    assert not isinstance(outcome(record("a very bad thing; badly"), safety=safety), records.Dropped)


def test_a_word_list_that_is_none_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"config\.safety\.word_list is .*none, which is not a file"):
        outcome(record("a"), safety=settings.SafetyConfig(word_list=str(tmp_path / "none")))
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(ValueError, match="empty is empty; it has a word or phrase a line"):
        outcome(record("a"), safety=settings.SafetyConfig(word_list=str(tmp_path / "empty")))


def test_quality_keeps_by_its_score_as_often_as_it_says():
    config = settings.QualityConfig(score="field:quality", power=2.0, floor=0.1)
    for score, expected in ((0.0, 0.1), (0.5, 0.25), (1.0, 1.0)):
        original = [record(f"text {number}", fields={"quality": score}) for number in range(1_000)]
        num_kept = sum(not isinstance(outcome(item, quality=config), records.Dropped) for item in original)
        assert num_kept / 1_000 == pytest.approx(expected, abs=0.04)  # three standard errors
        assert num_kept == sum(not isinstance(outcome(item, quality=config), records.Dropped) for item in original)
    assert outcome(record("t", fields={"quality": 0.0}), quality=settings.QualityConfig(score="field:quality")) == (
        records.Dropped("low quality", "score 0.000")
    )


def test_a_score_may_be_a_function_of_ones_own():
    score = settings.QualityConfig(score="tests.data.prepare.test_filters:always_zero")
    assert outcome(record("a"), quality=score).reason == "low quality"


def always_zero(item):
    return 0.0


@pytest.mark.parametrize("name", ["no_such_module:f", "math:no_such_function", "nonsense", "field:"])
def test_a_score_that_cannot_be_found_is_refused(name):
    with pytest.raises(ValueError, match=rf"config\.quality\.score is '{name}'; it must be 'heuristic', 'field:NAME'"):
        quality.find_score(name)


@pytest.mark.parametrize("score", [None, "high", 1.5, -0.1])
def test_a_score_that_is_no_share_is_refused(score):
    with pytest.raises(ValueError, match="field:q gives .*a score is a number from 0 to 1"):
        outcome(record("a", fields={"q": score}), quality=settings.QualityConfig(score="field:q"))


def test_the_heuristic_prefers_prose():
    prose = "This is a sentence about something. Here is another one, a little longer than the first."
    assert quality.heuristic(record(prose)) > 0.95
    for worse in ("buy now\n" * 20, "x1 0x3f 993 ,,, ;; 88 -- 12", "a" * 400, "", "?!"):
        assert quality.heuristic(record(worse)) < 0.5


def test_personal_data_is_masked_in_every_turn_or_the_record_dropped():
    item = outcome(chat("I am a@b.org", "Noted: 8.8.8.8"), personal_data=settings.PersonalDataConfig())
    assert item.texts == ("I am [EMAIL]", "Noted: [IP]")
    drop = settings.PersonalDataConfig(action="drop", kinds=("email", "ip"))
    assert outcome(record("a@b.org 8.8.8.8"), personal_data=drop) == records.Dropped("personal data", "email, ip")


def test_contamination_is_dropped_with_its_longest_span_or_cut_out():
    text = f"before {EVALUATION[0][1]} after"
    dropped = outcome(record(text), EVALUATION)
    assert dropped == records.Dropped("contaminated", "14 words in a row of quiz:1")
    cut = settings.DecontaminationConfig(action="excise", margin_characters=0)
    assert outcome(record(text), EVALUATION, decontamination=cut).text == "before \n after"
    assert outcome(record(EVALUATION[0][1]), EVALUATION, decontamination=cut).reason == "contaminated"
    assert outcome(chat(text, "a"), EVALUATION, decontamination=cut).reason == "contaminated"  # no half turns


def test_a_score_that_fails_is_told():
    with pytest.raises(ValueError, match=r"math:sqrt fails: TypeError: .*\(config\.quality\.score\)"):
        outcome(record("a"), quality=settings.QualityConfig(score="math:sqrt"))


def test_length_is_looked_at_again_after_what_cuts():
    cut = settings.DecontaminationConfig(action="excise", margin_characters=0)
    original = record(f"before {EVALUATION[0][1]} after")
    limits = settings.LengthConfig(min_characters=20)
    assert outcome(original, EVALUATION, decontamination=cut, length=limits) == records.Dropped(
        "too short", "14 characters"
    )


def test_evaluation_sets_without_text_and_unknown_regions_are_refused(tmp_path):
    path = tmp_path / "quiz.jsonl"
    path.write_text('{"question": "why"}\n')
    named = settings.DecontaminationConfig(paths=(str(path),), fields=("nope",))
    with pytest.raises(ValueError, match=r"quiz.jsonl have no text in \('nope',\) \(config\.decontamination\.fields"):
        outcome(record("a"), decontamination=named)
    with pytest.raises(ValueError, match=r"config\.personal_data\.phone_region is 'Mars'"):
        outcome(record("a"), personal_data=settings.PersonalDataConfig(phone_region="Mars"))


def test_filters_leave_their_argument_alone():
    original = record("I am a@b.org")
    outcome(original, personal_data=settings.PersonalDataConfig())
    assert original.text == "I am a@b.org"
