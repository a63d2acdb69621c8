"""Constrained text: whatever is chosen among the allowed ids, the result matches the grammar."""

import json
import re

import numpy as np
import pytest
import sentencepiece

from gemma3_jax.inference.tools import constrained, json_schema
from gemma3_jax.tokenizer import vocabulary
from tests import texts

VOCAB_SIZE = texts.TOKENIZER_SIZE + 56  # a model has more rows than its tokenizer has ids
SCHEMAS = {
    "enum": {
        "type": "object",
        "properties": {"city": {"enum": ["Zürich", "東京", 'a"b\\c']}, "ok": {"type": "boolean"}},
        "required": ["city", "ok"],
        "additionalProperties": False,
    },
    "bounds": {"type": "integer", "minimum": -7, "maximum": 4000},
    "text": {"type": "string", "minLength": 1, "maxLength": 9},
    "nested": {
        "type": "array",
        "minItems": 1,
        "maxItems": 3,
        "items": {"type": "array", "maxItems": 2, "items": {"type": ["boolean", "null"]}},
    },
    "reference": {
        "$defs": {"node": {"type": "object", "properties": {"é": {"const": 1.5}, "▁": {"$ref": "#/$defs/leaf"}}}},
        "anyOf": [{"$ref": "#/$defs/leaf"}, {"type": "array", "items": {"$ref": "#/$defs/leaf"}, "maxItems": 2}],
    },
    "pattern": {"type": "string", "pattern": "^[a-c]{2,5}-[0-9]+$", "maxLength": 12},
}
SCHEMAS["reference"]["$defs"]["leaf"] = {"type": "string", "enum": ["<b>", "  x", "▁"]}


def closed(names, *patterns) -> dict:
    """The schema of an object that has these names and others that match, and nothing else."""
    return {
        "type": "object",
        "properties": {name: {"type": "boolean"} for name in names},
        "patternProperties": {pattern: {"type": "boolean"} for pattern in patterns},
        "additionalProperties": False,
    }


@pytest.fixture(scope="module")
def grammars():
    return constrained.Grammars(texts.tokenizer(), VOCAB_SIZE)


def generate(grammars, make, seed: int, max_ids: int = 400) -> list[int]:
    """Ids chosen at random, text rather than an end until nothing but an end is left; without the end."""
    random, constraint, ids = np.random.default_rng(seed), make(), []
    while not constraint.is_done and len(ids) < max_ids:
        allowed = np.flatnonzero(constraint.allowed())
        token = int(random.choice(allowed))
        if token in grammars.ends:
            break
        constraint.consume(token)
        ids.append(token)
    return ids


@pytest.mark.parametrize("name", SCHEMAS)
def test_whatever_is_chosen_is_a_document_of_the_schema(grammars, name):
    make, tokenizer = grammars.schema(SCHEMAS[name]), texts.tokenizer()
    documents = [tokenizer.decode(generate(grammars, make, seed)) for seed in range(20)]
    for document in documents:
        assert json_schema.violation(SCHEMAS[name], json.loads(document)) is None, document
    assert len(set(documents)) > 5  # and not always the same one


def test_whatever_is_chosen_is_an_object_where_any_will_do(grammars):
    make, num_whole = grammars.schema({"type": "object"}), 0
    for seed in range(20):
        ids = generate(grammars, make, seed)
        if len(ids) < 400:
            assert isinstance(json.loads(texts.tokenizer().decode(ids)), dict)
            num_whole += 1
    assert num_whole > 5


def test_whatever_is_chosen_matches_the_regular_expression(grammars):
    pattern = r"(yes|no), é{1,3}\d{2}/\"?"
    for seed in range(20):
        text = texts.tokenizer().decode(generate(grammars, grammars.regex(pattern), seed))
        assert re.fullmatch(pattern, text), text


WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1, "maximum": 12}},
    "required": ["city"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("city", ["Paris", "São Paulo  ▁ 東京 😀", '<table>\\n"<end_of_turn>"', ""])
def test_a_document_cut_as_the_tokenizer_cuts_it_is_allowed_id_by_id(grammars, city, indent):
    constraint, document = (
        grammars.schema(WEATHER)(),
        json.dumps({"city": city, "days": 10}, ensure_ascii=False, indent=indent),
    )
    for token in texts.tokenizer().encode(document):
        assert not constraint.is_done and not constraint.allowed()[grammars.ends].any()
        constraint.consume(token)
    assert constraint.is_done


@pytest.mark.parametrize(
    ("document", "good"),
    [
        ('{"city": 3}', '{"city": '),
        ('{"city": "a", "days": 13}', '{"city": "a", "days": 1'),
        ('{"days": 1}', '{"'),
        ('{"city": "a", "sun": true}', '{"city": "a", "'),
        ('{"city": "a\nb"}', '{"city": "a'),
        ('[{"city": "a"}]', ""),
    ],
)
def test_a_document_of_another_form_is_refused_at_its_first_wrong_byte(grammars, document, good):
    constraint, ids = grammars.schema(WEATHER)(), byte_ids(document)
    taken = b""
    for token in ids:
        if not constraint.allowed()[token]:
            break
        constraint.consume(token)
        taken += grammars.token_bytes[token]
    assert taken.decode() == good


def byte_ids(text: str) -> list[int]:
    """The text in byte pieces alone."""
    first = next(token for token in range(texts.TOKENIZER_SIZE) if texts.tokenizer().piece(token) == "<0x00>")
    return [first + byte for byte in text.encode()]


def test_a_mask_has_all_ids_of_the_model_and_no_control_token(grammars):
    tokenizer = texts.tokenizer()
    controls = [
        token for token, spelling in enumerate(grammars.token_bytes) if not spelling and token not in grammars.ends
    ]
    assert {tokenizer.bos, tokenizer.pad, tokenizer.start_of_turn, tokenizer.start_of_image} <= set(controls)
    assert tokenizer.end_of_image in controls and 3 in controls  # 3 is <unk>
    for make in (grammars.schema({"type": "string"}), grammars.regex(r"(.|\n)*")):
        constraint = make()
        for token in byte_ids('"<bos>'):
            mask = constraint.allowed()
            assert mask.shape == (VOCAB_SIZE,) and mask.dtype == bool
            assert not mask[controls].any() and not mask[texts.TOKENIZER_SIZE :].any()
            constraint.consume(token)
        assert constraint.allowed().sum() > 400


def test_ends_are_allowed_exactly_where_the_text_is_complete(grammars):
    constraint, tokenizer = grammars.schema({"type": "integer", "maximum": 30, "minimum": 3})(), texts.tokenizer()
    assert grammars.ends == [tokenizer.eos, tokenizer.end_of_turn]
    assert not constraint.allowed()[grammars.ends].any()
    constraint.consume(*tokenizer.encode("3"))
    assert constraint.allowed()[grammars.ends].all() and not constraint.is_done  # 30 may be meant
    other = grammars.schema({"type": "integer", "maximum": 30, "minimum": 3})()
    other.consume(*tokenizer.encode("3"))
    other.consume(tokenizer.eos)
    assert other.is_done and list(np.flatnonzero(other.allowed())) == grammars.ends
    constraint.consume(*tokenizer.encode("0"))
    assert constraint.allowed()[grammars.ends].all() and constraint.is_done
    constraint.consume(tokenizer.end_of_turn)
    assert constraint.is_done and list(np.flatnonzero(constraint.allowed())) == grammars.ends


def test_half_a_character_is_not_complete(grammars):
    constraint = grammars.regex(".{0,2}")()
    completes = []
    for token in byte_ids("é"):
        completes.append(constraint.allowed()[grammars.ends].all())
        constraint.consume(token)
    assert [*completes, constraint.allowed()[grammars.ends].all()] == [True, False, True]


def test_rows_go_their_own_ways(grammars):
    make = grammars.regex("ab|cd")
    first, second = make(), make()
    first.consume(byte_ids("a")[0])
    second.consume(byte_ids("c")[0])
    assert first.allowed()[byte_ids("b")[0]] and not first.allowed()[byte_ids("d")[0]]
    assert second.allowed()[byte_ids("d")[0]] and not second.allowed()[byte_ids("b")[0]]


def test_an_id_that_is_not_allowed_is_not_taken(grammars):
    with pytest.raises(AssertionError, match="is not allowed after"):
        grammars.regex("ab")().consume(byte_ids("b")[0])


def test_ids_spell_the_bytes_that_are_counted_and_decoded(grammars):
    tokenizer, counts = texts.tokenizer(), texts.tokenizer().num_bytes()
    for token, spelling in enumerate(grammars.token_bytes):
        assert len(spelling) == counts[token] or token == tokenizer.end_of_image
        if spelling and (len(spelling) > 1 or spelling < b"\x80"):
            assert tokenizer.decode([token]) == spelling.decode()
    for text in ("a  b\t\tc", "naïve ▁ 東京\n\n<table>"):
        assert b"".join(grammars.token_bytes[token] for token in tokenizer.encode(text)).decode() == text


def test_the_end_of_an_image_is_no_text_whatever_its_piece():
    tokenizer = vocabulary.Tokenizer(texts.tokenizer_model())
    (token,) = tokenizer.encode("a")
    assert constrained.token_bytes(tokenizer)[token] == b"a"
    tokenizer.end_of_image = token
    assert constrained.token_bytes(tokenizer)[token] == b""


def test_a_tokenizer_that_adds_a_space_before_text_gives_documents_too():
    # Two protocol buffers in a row are their merger: normalizer_spec (3) with add_dummy_prefix (3) true.
    tokenizer = vocabulary.Tokenizer(texts.tokenizer_model() + b"\x1a\x02\x18\x01")
    assert tokenizer.decode(tokenizer.encode("a")) == "a" and tokenizer.encode("{")[0] != byte_ids("{")[0]
    grammars = constrained.Grammars(tokenizer, VOCAB_SIZE)
    for seed in range(5):
        document = tokenizer.decode(generate(grammars, grammars.schema(SCHEMAS["enum"]), seed))
        assert document[0] == "{" and json_schema.violation(SCHEMAS["enum"], json.loads(document)) is None


def test_text_that_no_id_spells_is_an_error_where_it_is_due(tmp_path):
    trainer = sentencepiece.SentencePieceTrainer
    trainer.train(
        sentence_iterator=iter(["abc"] * 9), model_prefix=str(tmp_path / "m"), model_type="char", vocab_size=7
    )
    constraint = constrained.Grammars(vocabulary.load(tmp_path / "m.model"), 7).regex("aé")()
    constraint.consume(int(np.flatnonzero(constraint.allowed())[0]))
    for _ in range(2):
        with pytest.raises(
            ValueError, match="the constraint cannot continue after 'a': no id has the bytes that must come next"
        ):
            constraint.allowed()


@pytest.mark.parametrize(
    ("names", "patterns"),
    [(["ab"], ["^a.?$"]), (["a"], ["^[ab]$"]), (["a"], ["^a$", "^b$"]), ([], ["^a$"]), (["a"], [])],
)
def test_names_of_a_pattern_that_are_not_listed_never_run_out(grammars, names, patterns):
    make = grammars.schema(closed(names, *patterns))
    for seed in range(20):
        generate(grammars, make, seed, max_ids=60)


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ({"type": "strin"}, "the schema is not a JSON Schema: type: 'strin' is not valid"),
        (
            {"type": "object", "propertys": {}},
            "the schema has a keyword 'propertys', which JSON Schema does not have; ",
        ),
        ({"not": {"type": "string"}}, r"the schema cannot be enforced: Unimplemented keys: \[\"not\"\]"),
        ({"type": "integer", "minimum": 2, "maximum": 1}, r"cannot be enforced: .*minimum \(2\) is greater"),
        (False, "cannot be enforced: Unsatisfiable schema"),
        (closed(["ab"], "^ab$"), r"patternProperties '\^ab\$' allow no name that properties does not list, and"),
        (closed(["a", "b"], "^[ab]$"), "allow no name that properties does not list"),
        (
            closed(["a", "b"], "^a$", "^b$"),
            r"patternProperties '\^a\$', '\^b\$' allow no name that properties does not",
        ),
        ({"items": {"anyOf": [closed(['"'], '^"$')]}}, "allow no name that properties does not list"),
        (
            {
                "allOf": [
                    {"properties": {"a": True}},
                    {"patternProperties": {"^a$": True}, "additionalProperties": False},
                ]
            },
            "allow no name that properties does not list",
        ),
        ({"x-guidance": 3}, "x-guidance in the schema is 3; it must be an object"),
    ],
)
def test_schemas_that_cannot_be_held_to_are_refused(grammars, schema, problem):
    with pytest.raises(ValueError, match=problem):
        grammars.schema(schema)


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        ("a(b", r"the regular expression 'a\(b' cannot be enforced: unclosed group"),
        ("(?<=a)b", "look-behind, is not supported"),
        ("", "the regular expression is empty"),
    ],
)
def test_regular_expressions_that_are_none_are_refused(grammars, pattern, problem):
    with pytest.raises(ValueError, match=problem):
        grammars.regex(pattern)


def test_a_model_with_fewer_ids_than_its_tokenizer_is_refused():
    with pytest.raises(ValueError, match="the tokenizer has 800 ids, but the model only 799"):
        constrained.Grammars(texts.tokenizer(), 799)


def test_a_tokenizer_that_cannot_end_a_text_is_refused():
    tokenizer = vocabulary.Tokenizer(texts.tokenizer_model())
    tokenizer.eos = tokenizer.end_of_turn = None
    with pytest.raises(ValueError, match="the tokenizer has no <eos> and no <end_of_turn>"):
        constrained.Grammars(tokenizer, VOCAB_SIZE)
