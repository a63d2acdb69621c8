"""Prompts have the requested length, with needles at their depths, and answers are scored by what they contain."""

import collections
import dataclasses
import json
import re

import pytest

from gemma3_jax.evals import compounds, haystack, model_api, needle, settings
from tests import texts
from tests.evals import characters

TOKENIZERS = {"pieces": texts.tokenizer, "characters": characters.Characters}
SMALL = settings.Needle(lengths=(530, 700), num_depths=2, num_samples=1)


def scripted(tokenizer, answer=lambda prompt: ""):
    """A model that continues every prompt with `answer` of its text."""

    def continue_(params, prompts, num_tokens, *, stop=True):
        assert stop
        return [tokenizer.encode(answer(tokenizer.decode(prompt)))[:num_tokens] for prompt in prompts]

    return model_api.ModelApi(tokenizer=tokenizer, score=lambda params, token_lists: [], continue_=continue_)


def read(prompt: str) -> list[str]:
    """The answer of a careful reader, from the text of the prompt alone."""
    text, question = prompt.split("\n", 1)[1].rsplit("\n", 2)[0], "\n".join(prompt.rsplit("\n", 2)[1:])
    if "special number" in question:
        key = re.search(r"special numbers? of (\w+) in", question)[1]
        return re.findall(rf"special numbers? of {key} is (\d{{7}})\.", text)
    if "variables" in question:
        value, names = re.search(r"have the value (\d{5})", question)[1], []
        while match := re.search(rf"VAR (\w+) = {value}\.", text):
            names, value = [*names, match[1]], f"VAR {match[1]}"
        return names
    times = collections.Counter(re.findall(r"\d+\. (\w+)", text))
    return [word for word, _ in times.most_common(10)]


def results(options, answer, tokenizer=None):
    made = needle.make(scripted(tokenizer or texts.tokenizer(), answer), options)
    return [made.measure({}, [item])[0] for item in made.items]


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("length", [1_000, 1_537, 8_192])
def test_prompts_are_as_long_as_asked_to_within_a_hundredth_and_never_longer(tokenizer, length):
    options = settings.Needle(lengths=(length,), num_depths=3, num_samples=1)
    model = scripted(TOKENIZERS[tokenizer]())
    made = needle.make(model, options)
    assert {item.kind for item in made.items} == set(options.kinds) and len(made.items) == 3 * 5
    for item in made.items:
        prompt, _ = needle.prompt(model, options.seed, item)
        assert prompt[0] == model.tokenizer.bos and 0.99 * length <= len(prompt) <= length, item


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("kind", ["single", "multikey", "multivalue", "tracking"])
def test_the_needle_is_as_many_tokens_into_the_text_as_its_depth_says(tokenizer, kind):
    model = scripted(TOKENIZERS[tokenizer]())
    made = needle.make(model, settings.Needle(kinds=(kind,), lengths=(3_000,), num_depths=5, num_samples=2))
    seen = []
    for item in made.items:
        prompt, references = needle.prompt(model, 0, item)
        text = model.tokenizer.decode(prompt).split("\n", 1)[1].rsplit("\n", 2)[0]
        first = f"VAR {references[0]}" if kind == "tracking" else references[0]
        sentence = max(text.rfind(". ", 0, text.index(first)) + 2, 2) if text.index(first) > 60 else 0
        # All needles but the first lie among what is counted: they are at most 4 of some 100 sentences.
        share = len(model.tokenizer.encode(text[:sentence])) / len(model.tokenizer.encode(text))
        assert abs(100 * share - item.depth_percent) < 10, (item, share)
        seen.append(item.depth_percent)
    assert sorted(set(seen)) == [0, 25, 50, 75, 100] and len(seen) == 10


