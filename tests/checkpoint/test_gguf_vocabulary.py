"""A tokenizer in a GGUF file: pieces typed so that llama.cpp encodes as we do (shown in interop/test_llama_cpp.py)."""

import io

import gguf
import pytest
import sentencepiece

from gemma3_jax.checkpoint import gguf_vocabulary
from gemma3_jax.tokenizer import templates, vocabulary
from tests import texts

SIZE = texts.TOKENIZER_SIZE
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    """What the package gguf reads of a vocabulary with 5 rows to spare."""
    path = tmp_path_factory.mktemp("gguf") / "vocabulary.gguf"
    writer = gguf.GGUFWriter(path, "gemma3")
    gguf_vocabulary.write(texts.tokenizer(), SIZE + 5, writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = gguf.GGUFReader(path).fields
    return {key.removeprefix("tokenizer."): found[key].contents() for key in found if key.startswith("tokenizer.")}


def test_pieces_are_typed_by_what_they_are(fields):
    tokens, types = fields["ggml.tokens"], fields["ggml.token_type"]
    assert len(tokens) == len(types) == len(fields["ggml.scores"]) == SIZE + 5
    assert types[:108] == [CONTROL] * 3 + [UNKNOWN] + [CONTROL] * 103 + [USER_DEFINED]
    assert tokens[105:108] == ["<start_of_turn>", "<end_of_turn>", "\n"]
    assert types[107:238] == [USER_DEFINED] * 131 and tokens[138] == "  " and tokens[168] == "<table>"
    assert types[238:494] == [BYTE] * 256 and tokens[238 + 65] == "<0x41>"
    assert types[494 : SIZE - 33] == [NORMAL] * (SIZE - 33 - 494)
    assert types[SIZE - 33 :] == [USER_DEFINED] * 31 + [CONTROL] * 2 + [UNUSED] * 5
    assert tokens[SIZE - 2 :] == ["<start_of_image>", "<end_of_image>", *(f"[PAD{SIZE + n}]" for n in range(5))]
    assert len(set(tokens)) == len(tokens)


def test_normal_pieces_are_sentencepieces_own_with_their_scores(fields):
    processor = sentencepiece.SentencePieceProcessor(model_proto=texts.tokenizer_model())
    for token in range(494, SIZE - 33):
        assert fields["ggml.tokens"][token] == processor.id_to_piece(token)
        assert fields["ggml.scores"][token] == processor.get_score(token)


def test_ids_and_flags_are_gemmas(fields):
    lists = ("ggml.tokens", "ggml.scores", "ggml.token_type")
    assert {key: value for key, value in fields.items() if key not in lists} == {
        "ggml.model": "llama",
        "ggml.pre": "default",
        "ggml.bos_token_id": 2,
        "ggml.eos_token_id": 1,
        "ggml.eot_token_id": 106,
        "ggml.unknown_token_id": 3,
        "ggml.padding_token_id": 0,
        "ggml.add_bos_token": True,
        "ggml.add_eos_token": False,
        "ggml.add_space_prefix": False,
        "chat_template": templates.JINJA,
    }


def train(**options) -> vocabulary.Tokenizer:
    model = io.BytesIO()
    options = {
        "model_type": "bpe", "normalization_rule_name": "identity", "remove_extra_whitespaces": False,
        "byte_fallback": True, **options,
    }  # fmt: skip
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts.library()[:4]), model_writer=model, vocab_size=400, minloglevel=2,
        max_sentence_length=1 << 20, **options,
    )  # fmt: skip
    return vocabulary.Tokenizer(model.getvalue())


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"model_type": "unigram"}, "the tokenizer is no BPE model"),
        ({"normalization_rule_name": "nmt_nfkc"}, "the tokenizer normalizes text by a table of characters"),
        ({"remove_extra_whitespaces": True}, "the tokenizer removes extra spaces; an engine without"),
        ({"treat_whitespace_as_suffix": True}, "the tokenizer puts the space behind a word"),
        (
            {"byte_fallback": False},
            "the tokenizer has no pieces for bytes; an engine without SentencePiece would encode",
        ),
        ({"bos_id": -1}, "the tokenizer has no <bos> or no <eos>; llama.cpp starts"),
    ],
)
def test_a_tokenizer_that_llama_cpp_would_not_follow_is_refused(options, problem):
    with pytest.raises(ValueError, match=problem):
        gguf_vocabulary.check(train(**options), 400)


def test_a_tokenizer_without_turns_has_no_template_and_may_add_a_space(tmp_path):
    tokenizer, writer = train(), gguf.GGUFWriter(None, "gemma3")
    gguf_vocabulary.check(tokenizer, 400)
    gguf_vocabulary.write(tokenizer, 400, writer)
    (keys,) = writer.kv_data
    assert keys["tokenizer.ggml.add_space_prefix"].value is True
    assert not {"tokenizer.chat_template", "tokenizer.ggml.eot_token_id"} & set(keys)


# --- read back ---


