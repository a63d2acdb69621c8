"""Generation constrained to a JSON Schema or a regular expression, by llguidance: a mask over the ids at every step.

An id is allowed if its bytes continue some text of the grammar, however that text would be tokenized.
"""

import json
import re
from collections.abc import Callable, Mapping

import llguidance
import numpy as np

from gemma3_jax.inference import constraint
from gemma3_jax.inference.tools import json_schema
from gemma3_jax.tokenizer import pieces, vocabulary

# Between the parts of a document: enough for a line break and its indent, and bounded.
_WHITESPACE = r"[ \t\r\n]{1,32}"
# Without no_forcing, text that is determined must be tokenized as the tokenizer would.
_HEAD = '%llguidance {"no_forcing": true}\nstart: '


def token_bytes(tokenizer: vocabulary.Tokenizer) -> list[bytes]:
    """The bytes of each id within a text: a space for U+2581, one byte for a byte piece, and b"" for control tokens.

    A tokenizer that adds a space before a text removes it when it decodes the text's start.
    """
    counts, result = tokenizer.num_bytes(), []
    for token in range(tokenizer.size):
        piece = tokenizer.piece(token)
        if not counts[token] or token == tokenizer.end_of_image:
            result.append(b"")
        elif counts[token] == 1 and pieces.is_byte_name(piece):
            result.append(bytes([int(piece[3:5], 16)]))
        else:
            result.append(piece.replace(vocabulary.SPACE, " ").encode())
    return result


class Grammars:
    """Builds constraints for one tokenizer. Its own construction takes seconds at 262,144 ids, so do it once.

    `vocab_size`: the model's number of ids, at least the tokenizer's.
    Raises: ValueError if the tokenizer has more ids than that, or none that ends a text.
    """

    def __init__(self, tokenizer: vocabulary.Tokenizer, vocab_size: int):
        if vocab_size < tokenizer.size:
            raise ValueError(f"the tokenizer has {tokenizer.size} ids, but the model only {vocab_size}")
        self.ends = [token for token in (tokenizer.eos, tokenizer.end_of_turn) if token is not None]
        if not self.ends:
            raise ValueError("the tokenizer has no <eos> and no <end_of_turn>; constrained text ends with one")
        self.vocab_size = vocab_size
        self.token_bytes = token_bytes(tokenizer)
        self._tokenizer = llguidance.LLTokenizer(
            _LlguidanceVocabulary(tokenizer, self.token_bytes), slices=llguidance.LLTokenizer.json_slices()
        )

    def schema(self, schema: Mapping | bool) -> Callable[[], constraint.Constraint]:
        """Returns a function that makes a constraint, one for each sequence, to JSON documents of a schema.

        Properties come in the schema's order, then those it does not list, whose names may repeat. `format` is enforced
        where llguidance knows it. At most 32 characters of whitespace come in a row; an object `x-guidance` in the
        schema goes to llguidance as it is, and may change that.
        Raises: ValueError if it is not a JSON Schema, or has what llguidance cannot enforce.
        Source: guidance-ai/llguidance docs/json_schema.md.
        """
        json_schema.check(schema)
        for part in json_schema.subschemas(schema):
            _check_other_names(part)
        if not isinstance(schema, bool):
            guidance = schema.get("x-guidance", {})
            if not isinstance(guidance, Mapping):
                raise ValueError(f"x-guidance in the schema is {guidance!r:.60}; it must be an object")
            schema = {**schema, "x-guidance": {"whitespace_pattern": _WHITESPACE, **guidance}}
        elif schema:
            schema = {"x-guidance": {"whitespace_pattern": _WHITESPACE}}
        return self._factory(f"{_HEAD}%json {json.dumps(schema)}", "the schema")

    def regex(self, pattern: str) -> Callable[[], constraint.Constraint]:
        r"""Returns a function that makes a constraint, one for each sequence, to full matches of a regular expression.

        The syntax is Rust's, without assertions and back references; `\d` is 0-9, and `.` is all but a line break.
        Raises: ValueError if it is not one.
        """
        if not pattern:
            raise ValueError("the regular expression is empty; it must match at least one text")
        return self._factory(
            f"{_HEAD}/{llguidance.regex_to_lark(pattern, 'd')}/", f"the regular expression {pattern!r}"
        )

    def _factory(self, grammar: str, what: str) -> Callable[[], constraint.Constraint]:
        matcher = llguidance.LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise ValueError(f"{what} cannot be enforced: {_reason(matcher.get_error())}")
        return lambda: _GrammarConstraint(self, matcher.deep_copy())


