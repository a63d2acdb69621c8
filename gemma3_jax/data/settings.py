"""What `prepare` can be told: every field with its default, its unit, and why.

A config file (`experiments/demo_data.py` is one) sets what differs; `--config.a.b=value` overrides that.
"""

import dataclasses

from gemma3_jax.data.prepare import duplicates, personal_data


@dataclasses.dataclass(frozen=True)
class Source:
    """Where records come from, and what they are. Sources are in the order of their names: the first copy is kept."""

    kind: str = "jsonl"  # jsonl, text (a file is a document), parquet, tfds, python (the installed standard library)
    paths: tuple[str, ...] = ()  # globs, local or of any file system fsspec knows (gs://...); .gz and kin are unpacked
    fields: tuple[str, ...] = (
        "text",
    )  # of a jsonl, parquet or tfds row; several (parallel text) are joined by a newline
    turns_field: str = ""  # instead: the field with chat turns, a list of {role, content}
    dataset: str = ""  # tfds: name[/config][:version], prepared in the array_record format
    split: str = "train"  # tfds
    data_dir: str = ""  # tfds: where it was prepared (its own default if empty)
    bucket: str = "text"  # what the mixture weighs
    language: str = "en"  # what UniMax balances inside of a bucket
    language_field: str = ""  # instead: the field that names it
    fraction: float = 1.0  # of the records taken, chosen by a hash of their place
    max_broken: int = 100  # records that cannot be read are skipped and counted, up to so many


@dataclasses.dataclass(frozen=True)
class Length:
    min_characters: int = 1
    max_characters: int = 0  # 0: no limit


@dataclasses.dataclass(frozen=True)
class Safety:
    word_list: str = ""  # file with a word or phrase a line; empty: no filter
    max_hits: int = 0  # a document with more of them is dropped


@dataclasses.dataclass(frozen=True)
class Quality:
    score: str = ""  # "heuristic", "field:NAME", or "module:function" of a record; in [0, 1]; empty: no filter
    power: float = 1.0  # a record is kept with probability clip(score ** power, floor, 1)
    floor: float = 0.0


@dataclasses.dataclass(frozen=True)
class PersonalData:
    action: str = "mask"  # mask, drop, or empty: no filter
    kinds: tuple[str, ...] = personal_data.KINDS
    phone_region: str = "US"  # whose numbers are recognised without their country code; two letters


@dataclasses.dataclass(frozen=True)
class Decontamination:
    paths: tuple[str, ...] = ()  # evaluation sets, .jsonl or text; empty: no filter
    fields: tuple[str, ...] = ()  # of a jsonl row (empty: every string in it)
    action: str = "drop"  # or excise: what overlaps is cut out, with margin_characters on both sides
    margin_characters: int = 200


@dataclasses.dataclass(frozen=True)
class Duplicates:
    exact: bool = True
    near: bool = True  # and exact ones; MinHash over 5-grams of words; 2 KB of memory a document without a runner
    min_similarity: float = 0.8  # Jaccard, of near-duplicates; 0.7 at least


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    path: str = ""  # a SentencePiece model; empty: train one of `size` pieces on the filtered sources
    size: int = 2_048
    max_characters: int = 50_000_000  # to train on; all are held in memory


@dataclasses.dataclass(frozen=True)
class Bucket:
    """A named share of the mixture; inside of it, UniMax over its languages."""

    weight: float = 1.0
    languages: tuple[str, ...] = ()  # empty: all it has
    max_epochs: float = 1.0  # no language is seen more often than this in the budget
    budget_characters: int = 0  # 0: max_epochs x all there are, which leaves the languages' sizes as they are


@dataclasses.dataclass(frozen=True)
class Prepare:
    """The whole of it."""

    sources: dict[str, Source] = dataclasses.field(default_factory=dict)
    length: Length = Length()
    safety: Safety = Safety()
    quality: Quality = Quality()
    personal_data: PersonalData = PersonalData()
    decontamination: Decontamination = Decontamination()
    duplicates: Duplicates = Duplicates()
    tokenizer: Tokenizer = Tokenizer()
    mixture: dict[str, Bucket] = dataclasses.field(default_factory=dict)  # empty: every bucket by its tokens
    seq_lens: tuple[int, ...] = (2_048,)  # tokens; one set of packed rows each
    documents: bool = False  # write the tokenised documents, unpacked, too
    tokens_per_shard: int = 64_000_000
    examples_per_reason: int = 3  # in the report of what was dropped
    seed: int = 0  # of quality sampling, of document order, of MinHash