def test_a_lone_needle_is_within_a_sentence_of_its_depth():
    model = scripted(characters.Characters())
    made = needle.make(model, settings.Needle(kinds=("single",), lengths=(5_000,), num_depths=11, num_samples=1))
    for item in made.items:
        prompt, _ = needle.prompt(model, 0, item)
        text = model.tokenizer.decode(prompt).split("\n", 1)[1].rsplit("\n", 2)[0]
        before, behind = re.split(r"The special number of \w+ is \d{7}\.", text)
        assert abs(len(before) / (len(before) + len(behind)) - item.depth_percent / 100) < 25 / 4_700


def test_one_depth_alone_is_the_middle():
    made = needle.make(scripted(texts.tokenizer()), settings.Needle(kinds=("single",), num_depths=1))
    assert {item.depth_percent for item in made.items} == {50.0}


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_a_reader_who_finds_all_scores_100_at_every_kind(tokenizer):
    options = settings.Needle(lengths=(1_100, 2_200), num_depths=2, num_samples=2)
    summary = needle.summarize(results(options, lambda prompt: ", ".join(read(prompt)), TOKENIZERS[tokenizer]()))
    assert summary["by_kind"] == {kind: {"1100": 100.0, "2200": 100.0} for kind in options.kinds}
    assert summary["score"] == 100 and summary["effective_length"] == 2_200


@pytest.mark.parametrize("answer", ["", "The river is wide. 1. and 2. so on"])
def test_a_model_that_says_nothing_of_use_scores_0(answer):
    summary = needle.summarize(results(SMALL, lambda prompt: answer))
    assert summary["score"] == 0 and summary["effective_length"] is None
    assert set(summary["by_depth"]["tracking"]["530"].values()) == {0.0}


def test_half_of_the_values_are_half_of_the_score():
    options = dataclasses.replace(SMALL, kinds=("multivalue", "common_words"))
    summary = needle.summarize(results(options, lambda prompt: " ".join(read(prompt)[::2])))
    assert summary["by_kind"] == {kind: {"530": 50.0, "700": 50.0} for kind in options.kinds}


def test_letters_of_any_case_count():
    assert needle.score(["QRSTV", "BCDFG", "XYZ", "7"], "is qrstv, bCdFg") == 50.0


def test_an_answer_is_cut_where_it_would_end_alone():
    """A batch goes on as long as its longest answer may."""
    options = settings.Needle(kinds=("tracking", "common_words"), lengths=(530,), num_depths=2, num_samples=1)
    late = lambda prompt: "la " * 50 + " ".join(read(prompt))  # noqa: E731
    made = needle.make(scripted(texts.tokenizer(), late), options)
    together = made.measure({}, made.items)
    assert repr(json.loads(json.dumps(together))) == repr(together)  # results go through a file
    assert together == [made.measure({}, [item])[0] for item in made.items]
    assert [result["score"] for result in together[:2]] == [0.0, 0.0]


@pytest.mark.parametrize("kind", settings.NEEDLE_KINDS)
def test_answers_are_different_and_not_in_the_question(kind):
    model = scripted(texts.tokenizer())
    made = needle.make(model, settings.Needle(kinds=(kind,), lengths=(600,), num_depths=2, num_samples=10))
    for item in made.items:
        prompt, references = needle.prompt(model, 0, item)
        start, *text, question, beginning = model.tokenizer.decode(prompt).split("\n")
        assert (
            len(set(references)) == len(references) == {"multivalue": 4, "tracking": 5, "common_words": 10}.get(kind, 1)
        )
        for reference in references:
            assert reference in " ".join(text) and reference not in start + question + beginning
        assert not beginning.endswith(" ")  # a space before a word is a part of the word's piece


def test_a_value_is_handed_on_in_order_even_at_one_place():
    model = scripted(texts.tokenizer())
    made = needle.make(model, settings.Needle(kinds=("tracking",), lengths=(600,), num_depths=2, num_samples=3))
    for item in made.items:
        prompt, references = needle.prompt(model, 0, item)
        assert re.findall(r"VAR (\w+) =", model.tokenizer.decode(prompt)) == list(references)


