"""The files beside the weights of a Hugging Face directory: made of the tokenizer, or carried from the source."""

import io
import json

import pytest
import sentencepiece

from gemma3_jax.checkpoint import export, hf_extra_files
from gemma3_jax.checkpoint import open as checkpoint_open
from gemma3_jax.tokenizer import directory, pieces, templates, vocabulary
from tests import texts, toys
from tests.checkpoint.test_gguf_file import MODEL

MADE = ["generation_config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json"]


def write(path, tokenizer=None) -> object:
    export.Export("hf", MODEL, tokenizer=tokenizer or texts.tokenizer()).write(path, toys.source(MODEL))
    return path


def convert(source, target, **options):
    made = export.resolve(checkpoint_open.open_checkpoint(source), "hf", **options)
    notes = made.check()
    made.write(target, toys.source(MODEL))
    return notes


def content(path, name) -> dict:
    return json.loads((path / name).read_text())


def test_without_a_source_they_are_made_of_the_tokenizer(tmp_path):
    path = write(tmp_path / "out")
    others = {"config.json", "model.safetensors", "model.safetensors.index.json"}
    assert sorted(file.name for file in path.iterdir() if file.name not in others) == MADE
    config = content(path, "tokenizer_config.json")
    assert config["add_bos_token"] is True and config["tokenizer_class"] == "GemmaTokenizer"
    assert [config[f"{name}_token"] for name in ("bos", "eos", "pad", "unk")] == ["<bos>", "<eos>", "<pad>", "<unk>"]
    assert config["chat_template"] == templates.JINJA and config["model_max_length"] == 131_072
    generation = content(path, "generation_config.json")
    assert generation == {
        "bos_token_id": 2, "eos_token_id": [1, 106], "pad_token_id": 0, "do_sample": True, "top_k": 64, "top_p": 0.95
    }  # fmt: skip
    assert {key: content(path, "config.json")[key] for key in hf_extra_files.SPECIAL_IDS} == {
        key: generation[key] for key in hf_extra_files.SPECIAL_IDS
    }


def test_ids_are_those_of_the_tokenizer_and_without_turns_there_is_one_end(tmp_path):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts.library()[:4]), model_writer=model, vocab_size=700, model_type="bpe", pad_id=-1,
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=False,
        minloglevel=2, max_sentence_length=1 << 20,
    )  # fmt: skip
    path = write(tmp_path / "out", vocabulary.Tokenizer(model.getvalue()))
    assert content(path, "generation_config.json")["eos_token_id"] == 2
    assert "pad_token_id" not in content(path, "generation_config.json")
    config = content(path, "config.json")
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, 2)
    assert not {"chat_template", "pad_token"} & content(path, "tokenizer_config.json").keys()


def test_a_tokenizer_that_is_no_bpe_is_written_alone_with_the_reason(tmp_path):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts.library()[:4]), model_writer=model, vocab_size=400, model_type="unigram",
        minloglevel=2, max_sentence_length=1 << 20,
    )  # fmt: skip
    (tmp_path / "uni.model").write_bytes(model.getvalue())
    notes = convert(write(tmp_path / "in"), tmp_path / "out", tokenizer=str(tmp_path / "uni.model"))
    assert notes[-1].startswith("warning: no tokenizer.json is written: the tokenizer is no BPE model")
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == model.getvalue()
    assert not (tmp_path / "out" / "tokenizer.json").exists()


OWN = {
    "tokenizer_config.json": {"tokenizer_class": "GemmaTokenizer", "add_bos_token": True, "extra": 3},
    "generation_config.json": {"eos_token_id": [1, 7], "bos_token_id": 2, "temperature": 0.2},
    "special_tokens_map.json": {"bos_token": "<bos>"},
    "added_tokens.json": {"<new>": 800, "<newer>": 801},
    "chat_template.json": {"chat_template": "{{ messages }}"},
}


