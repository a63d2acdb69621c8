"""A real llama.cpp, of the npm package node-llama-cpp: what we export runs there, and says what our model says."""

import dataclasses
import json
import pathlib
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytestmark = pytest.mark.interop

from gemma3_jax import sharding  # noqa: E402
from gemma3_jax.checkpoint import encoding, gguf_file, gguf_vocabulary, load_sharded, names  # noqa: E402
from gemma3_jax.model import config, masks, parameters  # noqa: E402
from gemma3_jax.quant import settings, view  # noqa: E402
from tests import texts, toys  # noqa: E402
from tests.checkpoint import gguf_files  # noqa: E402

HERE = pathlib.Path(__file__).parent / "llama_cpp"
MODEL = dataclasses.replace(toys.IN_BLOCKS, embed_dim=128, mlp_dim=256, vocab_size=texts.TOKENIZER_SIZE + 32)
TOKENS = [2, *toys.tokens(MODEL, 1, 63)[0].tolist()]
TEXT = """\
The year 2024, or 12345: digits; one    run   of spaces,\ta tab\t\tand two\n\n\nlines  \r\n
def f(x):\n    return x ** 2  # caf\u00e9 na\u00efve \u6f22\u5b57 \U0001f600\U0001f1e9\U0001f1ea \x00\x7f e\u0301 \u00a0
<table><tr><td>a</td></tr></table> <b>bold</b> &amp; <unused7> [multimodal] <mask> <start_of_image>
<start_of_turn>user\nWho are you?<end_of_turn>\n<start_of_turn>model\n
"""


