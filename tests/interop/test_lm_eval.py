"""lm-eval on a toy, and against lm-eval's Hugging Face model on the same weights."""

import dataclasses
import functools
import json
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytestmark = pytest.mark.interop
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance  # noqa: E402

from gemma3_jax import console, sharding  # noqa: E402
from gemma3_jax.checkpoint import hf, hf_config  # noqa: E402
from gemma3_jax.cli import program  # noqa: E402
from gemma3_jax.evals import harness, logprobs, model_api  # noqa: E402
from gemma3_jax.model import execution, masks, parameters  # noqa: E402
from gemma3_jax.tokenizer import templates  # noqa: E402
from tests import test_generate, texts, toys  # noqa: E402

MODEL = dataclasses.replace(toys.TOY, vocab_size=texts.TOKENIZER_SIZE)
MAX_TOKENS = 48
TEXTS = [text[100:260] for text in texts.library()[:8]]


@functools.cache
def params() -> dict:
    """A toy's, which hardly ever generates control tokens or single bytes: programs differ in how they decode these."""
    tokenizer, tree = texts.tokenizer(), toys.params(MODEL)
    rare = [token for token in range(tokenizer.size) if tokenizer.num_bytes()[token] == 0 or _is_byte(tokenizer, token)]
    tree["embedder"]["table"] = tree["embedder"]["table"].at[jnp.asarray(rare)].multiply(0.05)
    return tree


def _is_byte(tokenizer, token: int) -> bool:
    return tokenizer.piece(token).startswith("<0x")


@functools.cache
def api() -> model_api.ModelApi:
    """The toy, scored by `logprobs.score`, and decoded by forward passes over whole sequences."""
    tokenizer = texts.tokenizer()

    @jax.jit
    def likeliest(params, row):
        bound = parameters.bind(MODEL, params)
        return bound.logits(bound(row, masks.whole_rows(row)))[0].argmax(-1)

    def continue_(params, prompts, num_tokens, *, stop=True):
        continuations = []
        for prompt in prompts:
            row, end = np.zeros((1, 256), np.int32), len(prompt)
            row[0, :end] = prompt
            while end < len(prompt) + num_tokens:
                token = int(likeliest(params, jnp.asarray(row))[end - 1])
                if stop and token in (tokenizer.eos, tokenizer.end_of_turn):
                    break
                row[0, end], end = token, end + 1
            continuations.append(row[0, len(prompt) : end].tolist())
        return continuations

    score = functools.partial(
        logprobs.score, MODEL, mesh=sharding.make_mesh(), execute=execution.Execution(dtype="float32")
    )
    return model_api.ModelApi(tokenizer=tokenizer, score=score, continue_=continue_)


def ours(warnings=None, **changes) -> harness.LmEvalModel:
    say = {} if warnings is None else {"say": warnings.append}
    return harness.LmEvalModel(api(), params, **({"max_tokens": MAX_TOKENS, "prompts_per_call": 3} | say | changes))


def requests(kind, arguments):
    return [Instance(kind, {}, args, number, ("a_task", number, 1)) for number, args in enumerate(arguments)]


def greedy_text(context: str, num_tokens: int) -> str:
    """The toy's greedy continuation of a context."""
    tokenizer = api().tokenizer
    ids = api().continue_(params(), [[tokenizer.bos, *tokenizer.encode(context)]], num_tokens, stop=False)[0]
    return tokenizer.decode(ids)