def check(settings: Prepare) -> None:
    """Refuses what can be seen to be wrong before anything is read.

    Raises: ValueError that names the field.
    """
    if not settings.sources:
        raise ValueError("config.sources is empty; name at least one source of text")
    for name, source in settings.sources.items():
        _check_source(f"config.sources.{name}", source)
    _choice("config.personal_data.action", settings.personal_data.action, ("", "mask", "drop"))
    for kind in settings.personal_data.kinds:
        _choice("config.personal_data.kinds", kind, personal_data.KINDS)
    _choice("config.decontamination.action", settings.decontamination.action, ("drop", "excise"))
    if not duplicates.LEAST_SIMILARITY <= settings.duplicates.min_similarity <= 1:
        raise ValueError(
            f"config.duplicates.min_similarity is {settings.duplicates.min_similarity}; it must be from "
            f"{duplicates.LEAST_SIMILARITY} to 1"
        )
    if not settings.quality.power > 0 or not 0 <= settings.quality.floor <= 1:
        raise ValueError(
            f"config.quality has power {settings.quality.power} and floor {settings.quality.floor}; the first must be "
            "over 0, the second from 0 to 1"
        )
    for name in ("tokens_per_shard", "examples_per_reason"):
        if getattr(settings, name) < 1:
            raise ValueError(f"config.{name} is {getattr(settings, name)}; it must be >= 1")
    if not 0 <= settings.seed < 1 << 32:
        raise ValueError(f"config.seed is {settings.seed}; it must be from 0 to 2**32 - 1")
    if settings.safety.max_hits < 0:
        raise ValueError(f"config.safety.max_hits is {settings.safety.max_hits}; it must be >= 0")
    if not settings.seq_lens and not settings.documents:
        raise ValueError("config.seq_lens is empty and config.documents is false; nothing would be written")
    if short := [length for length in settings.seq_lens if length < 2]:
        raise ValueError(f"config.seq_lens holds {short[0]}; a row has at least 2 tokens")
    if len(set(settings.seq_lens)) < len(settings.seq_lens):
        raise ValueError(f"config.seq_lens is {settings.seq_lens}; name every length once")
    known = {source.bucket for source in settings.sources.values()}
    for name, bucket in settings.mixture.items():
        if name not in known:
            raise ValueError(f"config.mixture names bucket {name}; the sources have: {', '.join(sorted(known))}")
        if bucket.weight <= 0 or bucket.max_epochs <= 0 or bucket.budget_characters < 0:
            raise ValueError(
                f"config.mixture.{name} has weight {bucket.weight}, max_epochs {bucket.max_epochs}, budget_characters "
                f"{bucket.budget_characters}; the first two must be over 0, the last at least 0"
            )


def _check_source(field: str, source: Source) -> None:
    _choice(f"{field}.kind", source.kind, ("jsonl", "text", "parquet", "tfds", "python"))
    if source.kind == "tfds" and not source.dataset:
        raise ValueError(f"{field}.dataset is empty; it names the TensorFlow dataset to read")
    if source.kind in ("jsonl", "text", "parquet") and not source.paths:
        raise ValueError(f"{field}.paths is empty; it lists the files of this source")
    if not source.fields:
        raise ValueError(f"{field}.fields is empty; it names the fields with the text")
    if source.max_broken < 0:
        raise ValueError(f"{field}.max_broken is {source.max_broken}; it must be >= 0")
    if not 0 < source.fraction <= 1:
        raise ValueError(f"{field}.fraction is {source.fraction}; it must be over 0 and at most 1")
    check_name(f"{field}.bucket", source.bucket)
    check_name(f"{field}.language", source.language)


def check_name(field: str, name: str) -> None:
    """Refuses a bucket or language that could not be a directory's name.

    Raises: ValueError.
    """
    if not name or not name.replace("-", "").replace("_", "").isalnum():
        raise ValueError(f"{field} is {name!r}; use letters, digits, '-' and '_'")


def _choice(field: str, got: str, allowed: tuple[str, ...]) -> None:
    if got not in allowed:
        raise ValueError(f"{field} is {got!r}; it must be one of {', '.join(map(repr, allowed))}")