class _GrammarConstraint:
    """The progress of one sequence in a grammar."""

    def __init__(self, grammars: Grammars, matcher: llguidance.LLMatcher):
        self._grammars, self._matcher = grammars, matcher
        self._consumed: list[int] = []
        self._has_ended = False
        self._allowed: np.ndarray | None = None

    def allowed(self) -> np.ndarray:
        if self._allowed is None:
            is_complete, size = self._matcher.is_accepting(), len(self._grammars.token_bytes)
            allowed = np.zeros(self._grammars.vocab_size, bool)
            if not self._has_ended:
                bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
                allowed[:size] = np.unpackbits(bits, count=size, bitorder="little")
            allowed[self._grammars.ends] = is_complete
            allowed.flags.writeable = False
            if self._matcher.is_error():
                text = b"".join(self._grammars.token_bytes[token] for token in self._consumed).decode(errors="replace")
                reason = _reason(self._matcher.get_error())
                reason = "no id has the bytes that must come next" if reason.startswith("NoExtension") else reason
                raise ValueError(f"the constraint cannot continue after {text[-60:]!r}: {reason}")
            assert allowed.any()
            self._allowed = allowed
        return self._allowed

    def consume(self, token: int) -> None:
        assert self.allowed()[token], f"id {token} is not allowed after {self._consumed}"
        if token in self._grammars.ends:
            self._has_ended = True
        else:
            self._matcher.consume_token(token)
        self._consumed.append(token)
        self._allowed = None

    @property
    def is_done(self) -> bool:
        return bool(self.allowed().sum() == self.allowed()[self._grammars.ends].sum())


class _LlguidanceVocabulary:
    """A tokenizer in llguidance's interface, with one more id to end a text, so that none of the others is special."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: vocabulary.Tokenizer, tokens: list[bytes]):
        self.tokens = [*tokens, b"<end>"]
        self.eos_token_id = len(tokens)
        self.special_token_ids = [len(tokens)]
        self._encode = tokenizer.encode

    def __call__(self, text: str) -> list[int]:
        return self._encode(text)


def _check_other_names(schema: Mapping) -> None:
    """Checks that `patternProperties` allows a name besides those in `properties`, or that others are allowed.

    Where it does not, llguidance writes a comma and finds that no name can follow.
    Raises: ValueError.
    """
    members = [schema, *(inner for inner in schema.get("allOf", ()) if isinstance(inner, Mapping))]
    names = {name: {"const": 0} for member in members for name in member.get("properties", {})}
    patterns = {
        pattern: inner is not False and {"const": 0}
        for member in members
        if member.get("additionalProperties") is False
        for pattern, inner in member.get("patternProperties", {}).items()
    }
    if not (names and patterns):
        return
    # An object with all of the names and one comma more.
    compact = {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"}
    probe = {"type": "object", "properties": names, "required": list(names), "patternProperties": patterns}
    probe |= {"additionalProperties": False, "x-guidance": compact}
    matcher = llguidance.LLMatcher(llguidance.LLTokenizer("byte"), f"{_HEAD}%json {json.dumps(probe)}", log_level=0)
    if matcher.is_error():
        return  # the whole schema has the same problem, and is refused with it
    text = "{" + "".join(f"{json.dumps(name, ensure_ascii=False)}:0," for name in names)
    matcher.consume_tokens(list(text.encode()))
    if matcher.is_error() or (matcher.compute_bitmask() and matcher.is_error()):
        raise ValueError(
            f"the schema cannot be enforced: patternProperties {', '.join(map(repr, patterns))} allow no name that "
            "properties does not list, and additionalProperties is false; leave out those patternProperties"
        )


def _reason(message: str) -> str:
    """The problem, from a report of llguidance that has several lines."""
    if inner := re.search(r"^error: (.*)", message, re.MULTILINE):
        return inner[1]
    return re.sub(r"^(at \d+\(\d+\): |failed to compile JSON schema: |Parser Error: )*", "", message).partition("\n")[0]