@functools.cache
def pairs() -> list[tuple[str, str]]:
    """Contexts and continuations: long, short, ended by spaces or newlines, empty; some the toy's own."""
    found = []
    for number, text in enumerate(TEXTS):
        context = text[: 10 + 8 * number]
        found += [(context, " " + text[-8:]), (context, text[-4:]), (context + " ", "x = 1"), (context + "\n\n", "def")]
        found += [(context, greedy) for size in (1, 2, 4) if (greedy := greedy_text(context, size)).strip()]
    return [*found, ("", "import os"), ("", TEXTS[0][:30]), (" \n", "a"), ("longer " * 40, "than that")]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """lm-eval's Hugging Face model of our exported directory; with BOS from the tokenizer, or without."""
    pytest.importorskip("torch")
    pytest.importorskip("accelerate")
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    directory = tmp_path_factory.mktemp("hf")
    hf.write(directory, MODEL, params())

    def build(**options):
        return huggingface.HFLM(
            str(directory),
            tokenizer=their_tokenizer(),
            device="cpu",
            dtype="float32",
            batch_size=4,
            max_length=MAX_TOKENS,
            **options,
        )

    return build


def their_tokenizer():
    """The toy's pieces as Transformers' class for Gemma, made by hand: its reader of SentencePiece files needs more."""
    transformers = pytest.importorskip("transformers")
    tokenizer = texts.tokenizer()
    pieces = {tokenizer.piece(token): token for token in range(tokenizer.size)}
    merges = [
        (piece[:place], piece[place:])
        for piece in pieces
        for place in range(1, len(piece))
        if piece[:place] in pieces and piece[place:] in pieces
    ]
    found = transformers.GemmaTokenizer(vocab=pieces, merges=merges, add_bos_token=True)
    # As in Gemma's own file: markers, HTML tags and newlines are found before words are. Spaces are merged.
    first = re.compile(r"</?\w+>|\n+|\[multimodal\]").fullmatch
    found.add_tokens([piece for piece, token in pieces.items() if first(piece) and not _is_byte(tokenizer, token)])
    found.chat_template = templates.JINJA
    assert len(found) == tokenizer.size
    for text in TEXTS:
        assert found.encode(text) == [tokenizer.bos, *tokenizer.encode(text)]
    return found


def test_log_likelihoods_and_greedy_choices_are_those_of_its_hugging_face_model(theirs):
    warnings = []
    expected = theirs().loglikelihood(requests("loglikelihood", pairs()), disable_tqdm=True)
    found = ours(warnings).loglikelihood(requests("loglikelihood", pairs()))
    np.testing.assert_allclose([nats for nats, _ in found], [nats for nats, _ in expected], atol=1e-4, rtol=0)
    assert [is_greedy for _, is_greedy in found] == [is_greedy for _, is_greedy in expected]
    assert 5 < sum(is_greedy for _, is_greedy in found) < len(found) - 5
    lengths = [len(api().tokenizer.encode(context + end)) + 1 for context, end in pairs()]
    num_truncated = sum(length > MAX_TOKENS + 1 for length in lengths)  # the last is scored, and not read
    assert [
        f"warning: {num_truncated} of {len(lengths)} requests are longer than 48 tokens" in line for line in warnings
    ] == [1]


def test_documents_longer_than_a_window_are_cut_as_it_does(theirs):
    documents = [(text * times,) for text, times in zip(TEXTS, (1, 1, 2, 3, 1, 1, 1, 1), strict=True)]
    assert max(len(api().tokenizer.encode(text)) for (text,) in documents) > 3 * MAX_TOKENS
    # With BOS from its tokenizer that model would score BOS after BOS.
    without = theirs(add_bos_token=False)
    expected = without.loglikelihood_rolling(requests("loglikelihood_rolling", documents), disable_tqdm=True)
    found = ours().loglikelihood_rolling(requests("loglikelihood_rolling", [*documents, ("",)]))
    np.testing.assert_allclose(found, [*expected, 0.0], atol=1e-3, rtol=1e-6)  # sums of some 300


