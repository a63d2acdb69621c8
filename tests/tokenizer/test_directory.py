"""Tokenizers of Hugging Face directories: tokenizer.json alone, and tokens that were added behind the pieces."""

import functools
import json
import sys

import pytest
import tokenizers

from gemma3_jax.tokenizer import directory, tokenizer_json, vocabulary
from tests import texts

SIZE = texts.TOKENIZER_SIZE
PAGE = "one  two\n\nsay <new> or <tool> or <sp>: \u6f22\u5b57 <b>x</b>" + " " * 20 + "end"


@functools.cache
def text() -> str:
    return tokenizer_json.write(texts.tokenizer())


def written() -> dict:
    return json.loads(text())


def added(text: str, token: int = SIZE, *, special: bool = False, **changes) -> dict:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token, "content": text, "special": special, **flags, **changes}


def make(path, *, model=True, **files) -> object:
    """A directory with tokenizer.model, and JSON files by the first part of their names."""
    path.mkdir(exist_ok=True)
    if model:
        (path / "tokenizer.model").write_bytes(texts.tokenizer_model())
    for name, content in files.items():
        (path / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_directory_of_both_files_has_the_model_itself(tmp_path):
    path = make(tmp_path / "in", tokenizer=written())
    assert directory.load(path).digest == texts.tokenizer().digest
    assert directory.load(path / "tokenizer.model").digest == texts.tokenizer().digest
    assert directory.file_of(path) == path / "tokenizer.model" and directory.file_of(tmp_path) is None


def as_strings(content):
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    return content


def without_added_runs(content):
    """Runs of spaces made by merges, as in Gemma's own file."""
    for token in content["added_tokens"]:
        token["normalized"] = False
    runs = [("\u2581" * left, "\u2581" * (length - left)) for length in range(2, 32) for left in range(1, length)]
    content["model"]["merges"] = runs + content["model"]["merges"]
    return content


@pytest.mark.parametrize("change", [lambda content: content, as_strings, without_added_runs])
def test_tokenizer_json_alone_encodes_as_the_library_does(change, tmp_path):
    path = make(tmp_path / "in", model=False, tokenizer=change(written()))
    reader = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
    for tokenizer in (directory.load(path), directory.load(path / "tokenizer.json")):
        assert (tokenizer.pad, tokenizer.eos, tokenizer.bos, tokenizer.unk) == (0, 1, 2, 3)
        assert (tokenizer.start_of_turn, tokenizer.end_of_turn) == (105, 106) and tokenizer.size == SIZE
        for page in filter(lambda page: " " * 32 not in page, [*texts.library()[40:46], PAGE]):
            ids = tokenizer.encode(page)
            assert ids == reader.encode(page, add_special_tokens=False).ids == texts.tokenizer().encode(page)
            assert tokenizer.decode(ids) == page
        assert "<end_of_turn>" not in map(tokenizer.piece, tokenizer.encode("<end_of_turn>"))
        assert not tokenizer.num_bytes()[:107].any()


def test_the_names_of_control_tokens_are_those_of_the_config(tmp_path):
    content = written()
    for token, name in ((1, "<END>"), (2, "<START>")):
        old = content["added_tokens"][token]["content"]
        content["added_tokens"][token]["content"] = name
        content["model"]["vocab"][name] = content["model"]["vocab"].pop(old)
    content["post_processor"] = None
    config = {"bos_token": "<START>", "eos_token": {"content": "<END>", "__type": "AddedToken"}, "pad_token": None}
    tokenizer = directory.load(make(tmp_path / "in", model=False, tokenizer=content, tokenizer_config=config))
    assert (tokenizer.pad, tokenizer.eos, tokenizer.bos) == (0, 1, 2) and tokenizer.piece(1) == "<END>"


NEW = [added("<new>"), added("<sp>", SIZE + 1, special=True), added("say or", SIZE + 2)]


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer": written() | {"added_tokens": written()["added_tokens"] + NEW}},
        {"tokenizer": written() | {"added_tokens": written()["added_tokens"] + NEW}, "model": False},
        {"tokenizer_config": {"added_tokens_decoder": {str(token["id"]): token for token in NEW}}},
        {"added_tokens": {token["content"]: token["id"] for token in NEW}},
    ],
    ids=lambda files: "+".join(files),
)
def test_added_tokens_have_their_ids_and_are_parsed_unless_they_are_special(files, tmp_path):
    path = make(tmp_path / "in", **files)
    tokenizer, before = directory.load(path), texts.tokenizer()
    assert tokenizer.size == SIZE + 3 and directory.last_added(path, print) == (SIZE + 2, "say\u2581or")
    assert tokenizer.encode("a <new>b") == [*before.encode("a "), SIZE, *before.encode("b")]
    assert SIZE + 2 in tokenizer.encode("I say or do") and tokenizer.decode([SIZE, SIZE + 2]) == "<new>say or"
    is_special = "added_tokens" not in files  # that file does not tell
    assert (SIZE + 1 not in tokenizer.encode("a <sp> b")) == is_special
    for page in (PAGE, "I say or do"):
        assert tokenizer.decode(tokenizer.encode(page)) == page
    assert tokenizer.encode(texts.library()[40]) == before.encode(texts.library()[40])