def write(path, tokenizer, rows=SIZE + 5, changes=None):
    """A file of a vocabulary alone; `changes` are values of keys below tokenizer.ggml, None: without the key."""
    writer = gguf.GGUFWriter(path, "gemma3")
    gguf_vocabulary.write(tokenizer, rows, writer)
    (keys,) = writer.kv_data
    for key, value in (changes or {}).items():
        old = keys.pop(f"tokenizer.ggml.{key}")
        if callable(value):
            value = value(list(old.value))
        if value is not None:
            writer.add_key_value(f"tokenizer.ggml.{key}", value, gguf.GGUFValueType.get_type(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def at(changes: dict):
    """A function that changes a list at some indices."""
    return lambda values: [changes.get(index, value) for index, value in enumerate(values)]


PAGES = (
    *texts.library()[40:44],
    "",
    " ",
    "  a\n\n\nb\tc \u2581 \u6f22\U0001f600 <bos><pad><unused7>[multimodal]<end_of_image><table>",
    "<start_of_turn>user\nWho?<end_of_turn>\n<start_of_turn>model\n",
)


def assert_same(rebuilt, original):
    for name in ("size", "pad", "eos", "bos", "start_of_turn", "end_of_turn", "start_of_image", "end_of_image"):
        assert getattr(rebuilt, name) == getattr(original, name), name
    for page in PAGES:
        ids = original.encode(page)
        assert rebuilt.encode(page) == ids and rebuilt.decode(ids) == original.decode(ids)
        parsed = original.encode(page, parse_control=True)
        if "<end_of_image>" not in page:
            assert rebuilt.encode(page, parse_control=True) == parsed


def test_a_tokenizer_comes_back_as_one_that_encodes_alike(tmp_path):
    path = write(tmp_path / "a.gguf", texts.tokenizer())
    rebuilt = gguf_vocabulary.read(path, SIZE + 5)
    assert_same(rebuilt, texts.tokenizer())
    gguf_vocabulary.check(rebuilt, SIZE)
    assert write(tmp_path / "b.gguf", rebuilt).read_bytes() == path.read_bytes()


def test_a_space_before_the_text_comes_back(tmp_path):
    tokenizer = train()
    rebuilt = gguf_vocabulary.read(write(tmp_path / "a.gguf", tokenizer, 400), 400)
    assert rebuilt.encode("ab c") == tokenizer.encode("ab c") and rebuilt.bos == tokenizer.bos == 1
    assert rebuilt.decode(rebuilt.encode("ab c")) == "ab c"


@pytest.mark.parametrize(
    "changes",
    [
        {"eos_token_id": 106},  # as in files of instruct models
        {"token_type": at({105: NORMAL, 106: NORMAL, 3: CONTROL, 238: NORMAL})},  # as in files of a public release
        {"token_type": at({105: USER_DEFINED, 106: USER_DEFINED})},
        {"tokens": at({138: "\u2581\u2581", 139: "\u2581" * 3})},  # runs of spaces in SentencePiece's spelling
        {"add_space_prefix": None},  # as in Ollama's
        {"padding_token_id": None, "unknown_token_id": None},
    ],
)
def test_it_comes_back_from_what_other_writers_make_of_it(changes, tmp_path):
    assert_same(
        gguf_vocabulary.read(write(tmp_path / "a.gguf", texts.tokenizer(), SIZE, changes), SIZE), texts.tokenizer()
    )


def test_pieces_beyond_the_table_are_left_out(tmp_path):
    path = write(tmp_path / "a.gguf", texts.tokenizer())
    assert gguf_vocabulary.read(path, SIZE - 1).size == SIZE - 1


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"model": "gpt2"}, r"tokenizer\.ggml\.model is 'gpt2'; it must be llama"),
        ({"model": None}, r"tokenizer\.ggml\.model is None; it must be llama"),
        ({"tokens": None}, r"tokenizer\.ggml\.tokens is missing, or no list of STRING"),
        ({"tokens": 7}, r"tokenizer\.ggml\.tokens is missing, or no list of STRING"),
        ({"scores": [1] * SIZE}, r"tokenizer\.ggml\.scores is missing, or no list of FLOAT32"),
        ({"scores": [-1000.0] * SIZE}, r"tokenizer\.ggml\.scores are all alike, so the order of merges is not known"),
        ({"tokens": at({3: "x"}), "unknown_token_id": None}, "no piece is <unk>, and .*unknown_token_id names none"),
        ({"scores": [1.0]}, "it has 800 tokens, 1 scores and 800 types of tokens"),
        ({"token_type": at({600: 9})}, r"tokenizer\.ggml\.token_type has 9; it must be one of 1 to 6"),
        ({"tokens": at({600: "b", 601: "b"})}, "b is already defined"),
        ({"tokens": at({600: b"\xff\xfe"})}, "token 600 is not UTF-8"),
        ({"tokens": at({238: "", 239: ""})}, "a.gguf holds no tokenizer that this program reads"),
    ],
)
def test_a_file_without_such_a_tokenizer_says_why(changes, problem, tmp_path):
    path = write(tmp_path / "a.gguf", texts.tokenizer(), SIZE, changes)
    with pytest.raises(ValueError, match=problem) as caught:
        gguf_vocabulary.read(path, SIZE)
    assert "\n" not in str(caught.value)