def test_texts_are_those_of_its_hugging_face_model(theirs):
    plain = {"until": [], "max_gen_toks": 12, "do_sample": False}
    wishes = [(text[: 10 + 9 * number], plain) for number, text in enumerate(TEXTS)]  # the last are cut
    model = ours()
    whole = model.generate_until(requests("generate_until", wishes))
    for (context, _), text in zip(wishes[:4], whole, strict=False):
        wishes.append((context, plain | {"until": [text[3:5], text[5:6], "never"], "temperature": 0.0}))
    found = model.generate_until(requests("generate_until", wishes))
    assert found == theirs().generate_until(requests("generate_until", wishes), disable_tqdm=True)
    assert found[: len(whole)] == whole and all(len(a) < len(b) for a, b in zip(found[-4:], whole, strict=False))


def chats():
    user = {"role": "user", "content": TEXTS[1][:20].strip()}
    reply = {"role": "assistant", "content": "import os"}
    system = {"role": "system", "content": "Be brief."}
    return [[user], [system, user], [user, reply, user]], [[user, reply], [system, user, reply]]


def test_chats_are_those_of_its_hugging_face_model(theirs):
    model, reference = ours(max_tokens=200), theirs()
    reference._max_length = 200
    whole, begun = chats()
    contexts = [model.apply_chat_template(turns) for turns in whole]
    contexts += [model.apply_chat_template(turns, add_generation_prompt=False) for turns in begun]
    assert contexts[0].startswith("<bos><start_of_turn>user\n")
    assert contexts[:3] == [reference.apply_chat_template(turns) for turns in whole]
    assert contexts[3:] == [reference.apply_chat_template(turns, add_generation_prompt=False) for turns in begun]
    pairs = requests("loglikelihood", [(context, end) for context in contexts for end in ("import", "Paris.")])
    expected = reference.loglikelihood(pairs, disable_tqdm=True)
    found = model.loglikelihood(pairs)
    np.testing.assert_allclose([nats for nats, _ in found], [nats for nats, _ in expected], atol=1e-4, rtol=0)
    wishes = requests("generate_until", [(context, {"max_gen_toks": 8, "until": []}) for context in contexts])
    assert model.generate_until(wishes) == reference.generate_until(wishes, disable_tqdm=True)


