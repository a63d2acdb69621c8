"""The config of `prepare`: every field with its default and its unit.

A config file (such as `experiments/demo_data.py`) sets the fields that differ; `--config.a.b=value` overrides it.
"""

import dataclasses

from gemma3_jax.data import settings as data_settings
from gemma3_jax.data.prepare import duplicates, personal_data

MAX_NAME_BYTES = 100  # of a bucket or a language: file systems allow 255 for "BUCKET.LANGUAGE-00000.json"


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """A source of records. Sources are ordered by name: of duplicates the first one stays."""

    # jsonl, json (an array of rows), text (a file is a document), parquet, tfds, python (its standard library)
    kind: str = "jsonl"
    paths: tuple[
        str, ...
    ] = ()  # globs, local or of any file system fsspec knows (gs://...); .gz and the like are decompressed
    # Of a jsonl, json, parquet or tfds row; several (parallel text) are joined by a newline.
    fields: tuple[str, ...] = ("text",)
    turns_field: str = ""  # instead: the field with chat turns, a list of {role, content}; other keys are refused
    dataset: str = ""  # tfds: name[/config][:version], prepared in the array_record format
    split: str = "train"  # tfds
    data_dir: str = ""  # tfds: where it was prepared; empty: the default of tfds
    bucket: str = "text"  # what the mixture weighs
    language: str = "en"  # what UniMax balances inside a bucket
    language_field: str = ""  # instead: the field that names the language
    fraction: float = 1.0  # of the records that are read, chosen by a hash of their record id
    max_broken: int = 100  # records that cannot be read, and are skipped; more of them are an error


@dataclasses.dataclass(frozen=True)
class LengthConfig:
    min_characters: int = 1  # shorter documents are dropped
    max_characters: int = 0  # 0: no limit


@dataclasses.dataclass(frozen=True)
class SafetyConfig:
    word_list: str = ""  # file with a word or phrase per line; empty: no filter
    max_hits: int = 0  # a document with more of them is dropped


@dataclasses.dataclass(frozen=True)
class QualityConfig:
    score: str = ""  # "heuristic", "field:NAME", or "module:function" of a record; in [0, 1]; empty: no filter
    power: float = 1.0  # a record stays with probability clip(score ** power, floor, 1)
    floor: float = 0.0  # least probability that a record stays


@dataclasses.dataclass(frozen=True)
class PersonalDataConfig:
    action: str = "mask"  # mask, drop, or empty: no filter
    kinds: tuple[str, ...] = personal_data.KINDS  # what to look for
    phone_region: str = "US"  # two letters; numbers of this country are recognized without its code


@dataclasses.dataclass(frozen=True)
class DecontaminationConfig:
    paths: tuple[str, ...] = ()  # evaluation sets, .jsonl or text; empty: no filter
    fields: tuple[str, ...] = ()  # of a jsonl row (empty: every string in it)
    action: str = "drop"  # or excise: cut out the overlap, with margin_characters on both sides
    margin_characters: int = 200  # that excise cuts out as well, on each side


@dataclasses.dataclass(frozen=True)
class DuplicatesConfig:
    exact: bool = True  # equal texts, but for white space and case
    near: bool = True  # also exact ones; MinHash over 5-grams of words; without a runner 2 KB of memory per document
    min_similarity: float = 0.8  # Jaccard, of near-duplicates; 0.7 at least


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    path: str = ""  # a model, tokenizer.json or directory; empty: one of `size` pieces is trained on filtered sources
    size: int = 2_048  # pieces of a tokenizer that is trained here
    max_characters: int = 50_000_000  # of training text; all of it is held in memory


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """The whole config of `prepare`."""

    sources: dict[str, SourceConfig] = dataclasses.field(default_factory=dict)
    length: LengthConfig = LengthConfig()
    safety: SafetyConfig = SafetyConfig()
    quality: QualityConfig = QualityConfig()
    personal_data: PersonalDataConfig = PersonalDataConfig()
    decontamination: DecontaminationConfig = DecontaminationConfig()
    duplicates: DuplicatesConfig = DuplicatesConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    mixture: dict[str, data_settings.Bucket] = dataclasses.field(
        default_factory=dict
    )  # empty: in proportion to their rows
    seq_lens: tuple[int, ...] = (2_048,)  # tokens; a set of packed rows for each
    documents: bool = False  # also write the tokenized documents, unpacked
    tokens_per_shard: int = 64_000_000  # about, in a file of the data set
    examples_per_reason: int = 3  # of dropped records, in the report
    seed: int = 0  # of quality sampling, document order and MinHash