def test_a_renamed_piece_has_its_new_name(tmp_path):
    config = {"added_tokens_decoder": {"7": added("<think>", 7)}}
    tokenizer = directory.load(make(tmp_path / "in", tokenizer_config=config))
    assert tokenizer.piece(7) == "<think>" and tokenizer.encode("<think>") == [7] and tokenizer.size == SIZE


def test_the_placeholder_of_images_behind_the_pieces_is_no_token_of_text(tmp_path):
    path = make(tmp_path / "in", added_tokens={"<image_soft_token>": SIZE})
    assert directory.load(path).digest == texts.tokenizer().digest and directory.last_added(path, print) == (-1, "")
    tokenizer = directory.load(make(path, added_tokens={"<image_soft_token>": SIZE, "<new>": SIZE + 2}))
    assert [tokenizer.piece(SIZE + number) for number in range(3)] == [
        "<image_soft_token>",
        f"[PAD{SIZE + 1}]",
        "<new>",
    ]
    assert tokenizer.is_control("<image_soft_token>") and tokenizer.encode("[PAD801]") != [SIZE + 1]


@pytest.mark.parametrize("model", [True, False])
def test_a_placeholder_of_images_among_the_pieces_is_left_out_too(model, tmp_path):
    content = written()
    content["model"]["vocab"]["<image_soft_token>"] = SIZE
    content["added_tokens"].append(added("<image_soft_token>", special=True))
    path = make(tmp_path / "in", model=model, tokenizer=content)
    tokenizer = directory.load(path)
    assert tokenizer.size == SIZE and (model or directory.load(path / "tokenizer.json").digest == tokenizer.digest)


def test_two_names_of_a_byte_are_one(tmp_path):
    content = written()
    content["model"]["vocab"]["\x00"] = content["model"]["vocab"]["<0x00>"]
    assert directory.load(make(tmp_path / "in", tokenizer=content)).digest == texts.tokenizer().digest


NEW_NAME = (
    r"json has '<unused1>' for id 7 in model\.vocab, but an added token of that id is '<think>'.*; rename it in mod"
)


def test_a_piece_that_has_a_new_name_in_one_place_is_refused_with_the_reason(tmp_path):
    """The library gives such a name another id, behind all pieces."""
    content = written()
    content["added_tokens"][7]["content"] = "<think>"
    path = make(tmp_path / "in", tokenizer=content)
    assert tokenizers.Tokenizer.from_file(str(path / "tokenizer.json")).token_to_id("<think>") == SIZE
    with pytest.raises(ValueError, match=NEW_NAME):
        directory.load(path)
    content["model"]["vocab"]["<think>"] = content["model"]["vocab"].pop("<unused1>")
    assert directory.load(make(path, tokenizer=content)).piece(7) == "<think>"


def test_a_new_name_in_another_file_is_one(tmp_path):
    content = written()
    del content["added_tokens"][7]
    config = {"added_tokens_decoder": {"7": added("<think>", 7)}}
    path = make(tmp_path / "in", tokenizer=content, tokenizer_config=config)
    with pytest.raises(ValueError, match=NEW_NAME):
        directory.load(path)


def changed(**model):
    content = written()
    content["model"] |= model
    return content


def without(name):
    content = written()
    del content["model"]["vocab"][name]
    return content


def shuffled():
    content = written()
    merges = content["model"]["merges"]
    made = [left + right for left, right in merges]
    twice = next(number for number, text in enumerate(made) if made.count(text) > 1 and text != made[-1])
    merges.append(merges.pop(twice))
    return content