def test_keys_are_different_however_few_there_are(monkeypatch):
    monkeypatch.setattr(compounds, "WORDS", compounds.WORDS[:4])
    model = scripted(texts.tokenizer())
    made = needle.make(model, settings.Needle(kinds=("multikey",), lengths=(600,), num_depths=1, num_samples=3))
    for item in made.items:
        prompt, _ = needle.prompt(model, 0, item)
        keys = re.findall(r"number of (\w+) is \d{7}\.", model.tokenizer.decode(prompt))
        assert sorted(keys) == sorted(compounds.WORDS)


def test_no_made_up_word_is_in_another():
    words = set(compounds.WORDS)
    assert len(compounds.WORDS) == len(words) == 16_384
    parts = (word[start:end] for word in words for end in range(5, len(word) + 1) for start in range(end - 4))
    assert collections.Counter(part for part in parts if part in words) == dict.fromkeys(words, 1)


def test_common_words_stand_as_often_as_is_said():
    model = scripted(texts.tokenizer())
    options = settings.Needle(kinds=("common_words",), lengths=(530, 1_500, 8_192), num_depths=1, num_samples=1)
    made = needle.make(model, options)
    assert [item.times for item in made.items] == [(2, 1), (6, 1), (30, 3)]
    for item in made.items:
        prompt, references = needle.prompt(model, 0, item)
        times = collections.Counter(re.findall(r"\d+\. (\w+)", model.tokenizer.decode(prompt)))
        common, other = item.times
        assert {word for word in times if times[word] == common} == set(references)
        assert set(times.values()) == {common, other}
        # A third of the list or more are other words.
        assert 2 * sum(times.values()) >= 3 * 10 * common


def test_the_same_seed_gives_the_same_prompts_and_another_gives_others():
    def prompts(seed):
        model, options = scripted(texts.tokenizer()), dataclasses.replace(SMALL, seed=seed)
        return [needle.prompt(model, seed, item) for item in needle.make(model, options).items]

    first, again, other = prompts(0), prompts(0), prompts(1)
    assert first == again and not any(a == b for a, b in zip(first, other, strict=True))
    assert len({tuple(prompt) for prompt, _ in first}) == len(first) == 2 * 5 * 2


def test_prompts_are_those_of_every_machine_and_version():
    item = needle.NeedlePrompt(kind="single", length=530, depth_percent=0.0, sample=0, times=None)
    prompt, references = needle.prompt(scripted(characters.Characters()), 0, item)
    text = characters.Characters().decode(prompt)
    assert references == ("1592199",) and "\nThe special number of misthollow is 1592199. The river is wide." in text


def test_a_length_with_no_room_says_the_least():
    model = scripted(texts.tokenizer())
    with pytest.raises(ValueError, match=r"needle\.lengths has 90 tokens, but .* tracking take at least \d+ .* leave"):
        needle.make(model, settings.Needle(lengths=(90, 2_000), kinds=("tracking",)))
    for kind in settings.NEEDLE_KINDS:
        with pytest.raises(ValueError, match=f"kind {kind} take at least") as refusal:
            needle.make(model, settings.Needle(lengths=(60,), kinds=(kind,)))
        least = int(re.search(r"at least (\d+)", str(refusal.value))[1])
        made = needle.make(model, settings.Needle(lengths=(least,), kinds=(kind,)))
        assert all(0.99 * least <= len(needle.prompt(model, 0, item)[0]) <= least for item in made.items)


def test_a_length_between_those_that_a_tokenizer_can_make_is_refused():
    coarse = characters.Characters(per_character=20)
    text = lambda num_parts, last: "and so on" * num_parts + f" {last}" * (last != "")  # noqa: E731
    question = haystack.Question(head="", text=text, tail="?", references=("x",), min_parts=0)
    assert len(haystack.fill(question, coarse, 61)) == 1 + 20 * len(" a?")
    with pytest.raises(ValueError, match="no prompt has 60 tokens to within 1 %; the nearest has 21"):
        haystack.fill(question, coarse, 60)