@pytest.fixture(scope="session")
def llama_cpp(tmp_path_factory):
    """Asks llama.cpp: a function of a file, texts and ids that gives the answer of ask.mjs."""
    if not shutil.which("node") or not shutil.which("npm"):
        pytest.skip("node or npm is not installed; llama.cpp comes with the npm package node-llama-cpp")
    place = tmp_path_factory.mktemp("llama_cpp")
    for file in ("package.json", "ask.mjs"):
        shutil.copy(HERE / file, place)
    install = ["npm", "install", "--ignore-scripts", "--omit=optional", "--no-audit", "--no-fund"]
    done = subprocess.run(install, cwd=place, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"npm could not install node-llama-cpp: {done.stderr.strip().splitlines()[-1:]}")

    def ask(file: pathlib.Path, *, texts=(), tokens=()) -> dict:
        question = {"model": str(file), "texts": list(texts), "tokens": list(tokens)}
        (place / "question.json").write_text(json.dumps(question))
        command = ["node", "ask.mjs", "question.json"]
        done = subprocess.run(command, cwd=place, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return ask


def peaked(model: config.Config) -> dict:
    """Weights of which the next token is far from evenly distributed, as a trained model's is."""
    params = toys.params(model)
    params["final_norm"]["scale"] = 1.5 * (1 + params["final_norm"]["scale"]) - 1
    return params


def export(path: pathlib.Path, model: config.Config, params: dict, matrices: str, table: str) -> pathlib.Path:
    plan = encoding.StoragePlan(matrices, table)
    gguf_file.check(model, plan, texts.tokenizer())
    gguf_file.write(path, model, params, plan, texts.tokenizer())
    return path


def log_probs(logits) -> np.ndarray:
    return np.asarray(jax.nn.log_softmax(jnp.asarray(logits, jnp.float32)), np.float64)


def ours(model: config.Config, params: dict) -> np.ndarray:
    def logits(params):
        bound, row = parameters.bind(model, params), jnp.asarray([TOKENS])
        return bound.logits(bound(row, masks.whole_rows(row)))[0]

    return log_probs(jax.jit(logits)(params))


def mean_kl(of: np.ndarray, to: np.ndarray) -> float:
    """Nats a position."""
    return float(np.mean(np.sum(np.exp(of) * (of - to), axis=-1)))


VARIANTS = {
    "rope scale 8, window 16": {},
    "13 layers, one key head": {"num_layers": 13, "num_kv_heads": 1},
    "another query scale": {"query_scale": 0.1},
    "no rope scale, another epsilon": {"rope_scale": 1.0, "num_layers": 6, "norm_epsilon": 1e-3},
    "no global layer": {"num_layers": 5, "sliding_window": 7},
    "62 layers": {"num_layers": 62, "embed_dim": 64, "mlp_dim": 64},
    "another pattern and bases": {"num_local_per_global": 2, "rope_base_local": 500.0, "rope_base_global": 9e4},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_it_gives_every_next_token_the_probability_that_we_give_it(name, llama_cpp, tmp_path):
    model = dataclasses.replace(MODEL, **VARIANTS[name])
    params = peaked(model)
    file = export(tmp_path / "toy.gguf", model, params, "float32", "float32")
    expected, found = ours(model, params), log_probs(llama_cpp(file, tokens=TOKENS)["logits"])
    kl = mean_kl(expected, found)
    print(f"{name}: mean KL {kl:.2e}, entropy {-np.mean(np.sum(np.exp(expected) * expected, -1)):.2f} nats")
    assert kl <= 1e-5  # its cache of keys and values is float16


@pytest.mark.parametrize("matrices, table", [("q4_0", "float16"), ("q4_0", "q8_0"), ("q8_0", "q8_0")])
def test_it_runs_the_quantized_model_that_training_saw(matrices, table, llama_cpp, tmp_path):
    params = peaked(MODEL)
    file = export(tmp_path / "toy.gguf", MODEL, params, matrices, table)
    found = log_probs(llama_cpp(file, tokens=TOKENS)["logits"])
    seen = jax.jit(view.make(settings.Quant(format=matrices, embedding=table), parameters.dims(MODEL)))(params)
    kl, kl_unquantized = mean_kl(ours(MODEL, seen), found), mean_kl(ours(MODEL, params), found)
    print(f"{matrices}, table {table}: mean KL {kl:.2e}, to the unquantized model {kl_unquantized:.2e}")
    assert kl <= 1e-3  # it rounds activations to 8 bits
    if matrices == "q4_0":
        assert kl <= 0.05 * kl_unquantized


# Each of the types that this program reads by the package gguf, where a row is whole blocks of it.
TYPES = {
    "ffn_up": "Q4_1",
    "ffn_gate": "IQ4_NL",
    "ffn_down": "Q4_K",
    "attn_q": "Q5_0",
    "attn_k": "Q4_1",
    "token_embd": "Q5_0",
}


def test_we_read_the_blocks_of_other_writers_as_it_does(llama_cpp, tmp_path):
    file = export(tmp_path / "toy.gguf", MODEL, peaked(MODEL), "float32", "float32")
    slots = {names.gguf_name(slot): slot for slot in names.slots(MODEL)}
    tensors = {}
    for seed, (name, slot) in enumerate(slots.items()):
        kind = "Q6_K" if name == "blk.3.ffn_down.weight" else TYPES.get(name.split(".")[-2])
        if kind:
            shape = names.shape_of(slot.spec.hf_layout, names.dim_sizes(MODEL))
            tensors[name] = gguf_files.blocks(kind, shape, seed, factor=6 if "V" in slot.spec.layout else 1)
    other = gguf_files.rewrite(tmp_path / "other.gguf", file.read_bytes(), tmp_path, tensors=tensors, tokenizer=True)
    source = gguf_file.open_source(other)
    assert source.notes[0].endswith("Q4_1, Q4_K, Q5_0, Q6_K are read as float32, which holds them exactly")
    params = load_sharded.load(source, sharding.make_mesh())
    expected, found = ours(source.model, params), log_probs(llama_cpp(other, tokens=TOKENS)["logits"])
    kl = mean_kl(expected, found)
    print(f"mixed types: mean KL {kl:.2e}, entropy {-np.mean(np.sum(np.exp(expected) * expected, -1)):.2f} nats")
    assert kl <= 2e-3  # it rounds activations to 8 bits


@pytest.mark.parametrize(
    "keys",
    [
        {"gemma3.rope.scaling.type": None},
        {"gemma3.rope.scaling.type": "none"},
        {"gemma3.rope.scaling.factor": 0.0},
        {"gemma3.attention.sliding_window_pattern": [(layer + 1) % 3 != 0 for layer in range(8)]},
        {"gemma3.final_logit_softcapping": 0.0},
    ],
    ids=str,
)
def test_we_read_metadata_of_other_writers_as_it_does(keys, llama_cpp, tmp_path):
    params = peaked(MODEL)
    content = export(tmp_path / "toy.gguf", MODEL, params, "float32", "float32").read_bytes()
    file = gguf_files.rewrite(tmp_path / "other.gguf", content, tmp_path, keys=keys, tokenizer=True)
    source = gguf_file.open_source(file)
    found = log_probs(llama_cpp(file, tokens=TOKENS)["logits"])
    params = load_sharded.load(source, sharding.make_mesh())  # stacked by the pattern of the file
    kl, kl_before = mean_kl(ours(source.model, params), found), mean_kl(ours(MODEL, peaked(MODEL)), found)
    print(f"{keys}: mean KL {kl:.2e}, to the model without these keys {kl_before:.2e}")
    assert kl <= 1e-5


def test_its_tokens_are_ours(llama_cpp, tmp_path):
    file = export(tmp_path / "toy.gguf", MODEL, peaked(MODEL), "float32", "float32")
    tokenizer, pages = texts.tokenizer(), [TEXT, *texts.library()[40:44], "", " ", "\n", "  a"]
    spelled = ["<end_of_image>", "<bos><eos>"]  # of ids that no text makes here, whoever parses it
    found = llama_cpp(file, texts=[*pages, *spelled])
    assert found["parsed"][: len(pages)] == [tokenizer.encode(page, parse_control=True) for page in pages]
    assert found["plain"] == [tokenizer.encode(page) for page in [*pages, *spelled]]
    assert found["parsed"][len(pages) :] == [[tokenizer.end_of_image], [tokenizer.bos, tokenizer.eos]]
    own = gguf_vocabulary.read(file, MODEL.vocab_size)  # the tokenizer that the file holds
    assert found["plain"] == [own.encode(page) for page in [*pages, *spelled]]
    assert found["parsed"][: len(pages)] == [own.encode(page, parse_control=True) for page in pages]
    print(f"{sum(map(len, found['plain']))} tokens of {len(found['plain'])} texts")