def less_merges():
    content = written()
    made = [left + right for left, right in content["model"]["merges"]]
    twice = next(number for number, text in enumerate(made) if made.count(text) > 1)
    del content["model"]["merges"][twice]
    return content


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("[]", r"in/tokenizer\.json is a list; it must be a JSON object"),
        ("[" * 100_000, r"in/tokenizer\.json is not JSON that can be read \(it is nested too deeply\)"),
        ("{}", r"tokenizer\.json: its content has no field model"),
        (written() | {"model": []}, r"tokenizer\.json: its content: model is a list; it must be an object"),
        (changed(vocab=[]), r"model\.vocab is a list; it must be an object"),
        (changed(merges={}), r"model\.merges is an object; it must be a list"),
        (changed(type="Unigram"), r"its model is 'Unigram'; this program reads BPE with byte fallback"),
        (changed(byte_fallback=False), r"its model is 'BPE' without byte fallback; this program"),
        (changed(unk_token=None), r"unk_token is null, which is no piece"),
        (changed(unk_token=["<unk>"]), r"unk_token is a list, which is no piece"),
        (changed(dropout=0.1), r"model\.dropout is 0\.1; SentencePiece has no such thing"),
        (changed(ignore_merges=True), r"model\.ignore_merges is True"),
        (changed(merges=[["a"]]), r"model\.merges\[0\] is \['a'\]; it must be two texts"),
        (changed(merges=[[["a"], 3]]), r"model\.merges\[0\] is \[\['a'\], 3\]; it must be two texts"),
        (changed(merges=[]), r"no merge makes '.*' of '.*' and '.*'; SentencePiece does"),
        (shuffled(), r"the merges that make '.*' are not one behind the other"),
        (less_merges(), r"no merge makes"),
        (without("<0x0A>"), r"it has no piece <0x0A> \(and 0 more\)"),
        (without("e"), r"the ids of its 799 pieces are not 0 to 798"),
        (
            written() | {"normalizer": {"type": "NFC"}},
            r"its normalizer is \{'type': 'NFC'\}; this program reads Gemma's",
        ),
        (written() | {"pre_tokenizer": {"type": "Whitespace"}}, r"its pre_tokenizer is \{'type': 'Whitespace'\}"),
        (written() | {"decoder": None}, r"its decoder does not give back a sample"),
        (written() | {"version": "9.9"}, r"`tokenizers` does not read it: "),
        (written() | {"added_tokens": {}}, r"tokenizer\.json: added_tokens is an object; it must be a list"),
        (written() | {"added_tokens": [{"id": 1}]}, r"tokenizer\.json: added_tokens\[0\] has no field content"),
        (written() | {"added_tokens": [added("x", "1")]}, r"added_tokens\[0\]: id is '1'; it must be an integer"),
        (written() | {"added_tokens": [added("x", 10**12)]}, r"has id 10{12}; it must be from 0 to 524287"),
        (written() | {"added_tokens": [added("x", lstrip=True)]}, r"added_tokens\[0\] has lstrip, which SentencePiece"),
        (written() | {"added_tokens": [*written()["added_tokens"], added("<b>")]}, r"\(<b>\)|<b> is already defined"),
        (written() | {"added_tokens": [added("")]}, r"added_tokens\[0\] is empty"),
    ],
)
def test_a_tokenizer_json_that_cannot_be_read_rightly_is_refused(content, problem, tmp_path):
    path = make(tmp_path / "in", model=False, tokenizer=content)
    with pytest.raises(ValueError, match=problem):
        directory.load(path)


def test_without_the_library_its_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    path = make(tmp_path / "in", model=False, tokenizer=written())
    with pytest.raises(
        ValueError, match=r"which is not installed; pip install 'gemma3_jax\[hf\]', or put tokenizer\.mo"
    ):
        directory.load(path)
    assert directory.load(make(path)).digest == texts.tokenizer().digest


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"tokenizer": changed(vocab={"a": 5})}, r"has 'a' for id 5, tokenizer\.model beside it .*; they are of two"),
        ({"tokenizer": changed(vocab={"a": 5.0})}, r"model\.vocab has ids that are no integers"),
        ({"added_tokens": []}, r"added_tokens\.json is a list"),
        ({"added_tokens": {"<new>": "800"}}, r"added_tokens\.json: '<new>': id is '800'; it must be an integer"),
        ({"added_tokens": {"<new>": True}}, r"added_tokens\.json: '<new>': id is true; it must be an integer"),
        ({"added_tokens": {"<b>": SIZE}}, r"in: its added tokens do not fit tokenizer\.model: "),
        ({"tokenizer_config": "{"}, r"tokenizer_config\.json is not JSON"),
        ({"tokenizer_config": {"added_tokens_decoder": []}}, r"added_tokens_decoder is a list; it must be an object"),
        ({"tokenizer_config": {"added_tokens_decoder": {"x": added("x")}}}, r"added_tokens_decoder\.'x' must be an id"),
        (
            {"tokenizer_config": {"bos_token": 3}, "model": False, "tokenizer": written()},
            r"bos_token is 3; it must be te",
        ),
    ],
)
def test_files_beside_that_are_damaged_or_of_another_tokenizer_are_named(files, problem, tmp_path):
    with pytest.raises(ValueError, match=problem):
        directory.load(make(tmp_path / "in", **files))


def test_without_any_file_it_says_what_a_tokenizer_is(tmp_path):
    what = r"a tokenizer is a SentencePiece model file, a tokenizer\.json, or a directory with one"
    for path, problem in (
        (tmp_path, "tokenizer.model does not"),
        (tmp_path / "tokenizer.json", "json does not exist; " + what),
        (tmp_path / "my.model", "my.model does not exist; " + what),
    ):
        with pytest.raises(ValueError, match=problem):
            directory.load(path)
    assert vocabulary.is_control_name("<|im_start|>") and not vocabulary.is_control_name("<b>")