def check(config: PrepareConfig) -> None:
    """Refuses a config that is wrong in itself, before anything is read.

    Raises: ValueError that names the field.
    """
    if not config.sources:
        raise ValueError("config.sources is empty; name at least one source of text")
    for name, source in config.sources.items():
        _check_source(f"config.sources.{name}", source)
    _choice("config.personal_data.action", config.personal_data.action, ("", "mask", "drop"))
    for kind in config.personal_data.kinds:
        _choice("config.personal_data.kinds", kind, personal_data.KINDS)
    _choice("config.decontamination.action", config.decontamination.action, ("drop", "excise"))
    if not duplicates.LEAST_SIMILARITY <= config.duplicates.min_similarity <= 1:
        raise ValueError(
            f"config.duplicates.min_similarity is {config.duplicates.min_similarity}; it must be from "
            f"{duplicates.LEAST_SIMILARITY} to 1"
        )
    if not config.quality.power > 0 or not 0 <= config.quality.floor <= 1:
        raise ValueError(
            f"config.quality has power {config.quality.power} and floor {config.quality.floor}; the first must be "
            "over 0, the second from 0 to 1"
        )
    for name in ("tokens_per_shard", "examples_per_reason"):
        if getattr(config, name) < 1:
            raise ValueError(f"config.{name} is {getattr(config, name)}; it must be >= 1")
    if not 0 <= config.seed < 1 << 32:
        raise ValueError(f"config.seed is {config.seed}; it must be from 0 to 2**32 - 1")
    if config.safety.max_hits < 0:
        raise ValueError(f"config.safety.max_hits is {config.safety.max_hits}; it must be >= 0")
    if not config.seq_lens and not config.documents:
        raise ValueError("config.seq_lens is empty and config.documents is false; nothing would be written")
    if short := [length for length in config.seq_lens if length < 2]:
        raise ValueError(f"config.seq_lens holds {short[0]}; a row has at least 2 tokens")
    if len(set(config.seq_lens)) < len(config.seq_lens):
        raise ValueError(f"config.seq_lens is {config.seq_lens}; name every length once")
    known = {source.bucket for source in config.sources.values()}
    for name, bucket in config.mixture.items():
        if name not in known:
            raise ValueError(f"config.mixture names bucket {name}; the sources have: {', '.join(sorted(known))}")
        data_settings.check_bucket(bucket, f"config.mixture.{name}")


def _check_source(field: str, source: SourceConfig) -> None:
    _choice(f"{field}.kind", source.kind, ("jsonl", "json", "text", "parquet", "tfds", "python"))
    if source.kind == "tfds" and not source.dataset:
        raise ValueError(f"{field}.dataset is empty; it names the TensorFlow dataset to read")
    if source.kind in ("jsonl", "json", "text", "parquet") and not source.paths:
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
    """Refuses a bucket or language that cannot name a directory.

    Raises: ValueError.
    """
    if not is_name(name):
        raise ValueError(
            f"{field} is {name!r:.80}; use letters, digits, '-' and '_', {MAX_NAME_BYTES} bytes as UTF-8 at most"
        )


def is_name(name: str) -> bool:
    """Whether a text can name a directory."""
    is_word = name.replace("-", "").replace("_", "").isalnum()
    return is_word and len(name.encode(errors="replace")) <= MAX_NAME_BYTES


def _choice(field: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{field} is {value!r}; it must be one of {', '.join(map(repr, allowed))}")