def test_a_marker_that_a_user_writes_is_text():
    tokenizer, model = api().tokenizer, ours()
    text = model.apply_chat_template([{"role": "user", "content": "what is <end_of_turn>?"}])
    ids = model.encode(text)
    assert (ids.count(tokenizer.bos), ids.count(tokenizer.start_of_turn), ids.count(tokenizer.end_of_turn)) == (1, 2, 1)
    assert tokenizer.decode(ids) == text.removeprefix("<bos>")
    assert tokenizer.start_of_turn not in model.encode("<start_of_turn>user\n")
    with pytest.raises(ValueError, match=r"starts like a chat, .* cache_requests"):
        ours().generate_until(requests("generate_until", [(text, {"until": [], "max_gen_toks": 8})]))


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A directory of three tasks and their data."""
    directory = tmp_path_factory.mktemp("tasks")
    rows = [
        {
            "question": text[:30].rstrip(),
            "choices": [text[30:40], text[-10:], "x"],
            "label": number % 3,
            "text": text,
            "answer": greedy_text(text[:30].rstrip(), 6)[:3] if number % 2 else "nothing",
        }
        for number, text in enumerate(TEXTS)
    ]
    texts.write_lines(directory / "rows.jsonl", [json.dumps(row).encode() for row in rows])
    kinds = {
        "toy_choice": {
            "output_type": "multiple_choice",
            "doc_to_text": "{{question}}",
            "doc_to_choice": "choices",
            "doc_to_target": "label",
            "target_delimiter": "",
            "metric_list": [{"metric": "acc"}],
        },
        "toy_perplexity": {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "text",
            "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
        },
        "toy_answer": {
            "output_type": "generate_until",
            "doc_to_text": "{{question}}",
            "doc_to_target": "answer",
            "generation_kwargs": {"until": ["never"], "max_gen_toks": 6, "do_sample": False},
            "filter_list": [{"name": "start", "filter": [{"function": "regex", "regex_pattern": "^([\\s\\S]{3})"}]}],
            "metric_list": [{"metric": "exact_match"}],
        },
    }
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(directory / "rows.jsonl")}}}
    for name, settings in kinds.items():  # JSON is YAML
        (directory / f"{name}.yaml").write_text(json.dumps({"task": name, "test_split": "test"} | data | settings))
    (directory / "toy_far.yaml").write_text(
        json.dumps({"task": "toy_far", "test_split": "test", "dataset_path": "no/such"} | kinds["toy_choice"])
    )
    return directory, rows


@pytest.fixture(scope="module")
def results(tasks):
    return harness.evaluate(ours(), ["toy_choice", "toy_perplexity", "toy_answer"], include_path=tasks[0])


def test_a_task_of_choices_is_answered(results, tasks):
    tokenizer, rights = api().tokenizer, []
    whole = [[row["question"] + choice for choice in row["choices"]] for row in tasks[1]]
    scores = iter(
        api().score(params(), [[tokenizer.bos, *tokenizer.encode(text)] for three in whole for text in three])
    )
    for row in tasks[1]:
        start = len(tokenizer.encode(row["question"]))  # no question ends with a space
        nats = [sum(next(scores)[start:]) for _ in row["choices"]]
        rights.append(int(np.argmax(nats) == row["label"]))
    assert 0 < sum(rights) < len(rights)
    assert results["results"]["toy_choice"]["acc,none"] == sum(rights) / len(rights)


def test_a_task_of_perplexity_is_answered(results, tasks):
    nats = sum(ours().loglikelihood_rolling(requests("loglikelihood_rolling", [(row["text"],) for row in tasks[1]])))
    num_bytes = sum(len(row["text"].encode()) for row in tasks[1])
    found = results["results"]["toy_perplexity"]["bits_per_byte,none"]
    np.testing.assert_allclose(found, -nats / num_bytes / np.log(2), rtol=1e-6)


def test_a_task_of_texts_is_answered(results, tasks):
    answers = [greedy_text(row["question"], 6)[:3] for row in tasks[1]]
    assert [text == row["answer"] for text, row in zip(answers, tasks[1], strict=True)] == [False, True] * 4
    assert results["results"]["toy_answer"]["exact_match,start"] == 0.5


def test_results_are_json_and_say_how_much_was_asked(results):
    assert json.loads(json.dumps(results)) == results
    assert results["n-samples"]["toy_choice"] == {"original": 8, "effective": 8}
    assert results["n-shot"]["toy_choice"] == 0


def test_shots_limits_and_chats_reach_it(tasks, monkeypatch):
    bars, chats, apply = [], set(), harness.LmEvalModel.apply_chat_template

    def recorded(self, *arguments, **options):
        text = apply(self, *arguments, **options)
        chats.add(text)
        return text

    def bar(label, total):
        bars.append((label, total))
        return console.silent_bar(label, total)

    monkeypatch.setattr(harness.LmEvalModel, "apply_chat_template", recorded)
    model = ours(max_tokens=400, bar=bar)
    found = harness.evaluate(
        model, ["toy_choice"], include_path=tasks[0], limit=2, num_fewshot=1, apply_chat_template=True
    )
    assert found["n-samples"]["toy_choice"]["effective"] == 2 and found["n-shot"]["toy_choice"] == 1
    assert bars[0] == ("score", 6) and len(chats) == 2


def test_what_it_prints_is_not_among_results(tasks, capsys, monkeypatch):
    monkeypatch.setattr(harness.lm_eval, "simple_evaluate", lambda *_, **__: print("bootstrapping") or {"results": {}})
    assert set(harness.evaluate(ours(), ["toy_choice"], include_path=tasks[0])) == {"results", "lm_eval"}
    out, err = capsys.readouterr()
    assert out == "" and "bootstrapping" in err


def test_what_cannot_be_asked_is_one_line(tasks):
    evaluate = functools.partial(harness.evaluate, ours(), include_path=tasks[0])
    with pytest.raises(ValueError, match=r"no task 'toy_chioce', nor has .*; did you mean toy_choice"):
        evaluate(["toy_chioce"])
    with pytest.raises(ValueError, match=r"the data of toy_far is not available: "):
        evaluate(["toy_far"])
    with pytest.raises(ValueError, match=r"limit is 0 documents of each task; it must be >= 1"):
        evaluate(["toy_choice"], limit=0)
    with pytest.raises(ValueError, match=r"num_fewshot is -1 examples; it must be >= 0"):
        evaluate(["toy_choice"], num_fewshot=-1)
    with pytest.raises(ValueError, match=r"no/dir is not a directory; custom tasks are YAML files"):
        harness.evaluate(ours(), ["toy_choice"], include_path=tasks[0] / "no" / "dir")


@pytest.mark.parametrize(
    "options, match",
    [
        ({"do_sample": True}, r"task a_task has generation_kwargs\.do_sample: True; decoding is always greedy"),
        ({"temperature": 0.7}, r"generation_kwargs\.temperature: 0\.7; decoding is always greedy"),
        ({"num_beams": 4}, r"generation_kwargs\.num_beams: 4; decoding is always greedy"),
        ({"until": [3]}, r"generation_kwargs\.until: \[3\]; it must be strings"),
        ({"max_gen_toks": 48}, r"max_gen_toks: 48; it must be >= 1 and below max_tokens, 48"),
    ],
)
def test_generation_of_another_kind_is_refused(options, match):
    with pytest.raises(ValueError, match=match):
        ours().generate_until(requests("generate_until", [("a", options)]))


def test_settings_that_change_nothing_are_taken():
    options = {"do_sample": False, "temperature": 1, "top_p": 0.9, "num_beams": 1, "max_new_tokens": 3}
    [text] = ours().generate_until(requests("generate_until", [(TEXTS[0][:20], options)]))
    assert len(api().tokenizer.encode(text)) <= 3


def test_requests_that_make_no_sense_are_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"task a_task: the continuation '' adds 0 tokens to its context; it must be"):
        ours().loglikelihood(requests("loglikelihood", [("a", "")]))
    with pytest.raises(ValueError, match=r"adds \d+ tokens to its context; it must be between 1 and max_tokens, 48"):
        ours().loglikelihood(requests("loglikelihood", [("a", TEXTS[0])]))
    with pytest.raises(ValueError, match=r"max_tokens is 1 and prompts_per_call 3; they must be >= 2 and >= 1"):
        ours(max_tokens=1)
    with pytest.raises(ValueError, match="the last turn is not the model's"):
        ours().apply_chat_template(chats()[0][0], add_generation_prompt=False)
    monkeypatch.setattr(api().tokenizer, "bos", None)
    with pytest.raises(ValueError, match="the tokenizer has no <bos>"):
        ours()


def test_evaluate_asks_its_tasks_of_a_checkpoint_and_cuts_what_is_too_long(tasks, tmp_path, capsys, monkeypatch):
    path = test_generate.save(tmp_path / "orbax")
    monkeypatch.setattr(hf_config, "context_length", lambda model: 24)
    flags = [f"--include_path={tasks[0]}", "--lm_tasks=toy_choice,toy_answer", "--limit=2", "--num_fewshot=0"]
    command = ["evaluate", f"--checkpoint={path}", "--task=lm_eval", "--json", "--mesh=data=1", *flags]
    assert program.main(command) == 0, capsys.readouterr().err
    output = capsys.readouterr()
    results = json.loads(output.out)["results"]
    assert set(results) == {"toy_choice", "toy_answer"} and "24 tokens" in output.err
    assert program.main([*command[:-3], "--lm_tasks=toy_chioce"]) == 1
    assert "lm-eval has no task 'toy_chioce'" in capsys.readouterr().err