def test_what_the_source_has_is_carried_as_it_is(tmp_path):
    """Another template, ends of its own, and added tokens: of one that Transformers fine-tuned."""
    source = write(tmp_path / "in")
    for name, own in OWN.items():
        (source / name).write_text(json.dumps(own))
    (source / "chat_template.jinja").write_text("{{ own }}")
    (source / "tokenizer.json").unlink()
    (source / "tokenizer.model").write_bytes(texts.tokenizer_model())
    convert(source, tmp_path / "out")
    for name in (*OWN, "chat_template.jinja", "tokenizer.model"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    assert content(tmp_path / "out", "config.json")["eos_token_id"] == [1, 7]
    made = directory.load(tmp_path / "out" / "tokenizer.json")
    assert made.encode("a <new>b") == directory.load(source).encode("a <new>b") and made.size == 802
    assert convert(tmp_path / "out", tmp_path / "again") == (f"tokenizer {tmp_path}/out/tokenizer.model",)


def test_tokenizer_json_alone_is_carried_and_fills_a_gguf_file(tmp_path):
    source = write(tmp_path / "in")
    (source / "tokenizer.model").unlink()
    assert convert(source, tmp_path / "out") == (f"tokenizer {source}/tokenizer.json",)
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    assert not (tmp_path / "out" / "tokenizer.model").exists()
    options = export.resolve(checkpoint_open.open_checkpoint(source), "gguf")
    options.check()
    assert options.tokenizer.encode("a  b\n\nc") == texts.tokenizer().encode("a  b\n\nc")


def test_a_tokenizer_json_that_is_not_read_is_copied_with_the_reason(tmp_path):
    source = write(tmp_path / "in")
    (source / "tokenizer.model").unlink()
    changed = content(source, "tokenizer.json") | {"normalizer": {"type": "NFC"}}
    (source / "tokenizer.json").write_text(json.dumps(changed))
    warning, note = convert(source, tmp_path / "out")
    assert "tokenizer.json: its normalizer is {'type': 'NFC'}" in warning
    assert note == f"generation_config.json, tokenizer.json, tokenizer_config.json of {source} are copied unread"
    assert content(tmp_path / "out", "tokenizer.json") == changed
    with pytest.raises(ValueError, match=r"its normalizer is .*; name another with --tokenizer=FILE"):
        export.resolve(checkpoint_open.open_checkpoint(source), "gguf")


def test_a_named_tokenizer_replaces_that_of_the_source(tmp_path):
    source = write(tmp_path / "in")
    (source / "tokenizer_config.json").write_text(json.dumps({"chat_template": "own"}))
    (source / "generation_config.json").write_text(json.dumps({"temperature": 0.5}))
    other = {7: pieces.VocabularyPiece("<think>", 0.0, pieces.PieceKind.USER_DEFINED)}
    (tmp_path / "my.model").write_bytes(pieces.replaced(texts.tokenizer_model(), other))
    convert(source, tmp_path / "out", tokenizer=str(tmp_path / "my.model"))
    assert content(tmp_path / "out", "tokenizer_config.json")["chat_template"] == templates.JINJA
    assert content(tmp_path / "out", "generation_config.json") == {"temperature": 0.5}


def test_the_tokenizer_of_the_source_by_its_name_replaces_nothing(tmp_path):
    source = write(tmp_path / "in")
    (source / "chat_template.jinja").write_text("{{ own }}")
    (source / "tokenizer_config.json").write_text(json.dumps({"extra": 3}))
    named = str(source / "tokenizer.model")
    assert convert(source, tmp_path / "out", tokenizer=named) == (f"tokenizer {named}",)
    for name in ("chat_template.jinja", "tokenizer_config.json", "tokenizer.json"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    (source / "added_tokens.json").write_text('{"<new>": 800}')  # so that it is another tokenizer
    notes = convert(source, tmp_path / "other", tokenizer=named)
    files = "added_tokens.json, chat_template.jinja, tokenizer.json, tokenizer.model, tokenizer_config.json"
    assert notes[-1] == (
        f"{files} of {source} are left out, as {named} is another tokenizer; what a directory needs is made of that"
    )
    assert content(tmp_path / "other", "tokenizer_config.json")["chat_template"] == templates.JINJA


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("generation_config.json", "[]", r"in/generation_config\.json is a list; it must be a JSON object"),
        ("generation_config.json", "[" * 100_000, r"in/generation_config\.json is not JSON .*nested too deeply"),
        ("generation_config.json", '{"eos_token_id": "1"}', r"eos_token_id is '1'; it must be an id, or a list of ids"),
        ("generation_config.json", '{"eos_token_id": [1, null, true]}', r"eos_token_id is \[1, None, True\]; it must"),
        ("generation_config.json", '{"pad_token_id": -1}', r"in/generation_config\.json: pad_token_id is -1; it must"),
        ("special_tokens_map.json", "\xff", r"in/special_tokens_map\.json is not (UTF-8|JSON)"),
        ("chat_template.json", "3", r"in/chat_template\.json is 3; it must be a JSON object"),
    ],
)
def test_a_damaged_file_of_the_source_is_named(name, text, problem, tmp_path):
    source = write(tmp_path / "in")
    (source / name).write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=problem):
        export.resolve(checkpoint_open.open_checkpoint(source), "hf")
