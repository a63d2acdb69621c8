"""Generation held to a JSON Schema or to a regular expression, by llguidance: at every step, a mask over the ids.

An id is allowed where the bytes it stands for go on with some text of the form, however that text is cut into ids.
"""

import json
import re
from collections.abc import Callable, Mapping

import llguidance
import numpy as np

from gemma3_jax.inference import constraint
from gemma3_jax.inference.tools import json_schema
from gemma3_jax.tokenizer import vocabulary

# Between the parts of a document: enough for a line break and its indent, not enough to go on for ever.
_WHITESPACE = r"[ \t\r\n]{1,32}"
# Without it, text that can only go one way has to be cut into ids as the tokenizer would.
_HEAD = '%llguidance {"no_forcing": true}\nstart: '


def spelled(tokenizer: vocabulary.Tokenizer) -> list[bytes]:
    """The bytes that each id stands for within a text: a space for U+2581, one byte for a byte piece; controls b"".

    At the start of a text, a tokenizer that adds a space before it takes one away where it decodes.
    """
    counts, result = tokenizer.num_bytes(), []
    for token in range(tokenizer.size):
        piece = tokenizer.piece(token)
        if not counts[token] or token == tokenizer.end_of_image:
            result.append(b"")
        elif counts[token] == 1 and re.fullmatch("<0x[0-9A-F]{2}>", piece):
            result.append(bytes([int(piece[3:5], 16)]))
        else:
            result.append(piece.replace(vocabulary.SPACE, " ").encode())
    return result


class Grammars:
    """Makes constraints for one tokenizer; seconds to set up at 262,144 ids, so it is made once.

    `vocab_size`: the ids a model gives logits of; at least the tokenizer's.
    Raises: ValueError if the tokenizer has more ids than that, or none that ends a text.
    """

    def __init__(self, tokenizer: vocabulary.Tokenizer, vocab_size: int):
        if vocab_size < tokenizer.size:
            raise ValueError(f"the tokenizer has {tokenizer.size} ids, but the model only {vocab_size}")
        self.ends = [token for token in (tokenizer.eos, tokenizer.end_of_turn) if token is not None]
        if not self.ends:
            raise ValueError("the tokenizer has no <eos> and no <end_of_turn>; text held to a form ends with one")
        self.vocab_size = vocab_size
        self.spelled = spelled(tokenizer)
        self._tokenizer = llguidance.LLTokenizer(
            _Pieces(tokenizer, self.spelled), slices=llguidance.LLTokenizer.json_slices()
        )

    def schema(self, schema: Mapping | bool) -> Callable[[], constraint.Constraint]:
        """Makes constraints, one a row, to JSON documents of a schema.

        The properties come in the schema's order, then those it does not list; of these a name may come twice. `format`
        is held to where llguidance knows it. Whitespace is that of JSON, at most 32 characters in a row; an object
        `x-guidance` in the schema may change that, and goes to llguidance as it is.
        Raises: ValueError if it is not a JSON Schema, or asks for what cannot be held to.
        Source: guidance-ai/llguidance docs/json_schema.md.
        """
        json_schema.check(schema)
        if not isinstance(schema, bool):
            own = schema.get("x-guidance", {})
            if not isinstance(own, Mapping):
                raise ValueError(f"x-guidance in the schema is {own!r:.60}; it must be an object")
            schema = {**schema, "x-guidance": {"whitespace_pattern": _WHITESPACE, **own}}
        elif schema:
            schema = {"x-guidance": {"whitespace_pattern": _WHITESPACE}}
        return self._factory(f"{_HEAD}%json {json.dumps(schema)}", "the schema")

    def regex(self, pattern: str) -> Callable[[], constraint.Constraint]:
        r"""Makes constraints, one a row, to texts that match a regular expression from end to end.

        In Rust's syntax, without assertions and back references; `\d` is 0-9, and `.` all but a line break.
        Raises: ValueError if it is none.
        """
        if not pattern:
            raise ValueError("the regular expression is empty; it must match some text")
        return self._factory(
            f"{_HEAD}/{llguidance.regex_to_lark(pattern, 'd')}/", f"the regular expression {pattern!r}"
        )

    def _factory(self, grammar: str, what: str) -> Callable[[], constraint.Constraint]:
        matcher = llguidance.LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise ValueError(f"{what} cannot be held to: {_reason(matcher.get_error())}")
        return lambda: _Matching(self, matcher.deep_copy())


class _Matching:
    """One row's text against a grammar."""

    def __init__(self, grammars: Grammars, matcher: llguidance.LLMatcher):
        self._grammars, self._matcher = grammars, matcher
        self._taken: list[int] = []
        self._has_ended = False
        self._allowed: np.ndarray | None = None

    def allowed(self) -> np.ndarray:
        if self._allowed is None:
            is_complete, size = self._matcher.is_accepting(), len(self._grammars.spelled)
            allowed = np.zeros(self._grammars.vocab_size, bool)
            if not self._has_ended:
                bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
                allowed[:size] = np.unpackbits(bits, count=size, bitorder="little")
            allowed[self._grammars.ends] = is_complete
            allowed.flags.writeable = False
            if self._matcher.is_error():
                text = b"".join(self._grammars.spelled[token] for token in self._taken).decode(errors="replace")
                reason = _reason(self._matcher.get_error())
                reason = "no id spells what is due" if reason.startswith("NoExtension") else reason
                raise ValueError(f"the constraint cannot go on after {text[-60:]!r}: {reason}")
            assert allowed.any()
            self._allowed = allowed
        return self._allowed

    def take(self, token: int) -> None:
        assert self.allowed()[token], f"id {token} is not allowed after {self._taken}"
        if token in self._grammars.ends:
            self._has_ended = True
        else:
            self._matcher.consume_token(token)
        self._taken.append(token)
        self._allowed = None

    @property
    def is_done(self) -> bool:
        return bool(self.allowed().sum() == self.allowed()[self._grammars.ends].sum())


class _Pieces:
    """A tokenizer as llguidance asks for it; the id that ends a text is one more, so that none of ours is special."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: vocabulary.Tokenizer, pieces: list[bytes]):
        self.tokens = [*pieces, b"<end>"]
        self.eos_token_id = len(pieces)
        self.special_token_ids = [len(pieces)]
        self._encode = tokenizer.encode

    def __call__(self, text: str) -> list[int]:
        return self._encode(text)


def _reason(message: str) -> str:
    """What went wrong, out of a report of llguidance's in several lines."""
    if inner := re.search(r"^error: (.*)", message, re.MULTILINE):
        return inner[1]
    return re.sub(r"^(at \d+\(\d+\): |failed to compile JSON schema: |Parser Error: )*", "", message).partition("\n")[0]
