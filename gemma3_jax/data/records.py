"""A piece of raw text on its way through the filters, and what a filter says of it."""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping


@dataclasses.dataclass(frozen=True, order=True)
class Place:
    """Where a record stands in the sources: the order of all records, and the name of one."""

    source: int  # number of the source in the config
    file: int  # number of the file in the source
    position: int  # bytes into a file of lines; else the record's number


@dataclasses.dataclass(frozen=True)
class Record:
    """Text from a source: one text, or the texts of a chat's turns with their roles."""

    place: Place
    bucket: str
    language: str
    texts: tuple[str, ...]
    roles: tuple[str, ...] = ()  # of a chat; empty for plain text
    fields: Mapping = dataclasses.field(default_factory=dict, compare=False)  # the whole row, for quality scores

    @property
    def text(self) -> str:
        return self.texts[0] if len(self.texts) == 1 else "\n".join(self.texts)

    def with_texts(self, change: Callable[[str], str]) -> "Record":
        return dataclasses.replace(self, texts=tuple(map(change, self.texts)))


@dataclasses.dataclass(frozen=True)
class Dropped:
    """Why a record goes no further."""

    reason: str  # one word or two: what is counted
    detail: str  # what a person wants to know of this one


Filter = Callable[[Record], Record | Dropped]  # pure: a record changed, the same, or the reason it is dropped


def digest(text: str) -> bytes:
    """16 bytes that two texts share if and only if they are the same."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def uniform(seed: int, purpose: str, text: str) -> float:
    """In [0, 1), a pure function of its arguments; `purpose` keeps the draws of different uses apart."""
    key = f"{seed}/{purpose}/".encode()
    return int.from_bytes(hashlib.blake2b(key + text.encode(), digest_size=7).digest()) / 2.0**56
