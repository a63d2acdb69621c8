"""docs/getting_started.md and the README's three commands, run on a toy: full and adapters, text and chats, to engines.

The directory is one of Hugging Face, and what is exported says in Transformers, PEFT and llama.cpp what it says here.
"""

import dataclasses
import json
import pathlib
import re

import numpy as np
import pytest

from gemma3_jax.cli import program
from gemma3_jax.tokenizer import chat
from tests import texts, toys
from tests.checkpoint.test_hf import make_directory
from tests.interop.test_llama_cpp import llama_cpp  # noqa: F401
from tests.test_readme import OURS, PAGES, ROOT, commands, run

pytestmark = pytest.mark.slow
PAGE = PAGES["docs/getting_started.md"]
README = PAGES["README.md"].partition("## Your checkpoint, your data")[2].partition("\n## ")[0]
MODEL = dataclasses.replace(toys.IN_BLOCKS, num_layers=6, vocab_size=texts.TOKENIZER_SIZE)
QUESTION = [{"role": "user", "content": "What is 3 + 4?"}]
NUM_NEW = 12


def chats() -> list[dict]:
    """Sums with their answers."""
    sums = [(first, second) for first in range(12) for second in range(10)]
    return [
        {
            "messages": [
                {"role": "user", "content": f"What is {first} + {second}?"},
                {"role": "assistant", "content": f"It is {first + second}."},
            ]
        }
        for first, second in sums
    ]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The directory where the commands of the page and of the README have run, and what they have printed."""
    directory = tmp_path_factory.mktemp("page")
    make_directory(directory / "checkpoint", toys.hf_weights(MODEL), MODEL)
    (directory / "checkpoint" / "tokenizer.model").write_bytes(texts.tokenizer_model())
    (directory / "gemma-3-1b-it").symlink_to("checkpoint")
    (directory / "experiments").symlink_to(ROOT / "experiments")
    texts.write_lines(directory / "documents.jsonl", texts.library())
    texts.write_lines(directory / "chats.jsonl", chats())
    more = {"prepare": ("--config.seq_lens=(64,)",), "train": ("--config.stages.tune.num_steps=12",)}
    more["evaluate"] = more["generate"] = ("--mesh=data=1",)
    listed = commands(PAGE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        for command in [*listed, *(command for command in commands(README) if command not in listed)]:
            verb = command.removeprefix(OURS).partition(" ")[0] if command.startswith(OURS) else ""
            run(command, more=more.get(verb, ()))
    return directory


def answers(directory: pathlib.Path, name: str, capsys) -> list[int]:
    """The greedy ids of a checkpoint's answer to `QUESTION`."""
    flags = [f"--checkpoint={directory / name}", f"--prompt_ids={','.join(map(str, prompt()))}", "--temperature=0"]
    flags += ["--ignore_eos", "--json", "--mesh=data=1", f"--max_new_tokens={NUM_NEW}"]
    capsys.readouterr()
    assert program.main(["generate", *flags]) == 0
    return json.loads(capsys.readouterr().out)["ids"]


def perplexity(directory: pathlib.Path, name: str, documents: str, capsys) -> dict:
    flags = [f"--checkpoint={directory / name}", f"--input={directory / documents}", "--json", "--mesh=data=1"]
    capsys.readouterr()
    assert program.main(["evaluate", "--task=perplexity", *flags]) == 0
    return json.loads(capsys.readouterr().out)


def prompt() -> list[int]:
    return chat.prompt(texts.tokenizer(), QUESTION)


@pytest.mark.parametrize(
    ("before", "after", "documents"),
    [
        ("checkpoint", "run", "held_out.jsonl"),
        ("checkpoint", "chat-run", "held_out_chats.jsonl"),
        ("checkpoint", "adapters", "held_out_chats.jsonl"),
        ("checkpoint", "qlora", "held_out_chats.jsonl"),
        ("checkpoint", "tuned", "held_out_chats.jsonl"),
    ],
)
def test_what_was_held_out_is_predicted_better_after_training(page, before, after, documents, capsys):
    first, second = (perplexity(page, name, documents, capsys) for name in (before, after))
    assert first["num_tokens"] == second["num_tokens"] > 40
    assert second["nats_per_token"] < first["nats_per_token"] - 0.05


def test_the_page_leaves_what_it_names(page):
    named = re.findall(r"--(?:target|workdir|output)=(\S+)", " ".join(commands(PAGE)))
    assert len(named) == 13 and all((page / name).exists() for name in named)
    assert (page / "my-model.gguf").read_bytes()[:4] == b"GGUF"
    assert {path.name for path in (page / "my-adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    assert (page / "run" / "report.html").stat().st_size > 10_000
    ends = json.loads((page / "my-chat-model" / "generation_config.json").read_text())["eos_token_id"]
    assert ends == [texts.tokenizer().eos, texts.tokenizer().end_of_turn]


@pytest.mark.interop
@pytest.mark.parametrize("name", ["my-model", "my-chat-model", "my-merged-model", "tuned-hf"])
def test_transformers_says_what_we_say(page, name, capsys):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(page / name)
    ids = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_dict=False)
    assert ids == prompt()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(page / name, dtype=torch.float32)
    assert greedy(theirs, ids) == answers(page, name, capsys)


@pytest.mark.interop
def test_peft_says_what_we_say(page, capsys):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    base = transformers.AutoModelForCausalLM.from_pretrained(page / "checkpoint", dtype=torch.float32)
    plain = greedy(base, prompt())
    theirs = greedy(peft.PeftModel.from_pretrained(base, page / "my-adapter"), prompt())
    assert theirs == answers(page, "adapters", capsys) == answers(page, "my-adapter", capsys) != plain


@pytest.mark.interop
@pytest.mark.parametrize("name", ["run", "adapters"])
def test_llama_cpp_says_what_we_say(page, name, llama_cpp, tmp_path, capsys):  # noqa: F811
    """In float32, as it rounds activations to 8 bits beside quantized weights."""
    flags = [f"--source={page / name}", f"--target={tmp_path}/a.gguf", "--format=gguf"]
    assert program.main(["convert", *flags, *(["--merge"] if name == "adapters" else [])]) == 0
    expected = answers(page, name, capsys)
    logits = llama_cpp(tmp_path / "a.gguf", tokens=[*prompt(), *expected[:-1]])["logits"]
    assert np.argmax(logits[-NUM_NEW:], axis=-1).tolist() == expected


def greedy(theirs, ids: list[int]) -> list[int]:
    """The greedy ids of a model of Transformers or PEFT."""
    import torch

    options = {"do_sample": False, "max_new_tokens": NUM_NEW, "eos_token_id": MODEL.vocab_size, "pad_token_id": 0}
    generated = theirs.generate(
        input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), **options
    )
    return generated[0, len(ids) :].tolist()
