"""docs/serving.md on a toy: its commands of ours, its Python, and lm-eval on the directory as it was written."""

import contextlib
import dataclasses
import io
import os

import jax
import numpy as np
import pytest

pytestmark = pytest.mark.interop
pytest.importorskip("torch")
pytest.importorskip("transformers")
os.environ["KERAS_BACKEND"] = "jax"

from gemma3_jax.checkpoint import hf  # noqa: E402
from gemma3_jax.inference import open_sampler  # noqa: E402
from gemma3_jax.tokenizer import chat  # noqa: E402
from tests import texts, toys  # noqa: E402
from tests.engines import engines  # noqa: E402
from tests.test_readme import OURS, PAGES, blocks, commands, run  # noqa: E402

PAGE = PAGES["docs/serving.md"]
MODEL = dataclasses.replace(toys.IN_BLOCKS, num_layers=6, vocab_size=texts.TOKENIZER_SIZE)
QUESTION = [{"role": "user", "content": "What is 3 + 4?"}]
ANSWER = ("def", "7")  # pieces


def answering() -> dict:
    """Weights that answer every question with ANSWER and the end of the turn, by margins that bfloat16 keeps.

    Only the table is not zero, so that a token's row says what follows it: the row with which it has the largest
    product.
    """
    params = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), toys.params(MODEL))
    tokenizer = texts.tokenizer()
    first, second = (tokenizer.encode(piece)[-1] for piece in ANSWER)
    table = np.zeros((MODEL.vocab_size, MODEL.embed_dim), np.float32)
    table[:, 3:] = 0.01 * np.asarray(toys.params(MODEL)["embedder"]["table"])[:, 3:]
    for token, row in {
        tokenizer.encode("\n")[0]: (1, 0, 0),  # which a prompt ends with
        first: (3, 5, 0),
        second: (-1, 20, 10),
        tokenizer.end_of_turn: (-100, 15, 30),
    }.items():
        table[token, :3] = row
    params["embedder"]["table"] = table
    return params


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The directory where the page's commands of ours have run."""
    directory = tmp_path_factory.mktemp("serving")
    (directory / "run").mkdir()
    hf.write(directory / "run", MODEL, answering())
    (directory / "run" / "tokenizer.model").write_bytes(texts.tokenizer_model())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        for command in commands(PAGE):
            if command.startswith(OURS):
                run(command)
    return directory


def expected() -> str:
    return texts.tokenizer().decode([texts.tokenizer().encode(piece)[-1] for piece in ANSWER])


def run_example(page, monkeypatch, imported: str) -> str:
    """What the page's Python that imports a module prints."""
    [example] = [block for block in blocks(PAGE, "python") if f"import {imported}\n" in block]
    monkeypatch.chdir(page)
    with contextlib.redirect_stdout(io.StringIO()) as out, jax.numpy_rank_promotion("allow"):
        exec(compile(example, "docs/serving.md", "exec"), {})
    return out.getvalue().strip()


@pytest.mark.parametrize("name", ["run", "served", "served.gguf"])
def test_the_toy_answers_here(page, name):
    gemma = open_sampler.open_sampler(page / name)
    answer = gemma.reply(QUESTION, max_new_tokens=8)
    assert (answer.text, answer.ended_by) == (expected(), "<end_of_turn>")


def test_transformers_answers_as_the_page_says(page, monkeypatch):
    assert run_example(page, monkeypatch, "transformers") == expected()


def test_keras_hub_answers_as_the_page_says(page, monkeypatch):
    pytest.importorskip("keras_hub")
    assert run_example(page, monkeypatch, "keras_hub") == f"{expected()}<end_of_turn>"


def test_lm_eval_takes_the_template_and_the_stop_of_the_directory(page):
    pytest.importorskip("accelerate")
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    instance = pytest.importorskip("lm_eval.api.instance")
    model = huggingface.HFLM(str(page / "served"), device="cpu", batch_size=1)
    context = model.apply_chat_template(QUESTION)
    assert model.tok_encode(context) == chat.prompt(texts.tokenizer(), QUESTION)
    wish = instance.Instance("generate_until", {}, (context, {"max_gen_toks": 8, "until": []}), 0)
    assert model.generate_until([wish], disable_tqdm=True) == [expected()]


def test_the_page_has_the_versions_that_the_engines_are_asked_in():
    for engine in engines.ENGINES.values():
        assert f"`python -m tests.engines {engine.name}`" in PAGE and f"| {engine.version.split()[1]} |" in PAGE