def test_a_length_for_which_there_are_too_few_words_is_refused(monkeypatch):
    monkeypatch.setattr(compounds, "WORDS", compounds.WORDS[::400])
    model, options = scripted(texts.tokenizer()), settings.Needle(kinds=("common_words",), lengths=(600,))
    assert needle.make(model, options).items
    with pytest.raises(ValueError, match=r"needle\.lengths has 90000, and prompts of kind common_words: .* within 1 %"):
        needle.make(model, dataclasses.replace(options, lengths=(90_000,)))


def test_a_tokenizer_without_bos_is_refused():
    tokenizer = characters.Characters()
    tokenizer.bos = None
    with pytest.raises(ValueError, match="no <bos>"):
        needle.make(scripted(tokenizer), settings.Needle())


def result(length, score, kind="single", depth=0.0):
    return {"kind": kind, "length": length, "depth_percent": depth, "sample": 0, "times": None, "score": score}


def test_scores_are_means_of_their_cells():
    spread = {"kind": "common_words", "length": 10, "depth_percent": None, "sample": 0, "times": [6, 1], "score": 20.0}
    cells = [result(10, 100.0), result(10, 50.0), result(10, 0.0, depth=100.0), spread]
    summary = needle.summarize(json.loads(json.dumps(cells)))
    assert summary["by_depth"] == {"single": {"10": {"0": 75.0, "100": 0.0}}, "common_words": {"10": {}}}
    assert summary["by_kind"] == {"single": {"10": 50.0}, "common_words": {"10": 20.0}}
    assert summary["by_length"] == {"10": 35.0} and summary["score"] == 35.0 and summary["num_prompts"] == 4
    assert summary["word_times"] == {"10": {"common": 6, "other": 1}}
    assert json.loads(json.dumps(summary)) == summary


@pytest.mark.parametrize(
    ("scores", "effective"),
    [((85.6, 90.0, 85.5), 200), ((85.5, 100.0, 100.0), None), ((100.0, 0.0, 100.0), 100), ((100.0,) * 3, 300)],
)
def test_a_length_is_effective_if_all_shorter_ones_are(scores, effective):
    cells = [result(100 * number, score) for number, score in enumerate(scores, start=1)]
    assert needle.summarize(cells[::-1])["effective_length"] == effective


def test_the_table_is_a_grid_of_lengths_and_depths_for_every_kind():
    lines = needle.lines(needle.summarize(results(SMALL, lambda prompt: ", ".join(read(prompt)[:2]))))
    grid = lines.index(next(line for line in lines if line.startswith("multivalue")))
    assert lines[grid].split() == ["multivalue", "0", "%", "100", "%", "mean"]
    assert lines[grid + 1].split() == ["530", *["50.0"] * 3] and lines[grid + 2].split() == ["700", *["50.0"] * 3]
    assert any("20.0   common words 2 times, others 1" in line for line in lines)
    assert lines[-1].startswith("effective length: none of these")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"kinds": ()}, r"kinds is \(\); name at least one"),
        ({"kinds": ("single", "single")}, r"kinds is \('single', 'single'\); .* each once"),
        ({"kinds": ("essay",)}, r"kinds has 'essay'; each must be one of single, multikey"),
        ({"lengths": ()}, r"lengths is \(\)"),
        ({"lengths": (8, 8)}, r"lengths is \(8, 8\)"),
        ({"lengths": (512, 0)}, r"lengths has 0; each must be at least 1 token"),
        ({"num_depths": 0}, r"num_depths is 0; it must be at least 1"),
        ({"num_samples": -1}, r"num_samples is -1"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, problem):
    with pytest.raises(ValueError, match=problem):
        settings.Needle(**changes)
