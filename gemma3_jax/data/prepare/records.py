"""A record, which is a piece of raw text on its way through the filters, and what a filter returns."""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping

from gemma3_jax.data import record_ids


@dataclasses.dataclass(frozen=True)
class Record:
    """Text from a source: one text, or the texts of the turns of a chat with their roles."""

    record_id: record_ids.RecordId
    bucket: str
    language: str
    texts: tuple[str, ...]
    roles: tuple[str, ...] = ()  # of a chat; empty for plain text
    fields: Mapping = dataclasses.field(default_factory=dict, compare=False)  # of the source row, for quality scores

    @property
    def text(self) -> str:
        return self.texts[0] if len(self.texts) == 1 else "\n".join(self.texts)

    def with_texts(self, change: Callable[[str], str]) -> "Record":
        return dataclasses.replace(self, texts=tuple(map(change, self.texts)))


@dataclasses.dataclass(frozen=True)
class Dropped:
    """The reason why a filter drops a record."""

    reason: str  # one or two words: what is counted
    detail: str  # of this record, for people


Filter = Callable[[Record], Record | Dropped]  # pure: the record, changed or not, or why it is dropped


def digest(text: str) -> bytes:
    """Returns 16 bytes that two texts share if and only if they are equal."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def uniform(seed: int, purpose: str, text: str) -> float:
    """Returns a number in [0, 1), a pure function of its arguments; `purpose` keeps different uses independent."""
    key = f"{seed}/{purpose}/".encode()
    return int.from_bytes(hashlib.blake2b(key + text.encode(), digest_size=7).digest()) / 2.0**56
