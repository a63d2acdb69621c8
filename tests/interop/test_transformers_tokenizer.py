"""Against real Transformers: what AutoTokenizer and a pipeline make of an exported directory, and we of theirs."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

pytestmark = pytest.mark.interop
pytest.importorskip("torch")
tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")

from transformers.convert_slow_tokenizer import generate_merges  # noqa: E402

from gemma3_jax.checkpoint import export, tensor_source  # noqa: E402
from gemma3_jax.checkpoint import open as checkpoint_open  # noqa: E402
from gemma3_jax.tokenizer import chat, directory  # noqa: E402
from tests import texts, toys  # noqa: E402
from tests.tokenizer.test_templates import TURNS  # noqa: E402
from tests.tokenizer.test_tokenizer_json import CHAT, PAGES  # noqa: E402

MODEL = dataclasses.replace(toys.TOY, vocab_size=texts.TOKENIZER_SIZE, context_length=8192)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A directory of a model that ends its turn at once: only its table is not zero, and <end_of_turn> is likeliest."""
    params = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), toys.params(MODEL))
    table, newline = np.array(toys.params(MODEL)["embedder"]["table"]), texts.tokenizer().encode("\n")[0]
    table[texts.tokenizer().end_of_turn] = 10 * table[newline]
    params["embedder"]["table"] = table
    path = tmp_path_factory.mktemp("exported") / "hf"
    export.Export("hf", MODEL, tokenizer=texts.tokenizer()).write(path, tensor_source.from_params(MODEL, params))
    return path


def ids_of(tokenizer, page):
    return tokenizer(page)["input_ids"]


@pytest.mark.parametrize("has_model", [True, False])
def test_autotokenizer_encodes_as_we_do_with_one_bos(has_model, exported, tmp_path):
    """From tokenizer.json, which it needs where SentencePiece's own protobuf is newer than the installed one."""
    shutil.copytree(exported, tmp_path / "hf")
    if not has_model:
        (tmp_path / "hf" / "tokenizer.model").unlink()
    theirs, ours = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf"), texts.tokenizer()
    for page in [*PAGES, CHAT]:
        assert ids_of(theirs, page) == [2, *ours.encode(page, parse_control=True)], page[:40]
    for page in PAGES:
        assert theirs.decode(ours.encode(page)) == page
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id, theirs.unk_token_id) == (2, 1, 0, 3)
    assert theirs.model_max_length == 8192


def test_its_prompt_of_a_chat_is_ours(exported):
    theirs = transformers.AutoTokenizer.from_pretrained(exported)
    prompt = chat.prompt(texts.tokenizer(), TURNS)
    assert theirs.apply_chat_template(TURNS, add_generation_prompt=True)["input_ids"] == prompt
    text = theirs.apply_chat_template(TURNS, add_generation_prompt=True, tokenize=False)
    assert theirs(text, add_special_tokens=False)["input_ids"] == prompt


def test_a_pipeline_ends_where_the_turn_does(exported):
    pipe = transformers.pipeline("text-generation", model=str(exported), device="cpu")
    assert pipe.model.generation_config.eos_token_id == [1, 106] == pipe.model.config.eos_token_id
    assert (pipe.model.generation_config.top_k, pipe.model.generation_config.top_p) == (64, 0.95)
    assert pipe.model.config.max_position_embeddings == 8192
    (answer,) = pipe(TURNS, max_new_tokens=8, do_sample=False, return_tensors=True)
    assert answer["generated_token_ids"] == [*chat.prompt(texts.tokenizer(), TURNS), 106]
    (answer,) = pipe(TURNS, max_new_tokens=8, do_sample=False)
    assert answer["generated_text"][-1] == {"role": "assistant", "content": ""}


@pytest.mark.parametrize("with_model", [True, False])
def test_what_they_save_with_tokens_of_its_own_comes_back(with_model, exported, tmp_path):
    """Resized to 832 rows, as their Trainer does it."""
    theirs = transformers.AutoTokenizer.from_pretrained(exported)
    theirs.add_tokens(["<new>", " of the "])
    theirs.add_special_tokens({"additional_special_tokens": ["<|tool|>", "<sp>"]})
    model = transformers.Gemma3ForCausalLM.from_pretrained(exported)
    model.resize_token_embeddings(len(theirs), pad_to_multiple_of=64, mean_resizing=False)
    theirs.save_pretrained(tmp_path / "hf")
    model.save_pretrained(tmp_path / "hf")
    if with_model:
        shutil.copy(exported / "tokenizer.model", tmp_path / "hf")
    ours = directory.load(tmp_path / "hf")
    assert ours.size == len(theirs) == 804
    for page in [*PAGES, CHAT, "a<new>b  of the c <|tool|>"]:
        if " " * 32 not in page:
            assert [2, *ours.encode(page, parse_control=True)] == ids_of(theirs, page), page[:40]
    assert 803 not in ours.encode("<sp>") and ids_of(theirs, "<sp>") == [2, 803]

    source = checkpoint_open.open_checkpoint(tmp_path / "hf")
    assert source.model.vocab_size == 832
    options = export.resolve(source, "hf")
    options.check()
    options.write(tmp_path / "again", source.source)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
    assert ids_of(again, "a<new>b <|tool|>") == ids_of(theirs, "a<new>b <|tool|>")
    table = transformers.Gemma3ForCausalLM.from_pretrained(tmp_path / "again").get_input_embeddings().weight
    np.testing.assert_array_equal(table.detach(), model.get_input_embeddings().weight.detach())


def test_the_merges_that_they_make_of_a_sentencepiece_model_are_read(exported, tmp_path):
    """As Google's own tokenizer.json was made: merges of added tokens too, and runs of spaces by merges alone."""
    content = json.loads((exported / "tokenizer.json").read_text())
    vocab = content["model"]["vocab"]
    content["model"]["merges"] = generate_merges(vocab, None)
    for token in content["added_tokens"]:
        token["normalized"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    ours, theirs = directory.load(tmp_path), tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for page in PAGES:
        ids = ours.encode(page)
        assert ids == texts.tokenizer().encode(page)
        if " " * 32 not in page:
            assert ids == theirs.encode(page, add_special_tokens=False).ids
